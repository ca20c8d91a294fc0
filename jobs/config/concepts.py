"""Concepts and where their sentences come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from alignment.text.quality import LANGUAGES
from jobs.config.base import Count, Part
from jobs.config.models import Dtype
from storage.readers.concepts import FEWEST_SENTENCES


def _known_language(value: str) -> str:
    if value not in LANGUAGES:
        raise ValueError(f"allowed: {', '.join(sorted(LANGUAGES))}")
    return value


Language = Annotated[str, AfterValidator(_known_language)]


class _Set(Part):
    """A concept set; by its name a sweep tells it from its others."""

    name: str = ""


class Brought(_Set):
    """Sentences that are there: a file or folder, and what its columns are called."""

    source: str = Field(min_length=1)
    columns: dict[str, str] = {}
    language: Language = "en"


class Made(_Set):
    """Concepts whose sentences are to be found or written: their names, or a file of them."""

    words: str | list[str]
    sentences: Count = 32
    fewest: Count | None = None
    language: Language = "en"

    @property
    def needed(self) -> int:
        """Fewer sentences than this for a concept are an error: half of those asked for by default."""
        return max(FEWEST_SENTENCES, self.fewest or self.sentences // 2)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.needed > self.sentences:
            raise ValueError(f"sentences: {self.sentences}: at least {self.needed} are needed")
        return self


class Harvest(Made):
    """Sentences taken from text, and neutral ones (`pool`) in which no concept is named."""

    source: Literal["harvest"]
    corpus: str | list[str]
    column: str = "text"
    pool: int = Field(default=0, ge=0)


class Generate(Made):
    """Sentences written by a language model."""

    source: Literal["generate"]
    model: str = Field(min_length=1)
    revision: str = "main"
    dtype: Dtype = "auto"
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    prompts: list[Literal["fact", "story"]] = Field(default=["fact", "story"], min_length=1)
    at_once: Count = 1
    rounds: Count = 8
    temperature: float = Field(default=0.8, gt=0)
    tensor_parallel: Count = 1
    replicas: Count | Literal["auto"] = "auto"
    wordnet: str | None = None


def _source_kind(value: Any) -> str:
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    return source if source in ("harvest", "generate") else "brought"


Concepts = Annotated[
    Annotated[Brought, Tag("brought")]
    | Annotated[Harvest, Tag("harvest")]
    | Annotated[Generate, Tag("generate")],
    Discriminator(_source_kind),
]
