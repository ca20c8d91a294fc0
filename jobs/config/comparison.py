"""What neurons are compared with: human judgments, baselines and controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from jobs.config.base import Count, Part
from storage.readers.human import (
    DEFAULT_COLUMNS,
    Comparison,
    HumanSet,
    Kind,
    Taxonomy,
    known_set,
    known_sets,
)
from storage.readers.tabular import Column

KnownBaseline = Literal[
    "glove", "input-embedding", "contextual", "sentence-encoder", "shuffled", "random-init"
]
Control = Literal["split-half", "length-matched"]

_OF_ALL = {"name", "lemma"}
_OPTIONS: dict[Kind, set[str]] = {
    "pairs": {"columns", "raters", "scores", "suffix"},
    "matrix": {"items", "scores"},
    "embeddings": {"items", "vectors"},
    "features": {"columns", "items", "vectors"},
    "categories": {"columns"},
    "triplets": {"columns", "items"},
    "wordnet": {"taxonomy"},
}


class Human(Part):
    """Human judgments: a known data set by its name, or a file with how to read it."""

    name: str = Field(min_length=1)
    path: str | None = None
    kind: Kind = "pairs"
    columns: list[Column] | None = None
    raters: list[Column] = []
    items: str | None = None
    scores: Literal["similarity", "dissimilarity"] = "similarity"
    vectors: Comparison = "cosine"
    taxonomy: Taxonomy = "path"
    lemma: bool = False
    suffix: str = ""

    @model_validator(mode="after")
    def _known(self) -> Human:
        if self.path is None and self.name not in known_sets():
            raise ValueError(f"allowed: {', '.join(known_sets())}, or a file: {{name, path, columns}}")
        given = self.model_fields_set - _OF_ALL
        if self.path is None and given:
            raise ValueError(f"{self.name!r} is a known data set; only a file is told how to be read")
        if self.path is not None and self.name in known_sets():
            raise ValueError(f"name: {self.name!r} is that of a known data set; call the file otherwise")
        if other := sorted(given - {"path", "kind", *_OPTIONS[self.kind]}):
            raise ValueError(f"{other[0]}: {self.kind} have none")
        wanted = 3 if self.kind == "features" else len(DEFAULT_COLUMNS[self.kind])
        if self.columns is not None and len(self.columns) != wanted:
            raise ValueError(f"columns: {self.kind} have {wanted}, here are {len(self.columns)}")
        named = [*(self.columns or DEFAULT_COLUMNS[self.kind]), *self.raters]
        numbers = [each for each in named if isinstance(each, int)]
        if numbers and (len(numbers) < len(named) or min(numbers) < 1):
            raise ValueError("columns, raters: name all by name, or all by number from 1 on")
        return self

    def where(self, folder: Path) -> HumanSet:
        """The data set, its paths relative to a folder."""
        if self.path is None:
            return replace(known_set(self.name), lemma=self.lemma)
        return HumanSet(
            self.name,
            folder / self.path,
            self.kind,
            DEFAULT_COLUMNS[self.kind] if self.columns is None else tuple(self.columns),
            raters=tuple(self.raters),
            items=None if self.items is None else folder / self.items,
            dissimilar=self.scores == "dissimilarity",
            vectors=self.vectors,
            taxonomy=self.taxonomy,
            lemma=self.lemma,
            suffix=self.suffix,
        )


class WordVectors(Part):
    """A baseline: word vectors in a file."""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)


class SentenceEncoder(Part):
    """A baseline: a sentence encoder, in a folder or on the hub."""

    name: str = Field(min_length=1)
    encoder: str = Field(min_length=1)
    revision: str = "main"


class Latents(Part):
    """A baseline: the latents of a sparse autoencoder's encoder, in the place of a model's neurons. `at`
    is a module of the layer with `:input` or `:output`; without it, the hidden state after the layer."""

    name: str = Field(min_length=1)
    dictionary: str = Field(min_length=1)
    layer: int = Field(ge=0)
    at: str = ""
    activation: Literal["relu", "jumprelu", "topk"] = "relu"
    k: Count | None = None
    b_dec: Literal["subtract", "ignore"] | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _k(self) -> Self:
        if (self.k is None) == (self.activation == "topk"):
            raise ValueError("k: goes with activation: topk, and topk with it")
        return self


def _baseline_kind(value: Any) -> str:
    if isinstance(value, dict | Part):
        keys = value if isinstance(value, dict) else vars(value)
        return next((key for key in ("encoder", "dictionary") if key in keys), "vectors")
    return "known"


Baseline = Annotated[
    Annotated[KnownBaseline, Tag("known")]
    | Annotated[WordVectors, Tag("vectors")]
    | Annotated[SentenceEncoder, Tag("encoder")]
    | Annotated[Latents, Tag("dictionary")],
    Discriminator(_baseline_kind),
]
