"""How neurons are analyzed: which are experts, how similar concepts are by them, and what steering
does."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from alignment.expertise.scoring import REFERENCE_PREVALENCE
from jobs.config.base import ConfigError, ConfigModel, Count, Gpus, NonNegative
from jobs.config.models import Pooling
from storage.readers.concepts import POOL

Threshold = Annotated[float, Field(ge=0, lt=1)]
AUROC, AUROC_HALVES = "auroc", "auroc-halves"
AUROC_MEASURES = (AUROC, AUROC_HALVES)
"""Measures on the AUROCs of all neurons; the second on those of both halves of the sentences."""
AP_MEASURES = ("centred cosine", "spearman", "kl")
"""Measures on the APs of all neurons; they need `experts: {scores: true}`."""
VECTOR_MEASURES = (*AUROC_MEASURES, *AP_MEASURES)
SimilarityMeasure = Literal[
    "jaccard",
    "overlap",
    "dice",
    "containment",
    "auroc",
    "auroc-halves",
    "centred cosine",
    "spearman",
    "kl",
]
Scope = Literal["model", "layer", "site"]

OTHERS = "others"
OWN = "own"
_NEGATIVES = rf"^({OTHERS}(:[1-9]\d{{0,8}})?|{OWN}|{POOL})$"


class ExpertSettings(ConfigModel):
    """How expert neurons are found."""

    negatives: str = Field(default=OTHERS, json_schema_extra={"pattern": _NEGATIVES})
    """Negative sentences of a concept: all other concepts' positives (others), N of these (others:N), or
    the sentences with the role negative (own) or pool (pool)."""
    threshold: list[Threshold] = Field(default=[0.5, 0.6, 0.7, 0.8, 0.9], min_length=1)
    """APs above which a neuron is an expert; each is analyzed separately."""
    prevalence: float = Field(default=REFERENCE_PREVALENCE, gt=0, lt=1)
    """Share of positives at which AP is computed; default 400/1400, as in the papers' data."""
    floor: Threshold = 0.4
    """AP above which a neuron is stored; at most the lowest threshold."""
    top: list[Count] = []
    """Numbers of best neurons per concept that are also analyzed as experts, whatever their AP."""
    permutations: int = Field(default=19, ge=0, le=10_000)
    """Permutations of the labels, for the number of experts expected by chance; 0: none."""
    scores: Literal["auto"] | bool = "auto"
    """Scores of all neurons, not only of those above `floor`, that are stored. auto: AUROC, if all of a
    model's take at most 256 MB. true: AUROC and AP. false: none."""
    gpus: Gpus = 0.0
    """GPUs per task that scores kept activations; 0: score them on CPUs."""
    keep_activations: Literal["auto"] | bool = "auto"
    """Whether activations are kept. If not, neurons are scored where their activations are computed, and
    these are not written. auto: kept if all of the sweep's are under 2 GB."""

    @field_validator("negatives")
    @classmethod
    def _check_negatives(cls, value: str) -> str:
        if not re.fullmatch(_NEGATIVES, value):
            raise ValueError(
                "expected others, others:N for N sampled negatives, own for the sentences with the role "
                "negative, or pool for those with the role pool"
            )
        return value

    @model_validator(mode="after")
    def _check_floor(self) -> ExpertSettings:
        if self.floor > min(self.threshold):
            raise ConfigError(
                f"{self.floor}: must not be above the lowest threshold, {min(self.threshold)}", "floor"
            )
        return self

    @property
    def n_negatives(self) -> int | None:
        """Number of negatives sampled per concept; None for all of them."""
        return count_sampled_negatives(self.negatives)


def count_sampled_negatives(negatives: str) -> int | None:
    """N of `others:N`; None for all of the negatives."""
    _, _, number = negatives.partition(":")
    return int(number) if number else None


class SimilaritySettings(ConfigModel):
    """How the similarity of two concepts is measured: by their experts, or by all neurons' scores."""

    measures: list[SimilarityMeasure] = Field(default=["jaccard", "auroc", "auroc-halves"], min_length=1)
    """Measures of similarity. The first is reported, so it must be symmetric and based on experts. By
    default, auroc is left out of models whose AUROCs are not stored (`experts.scores`), and auroc-halves
    without the control split-half, too."""
    scopes: list[Scope] = Field(default=["model", "layer", "site"], min_length=1)
    """Neurons that are compared: those of the entire model (required), of each layer, of each kind of
    site."""

    @model_validator(mode="after")
    def _check_reported(self) -> SimilaritySettings:
        measure = self.measures[0]
        if "model" not in self.scopes:
            raise ConfigError("must contain model, the scope that is reported", "scopes")
        if measure == "containment":
            raise ConfigError("containment is not symmetric; list another measure first", "measures", 0)
        if measure in VECTOR_MEASURES:
            raise ConfigError(f"{measure} has no threshold; list another measure first", "measures", 0)
        return self

    @property
    def is_default(self) -> bool:
        """Whether the sweep file does not name the measures."""
        return "measures" not in self.model_fields_set


NEUTRAL_PROMPTS = [
    "I could not stop thinking about the",
    "He told them a long story about the",
    "What she remembered most was the",
    "Nobody had noticed the",
    "The next page showed a picture of the",
    "There was nothing left but the",
    "Somewhere nearby was the",
    "In the dream I saw the",
]
"""They end with "the", which any noun can follow: "a" can precede neither a vowel nor a mass noun."""


class SteeringSettings(ConfigModel):
    """Steering by experts, to test whether they make the model say the concept's word."""

    prompts: list[Annotated[str, Field(min_length=1)]] = Field(default=NEUTRAL_PROMPTS, min_length=2)
    """Prompts after which the word's probability is measured; default: eight neutral prompts."""
    concepts: list[str] | None = Field(default=None, min_length=1)
    """Concepts to steer; default: all."""
    pooling: Pooling | None = None
    """The pooling whose experts are steered; default: the first of neurons.pooling."""
    k: list[Count] = Field(default=[1, 10, 30, 100], min_length=1)
    """Numbers of neurons steered together; k = 0 is always measured."""
    others: NonNegative = 20
    """Control words per concept: other concepts' words, drawn at random."""
    sentences: NonNegative = 8
    """Sentences of the concept in which its word is measured, and of other concepts, for the perplexity;
    drawn at random. 0: none."""
    singles: NonNegative = 100
    """Experts clamped one at a time, the best by AP; 0: none."""
    single_concepts: Count = 8
    """Number of concepts whose experts are clamped one at a time."""
    samples: NonNegative = 2
    """Texts generated per prompt; 0: none."""
    tokens: Count = 12
    """Tokens per generated text."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Sampling temperature of the texts; 0: greedy decoding."""
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    """Data type of the weights."""

    @field_validator("prompts")
    @classmethod
    def _no_outer_whitespace(cls, value: list[str]) -> list[str]:
        for index, prompt in enumerate(value):
            if prompt != prompt.strip():
                raise ConfigError(f"{prompt!r} has leading or trailing whitespace", index)
        return value
