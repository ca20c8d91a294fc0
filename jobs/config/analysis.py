"""What is asked of neurons: which are experts, how alike two concepts' are, what forcing them does."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from alignment.expertise.scoring import REFERENCE_PREVALENCE
from jobs.config.base import Count, Part
from jobs.config.models import Pooling
from storage.readers.concepts import POOL

Threshold = Annotated[float, Field(ge=0, lt=1)]
SimilarityMeasure = Literal["jaccard", "overlap", "dice", "containment", "cosine", "spearman", "kl"]
VECTOR_MEASURES = ("cosine", "spearman", "kl")
"""Measures on the APs of all neurons, which must then be kept."""
Scope = Literal["model", "layer", "site"]

OTHERS = "others"
OWN = "own"


class Experts(Part):
    """How expert neurons are found."""

    negatives: str = OTHERS
    threshold: list[Threshold] = Field(default=[0.5, 0.6, 0.7, 0.8, 0.9], min_length=1)
    prevalence: float = Field(default=REFERENCE_PREVALENCE, gt=0, lt=1)
    floor: Threshold = 0.4
    top: list[Count] = []
    permutations: int = Field(default=19, ge=0)
    scores: bool = False
    gpus: float = Field(default=0.0, ge=0)
    keep_activations: bool = True

    @field_validator("negatives")
    @classmethod
    def _negatives(cls, value: str) -> str:
        if not re.fullmatch(rf"{OTHERS}(:[1-9]\d*)?|{OWN}|{POOL}", value):
            raise ValueError(
                "allowed: others, others:N for N sampled negatives, own for the sentences of role "
                "negative, or pool for those of role pool"
            )
        return value

    @model_validator(mode="after")
    def _floor(self) -> Experts:
        if self.floor > min(self.threshold):
            raise ValueError(f"floor {self.floor} is above the threshold {min(self.threshold)}")
        return self

    @property
    def sampled(self) -> int | None:
        """How many negatives are sampled for each concept; None for all of them."""
        _, _, number = self.negatives.partition(":")
        return int(number) if number else None


class Similarity(Part):
    """How the experts of two concepts, or the APs of all neurons, are compared: by which measures, and
    among the neurons of the whole model, of each layer or, where there are several, of each kind of
    site. The first measure is the one that is reported."""

    measures: list[SimilarityMeasure] = Field(default=["jaccard"], min_length=1)
    scopes: list[Scope] = Field(default=["model", "layer", "site"], min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Similarity:
        if "model" not in self.scopes:
            raise ValueError("scopes: model is missing; the report shows the whole model")
        if self.measures[0] == "containment":
            raise ValueError("measures: containment is not symmetric; name another one first")
        if self.measures[0] in VECTOR_MEASURES:
            raise ValueError(f"measures: {self.measures[0]} has no threshold; name another one first")
        return self


NEUTRAL_PROMPTS = [
    "I could not stop thinking about the",
    "He told them a long story about the",
    "What she remembered most was the",
    "Nobody had noticed the",
    "The next page showed a picture of a",
    "There was nothing there but a",
    "Somewhere nearby there was a",
    "In the dream I saw a",
]


class Steering(Part):
    """Forcing experts, to see whether they make the model say the concept's word: after which prompts,
    of which concepts (all by default) and by which pooling (the first by default), how many neurons at a
    time; what becomes of how many other concepts' words; how many neurons one at a time, for how many
    concepts; and how texts go on (at temperature 0 with the likeliest token)."""

    prompts: list[Annotated[str, Field(min_length=1)]] = Field(default=NEUTRAL_PROMPTS, min_length=2)
    concepts: list[str] | None = Field(default=None, min_length=1)
    pooling: Pooling | None = None
    k: list[Count] = Field(default=[1, 3, 10, 30, 100, 300], min_length=1)
    others: int = Field(default=20, ge=0)
    singles: int = Field(default=100, ge=0)
    single_concepts: Count = 8
    samples: int = Field(default=2, ge=0)
    tokens: Count = 12
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"

    @field_validator("prompts")
    @classmethod
    def _bare(cls, value: list[str]) -> list[str]:
        for prompt in value:
            if prompt != prompt.strip():
                raise ValueError(f"{prompt!r} begins or ends with white space; the word brings its own")
        return value
