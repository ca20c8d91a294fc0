"""Concepts and the sources of their sentences."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from alignment.text.quality import LANGUAGES
from jobs.config.base import ConfigError, ConfigModel, Count, ModelName, NonNegative, PathName
from jobs.config.models import Dtype
from storage.readers.concepts import MIN_SENTENCES


def _check_language(value: str) -> str:
    if value not in LANGUAGES:
        raise ValueError(f"expected one of {', '.join(sorted(LANGUAGES))}")
    return value


Language = Annotated[
    str, AfterValidator(_check_language), Field(json_schema_extra={"enum": sorted(LANGUAGES)})
]


class _ConceptSetSettings(ConfigModel):
    name: str = ""
    """Name of the concept set, required if there are several; default: the sweep's name."""


class ProvidedSentences(_ConceptSetSettings):
    """Existing sentences in a file or folder."""

    source: PathName = Field(min_length=1, json_schema_extra={"not": {"enum": ["harvest", "generate"]}})
    """A .csv, .tsv, .jsonl or .parquet file, also compressed, or a folder with a concept_list.csv."""
    columns: dict[str, str] = {}
    """Names of the file's columns by the standard names, such as `{concept: word, text: sentence}`."""
    language: Language = "en"
    """ISO 639-1 code of the sentences' language."""


class SentencesToMake(_ConceptSetSettings):
    """Concepts whose sentences are harvested or generated."""

    words: PathName | list[str]
    """The concepts, or a file with the column `concept` and optionally domain, sense and pos."""
    sentences: Count = 32
    """Sentences per concept."""
    fewest: Count | None = None
    """Minimum number of sentences per concept; fewer are an error. Default: half of `sentences`."""
    language: Language = "en"
    """ISO 639-1 code of the sentences' language."""

    @property
    def min_sentences(self) -> int:
        """Minimum number of sentences per concept."""
        return max(MIN_SENTENCES, self.fewest or self.sentences // 2)

    @model_validator(mode="after")
    def _check_min_sentences(self) -> Self:
        if self.min_sentences > self.sentences:
            raise ConfigError(f"{self.sentences}: must be at least {self.min_sentences}", "sentences")
        return self


class HarvestedSentences(SentencesToMake):
    """Sentences sampled from a text corpus."""

    source: Literal["harvest"]
    """The constant `harvest`."""
    corpus: PathName | list[PathName]
    """Files, folders or patterns of .txt, .jsonl or .parquet files."""
    column: str = "text"
    """Field of the .jsonl and .parquet files that holds the text."""
    pool: NonNegative = 0
    """Number of neutral sentences, which name none of the concepts."""


class GeneratedSentences(SentencesToMake):
    """Sentences written by a language model."""

    source: Literal["generate"]
    """The constant `generate`."""
    model: ModelName
    """Repository on the Hugging Face Hub, or a folder (relative paths: see `models_in`)."""
    revision: str = "main"
    """Revision of the model."""
    dtype: Dtype = "auto"
    """Data type of the weights; auto: bfloat16 where the processor has native support, else float32."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """Inference engine; auto: vllm if it is installed, otherwise transformers."""
    prompts: list[Literal["fact", "story"]] = Field(default=["fact", "story"], min_length=1)
    """Kinds of prompt; the sentences are divided equally between them."""
    at_once: Count = 1
    """Sentences per prompt; 1 suits small models."""
    rounds: Count = 8
    """Maximum number of rounds of requests for missing sentences."""
    temperature: float = Field(default=0.8, gt=0, le=100)
    """Sampling temperature."""
    tensor_parallel: Count = 1
    """GPUs per engine."""
    replicas: Count | Literal["auto"] = "auto"
    """Engines that run in parallel; auto: as many as fit."""
    wordnet: PathName | None = None
    """Folder with WordNet's index and data files; default: $WNSEARCHDIR or /usr/share/wordnet."""


def _source_kind(value: Any) -> str:
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    return source if source in ("harvest", "generate") else "provided"


Concepts = Annotated[
    Annotated[ProvidedSentences, Tag("provided")]
    | Annotated[HarvestedSentences, Tag("harvest")]
    | Annotated[GeneratedSentences, Tag("generate")],
    Discriminator(_source_kind),
]
