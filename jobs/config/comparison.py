"""Human judgments, baselines and controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from jobs.config.base import ConfigError, ConfigModel, Count, ModelName, NonNegative, PathName
from storage.readers.human import (
    DEFAULT_COLUMNS,
    HumanSet,
    HumanSetKind,
    TaxonomyMeasure,
    VectorComparison,
    builtin_human_set,
    builtin_human_sets,
)
from storage.readers.published_sets import PUBLISHED_FORMATS, PublishedFormatName
from storage.readers.tabular import ColumnRef

KnownBaseline = Literal[
    "glove",
    "bag-of-words",
    "context-words",
    "input-embedding",
    "contextual",
    "sentence-encoder",
    "shuffled",
    "masked",
    "random-init",
]
Control = Literal["split-half", "length-matched", "pseudo-concepts"]

_OPTIONS: dict[HumanSetKind, set[str]] = {
    "pairs": {"columns", "raters", "scores", "suffix"},
    "matrix": {"items", "scores"},
    "embeddings": {"items", "vectors"},
    "features": {"columns", "items", "vectors"},
    "associations": set(),
    "categories": {"columns"},
    "triplets": {"columns", "items"},
    "wordnet": {"taxonomy"},
}


class HumanData(ConfigModel):
    """Human similarity judgments: a built-in data set, or a file and how to read it."""

    name: str = Field(min_length=1)
    """Name of a built-in data set; with `path`, any other name."""
    path: PathName | None = None
    """File with the judgments (kind wordnet: a folder); default: the built-in data set."""
    format: PublishedFormatName | None = None
    """Layout of a published file: THINGS (SPoSE), features of Leuven or McRae, Small World of Words. It
    takes no other options, except `items` for things. `neuralign human` tells where to get the files."""
    kind: HumanSetKind = "pairs"
    """Format of the file."""
    columns: list[ColumnRef] | None = None
    """Columns of the file, all by name or all by number from 1. Default: pairs a, b, score; categories
    category, word; triplets a, b, odd. Features need three: item, feature, value."""
    raters: list[ColumnRef] = []
    """Columns with individual raters' scores, for the noise ceiling (kind pairs)."""
    items: PathName | None = None
    """File with the items' names, one per row (matrix, embeddings, features, triplets)."""
    scores: Literal["similarity", "dissimilarity"] = "similarity"
    """Meaning of a high score (pairs, matrix)."""
    vectors: VectorComparison = "cosine"
    """Similarity of two vectors (embeddings, features): cosine, dot product, or the probability of being
    chosen as the similar pair of a triplet (softmax)."""
    taxonomy: TaxonomyMeasure = "path"
    """Similarity in a taxonomy (wordnet)."""
    lemma: bool = False
    """Also match words by their singular."""
    suffix: str = ""
    """Part-of-speech suffix, such as -n; only words with it are used (pairs)."""

    @model_validator(mode="after")
    def _check_options(self) -> HumanData:
        builtin = builtin_human_sets()
        options = self.model_fields_set - {"name", "lemma"}
        if self.path is None and self.name not in builtin:
            raise ConfigError(
                f"{self.name!r}: expected {', '.join(builtin)}, or a file: {{name, path, columns}}",
                "name",
            )
        if self.path is None and options:
            raise ConfigError(
                f"not allowed for the built-in {self.name!r}, only for a file", min(options)
            )
        if self.path is not None and self.name in builtin:
            raise ConfigError(f"{self.name!r} is a built-in data set; choose another name", "name")
        if self.format is not None:
            self._check_format(self.format, options)
            return self
        if unused := options - {"path", "kind", *_OPTIONS[self.kind]}:
            raise ConfigError(f"not allowed for kind {self.kind}", min(unused))
        n_columns = 3 if self.kind == "features" else len(DEFAULT_COLUMNS[self.kind])
        if self.columns is not None and len(self.columns) != n_columns:
            raise ConfigError(
                f"expected {n_columns} columns for kind {self.kind}, got {len(self.columns)}", "columns"
            )
        columns = [*(self.columns or DEFAULT_COLUMNS[self.kind]), *self.raters]
        repeated = [column for number, column in enumerate(columns) if column in columns[:number]]
        if repeated:
            key = "raters" if repeated[0] in self.raters else "columns"
            raise ConfigError(f"{repeated[0]!r} is listed twice", key)
        numbers = [column for column in columns if isinstance(column, int)]
        if numbers and (len(numbers) < len(columns) or min(numbers) < 1):
            raise ConfigError(
                "columns and raters must be all names, or all numbers from 1",
                "columns" if self.columns else "raters",
            )
        return self

    def _check_format(self, name: PublishedFormatName, options: set[str]) -> None:
        items = PUBLISHED_FORMATS[name].items
        if items and self.items is None:
            raise ConfigError(f"is missing; format {name} has its names in {items}", "items")
        if unused := options - {"path", "format", *(["items"] if items else [])}:
            raise ConfigError(f"not allowed for format {name}", min(unused))

    def resolve(self, folder: Path) -> HumanSet:
        """The data set, with paths relative to `folder`."""
        if self.path is None:
            return replace(builtin_human_set(self.name), lemma=self.lemma)
        items = None if self.items is None else folder / self.items
        if self.format is not None:
            published = PUBLISHED_FORMATS[self.format]
            return HumanSet(
                self.name,
                folder / self.path,
                published.kind,
                published.columns,
                items=items,
                vectors=published.vectors,
                lemma=self.lemma,
            )
        return HumanSet(
            self.name,
            folder / self.path,
            self.kind,
            DEFAULT_COLUMNS[self.kind] if self.columns is None else tuple(self.columns),
            raters=tuple(self.raters),
            items=items,
            dissimilar=self.scores == "dissimilarity",
            vectors=self.vectors,
            taxonomy=self.taxonomy,
            lemma=self.lemma,
            suffix=self.suffix,
        )


class WordVectorsBaseline(ConfigModel):
    """Baseline: word vectors in a file."""

    name: str = Field(min_length=1)
    """Name of the baseline."""
    path: PathName = Field(min_length=1)
    """File in the format of word2vec, GloVe or fastText (.vec, .bin), optionally compressed (.gz,
    .bz2)."""


class SentenceEncoderBaseline(ConfigModel):
    """Baseline: a sentence encoder."""

    name: str = Field(min_length=1)
    """Name of the baseline."""
    encoder: ModelName
    """Repository on the Hugging Face Hub, or a folder (relative paths: see `models_in`)."""
    revision: str = "main"
    """Revision of the encoder."""


class SparseAutoencoderBaseline(ConfigModel):
    """Baseline: the latents of a sparse autoencoder, instead of a model's neurons."""

    name: str = Field(min_length=1)
    """Name of the baseline."""
    dictionary: PathName = Field(min_length=1)
    """Safetensors file with the weights of the autoencoder."""
    layer: NonNegative
    """Layer that the autoencoder was trained on, from 0."""
    at: str = ""
    """Module of the layer with `:input` or `:output`; default: the hidden state after the layer."""
    activation: Literal["relu", "jumprelu", "topk"] = "relu"
    """Activation function of the encoder."""
    k: Count | None = None
    """Active latents per token; required for, and only allowed with, activation topk."""
    b_dec: Literal["subtract", "ignore"] | None = None
    """Whether the decoder bias is subtracted from the input; required if the file has a `b_dec`."""
    model: str | None = None
    """Id of the model that the autoencoder was trained on; required if the sweep has several."""

    @model_validator(mode="after")
    def _check_k(self) -> Self:
        if (self.k is None) == (self.activation == "topk"):
            raise ConfigError("required for, and only allowed with, activation: topk", "k")
        return self


def _baseline_kind(value: Any) -> str:
    if isinstance(value, dict | ConfigModel):
        keys = value if isinstance(value, dict) else vars(value)
        return next((key for key in ("encoder", "dictionary") if key in keys), "vectors")
    return "known"


Baseline = Annotated[
    Annotated[KnownBaseline, Tag("known")]
    | Annotated[WordVectorsBaseline, Tag("vectors")]
    | Annotated[SentenceEncoderBaseline, Tag("encoder")]
    | Annotated[SparseAutoencoderBaseline, Tag("dictionary")],
    Discriminator(_baseline_kind),
]
