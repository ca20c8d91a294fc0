"""Models, and which of their neurons are analyzed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.base import ConfigError, ConfigModel, Count, Gpus, ModelName, NonEmpty, PathName

Pooling = Literal["max", "concept", "concept-max", "context", "before", "mean", "last"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class Model(ConfigModel):
    """A model, its revisions, and the resources that it runs on."""

    id: ModelName
    """Repository on the Hugging Face Hub, or a folder (relative paths: see `models_in`)."""
    revisions: list[str] = Field(default=["main"], min_length=1)
    """Revisions to run, or one revision: names, patterns such as `step*`, `all` (patterns and `all` are
    expanded when the sweep is planned), or `random-init` for randomly initialized weights
    (`random-init-2`, `random-init-3`, ...: of other seeds)."""
    dtype: Dtype = "auto"
    """Data type of the weights; auto: bfloat16 where the processor has native support, else float32."""
    shards: Count | Literal["auto"] = "auto"
    """Shards of contiguous layers, each on its own device, which all work at once; auto: one if the
    model and its activations fit a device, else as many as are needed if the cluster has so many
    devices, else one that takes blocks of layers in turn."""
    cpus_per_shard: Count | Literal["auto"] = "auto"
    """CPU cores per shard, which read sentences and score or write activations in parallel; auto: those
    of a machine divided by the shards on it, or 1 beside a GPU."""
    gpus_per_shard: Gpus = 1.0
    """GPUs per shard; 0.5 puts two shards on a GPU, 0 uses CPUs only."""
    wait_seconds: float = Field(default=60.0, gt=0, le=31_536_000)
    """Seconds to wait for resources on the cluster before the model fails."""
    add_bos: bool | None = Field(default=None, exclude_if=lambda value: value is None)
    """Whether texts begin with a BOS token; by default as the model's tokenizer does."""
    skip_first_token: bool = Field(default=False, exclude_if=lambda value: not value)
    """Leave the first token of every text out of all poolings. In many models it attracts most attention
    whatever it is. If it is a BOS, it is never pooled, and this changes nothing."""
    allow: list[Literal["pickled-weights", "remote-code"]] = []
    """Unsafe features that this model may use."""
    config: PathName | None = None
    """A copy of the model's config.json, to estimate costs when the model itself is not available."""

    def input_params(self) -> dict[str, bool]:
        """The settings of the model's inputs that differ from the defaults."""
        return self.model_dump(include={"add_bos", "skip_first_token"})

    @model_validator(mode="before")
    @classmethod
    def _reject_replicas(cls, values: Any) -> Any:
        if isinstance(values, dict) and "replicas" in values:
            raise ConfigError(
                "no longer exists: a model is read once, by all cores of a shard; use cpus_per_shard to "
                "give it fewer",
                "replicas",
            )
        return values

    @field_validator("revisions", mode="before", json_schema_input_type=str | NonEmpty[str])
    @classmethod
    def _wrap_single_revision(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Neurons(ConfigModel):
    """Which neurons are analyzed, and how their activations are pooled over tokens."""

    sites: Literal["mlp", "linears"] | list[str] = "mlp"
    """Hidden units of the MLPs, outputs of all linear layers, or a list of names (mlp.hidden,
    mlp.shared, mlp.experts, mlp.router) and of regular expressions over module names, each optionally
    with `:input` or `:output` (the default)."""
    pooling: list[Pooling] = Field(default=["max"], min_length=1)
    """Pooling over the tokens of a sentence: the maximum over all tokens (max), over the last token of
    each occurrence of the concept's word (concept), over all tokens of these (concept-max), over all
    other tokens (context) or over those before the word (before); the mean, or the last token."""

    @field_validator(
        "sites", mode="before", json_schema_input_type=Literal["mlp", "linears"] | NonEmpty[str]
    )
    @classmethod
    def _check_sites(cls, value: Any) -> Any:
        is_pattern_list = (
            isinstance(value, list) and value and all(isinstance(pattern, str) for pattern in value)
        )
        if not is_pattern_list and value not in ("mlp", "linears"):
            raise ValueError(
                "expected mlp, linears, or a list of mlp.hidden, mlp.shared, mlp.experts, mlp.router "
                "and regular expressions over module names, each optionally with :input or :output (the "
                "default)"
            )
        return value
