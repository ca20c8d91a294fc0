"""Models, and which of their neurons are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from jobs.config.base import Count, Part

Pooling = Literal["max", "concept", "context", "mean", "last"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class Model(Part):
    """A model, the revisions of it to run (`all`, or patterns such as `step*`, are those that the hub
    has at the time), and where: how long to wait for a place on the cluster. `config` is a copy of its
    config.json, for a plan where the model itself cannot be had."""

    id: str = Field(min_length=1)
    revisions: list[str] = Field(default=["main"], min_length=1)
    dtype: Dtype = "auto"
    shards: Count | Literal["auto"] = "auto"
    replicas: Count | Literal["auto"] = "auto"
    gpus_per_shard: float = Field(default=1.0, ge=0)
    wait_seconds: float = Field(default=60.0, gt=0)
    allow: list[Literal["pickled-weights", "remote-code"]] = []
    config: str | None = None

    @field_validator("revisions", mode="before")
    @classmethod
    def _revisions(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Neurons(Part):
    """Which neurons are read, and over which tokens their maximum goes."""

    sites: Literal["mlp", "linears"] | list[str] = "mlp"
    pooling: list[Pooling] = Field(default=["max"], min_length=1)

    @field_validator("sites", mode="before")
    @classmethod
    def _sites(cls, value: Any) -> Any:
        listed = isinstance(value, list) and value and all(isinstance(each, str) for each in value)
        if not listed and value not in ("mlp", "linears"):
            raise ValueError(
                "allowed: mlp, linears, or a list of regular expressions over names of modules, each "
                "with :input or :output (the default)"
            )
        return value
