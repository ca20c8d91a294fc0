"""The sweep file's top level, and constraints between its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from alignment.statistics.matrix_correlation import MATRIX_MEASURES, AgreementMeasure
from alignment.statistics.resampling import IntervalMethod
from jobs.config.analysis import (
    AP_MEASURES,
    AUROC_HALVES,
    VECTOR_MEASURES,
    ExpertSettings,
    SimilarityMeasure,
    SimilaritySettings,
    SteeringSettings,
)
from jobs.config.base import MAX_COUNT, ConfigError, ConfigModel, NonEmpty, PathName
from jobs.config.comparison import Baseline, Control, HumanData, SparseAutoencoderBaseline
from jobs.config.concepts import Concepts
from jobs.config.models import Model, Neurons
from storage.errors import StoreError
from storage.store.paths import parse_store_path

_MAX_NAME_BYTES = 200
_JOB_FOLDER = "working_dir_files"
"""Ray keeps each job's copy of its working directory below a folder of this name."""


def _shorthand(key: str, input_type: Any) -> BeforeValidator:
    """Allows strings in a list, short for mappings with that one key."""

    def expand(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{key: item} if isinstance(item, str) else item for item in value]

    return BeforeValidator(expand, json_schema_input_type=input_type)


class Sweep(ConfigModel):
    """A neuralign sweep: concept sets x models x revisions, compared with human data and baselines.
    Paths are relative to the sweep file."""

    name: str = ""
    """Name of the sweep; default: the file's name without extension."""
    store: PathName = ""
    """Where results go: a folder or s3://bucket/prefix; default: results/NAME."""
    concepts: list[Concepts] = Field(min_length=1)
    """The concept set, or a list of them: a file of sentences, or where sentences come from."""
    models: Annotated[NonEmpty[Model], _shorthand("id", NonEmpty[str | Model])]
    """The models: repositories on the Hugging Face Hub or folders, optionally with settings."""
    models_in: PathName = ""
    """Folder that relative paths of models start from; default: the sweep file's folder."""
    neurons: Neurons = Neurons()
    """Which neurons are analyzed."""
    experts: ExpertSettings = ExpertSettings()
    """Criteria for expert neurons."""
    similarity: SimilaritySettings = SimilaritySettings()
    """How the similarity of concepts is measured; a list gives the measures."""
    steering: SteeringSettings | None = None
    """Steering by experts; default: none."""
    human: Annotated[NonEmpty[HumanData], _shorthand("name", NonEmpty[str | HumanData])] = Field(
        default=[HumanData(name="men")], json_schema_extra={"default": ["men"]}
    )
    """Human similarity judgments: names of built-in data sets, or files."""
    baselines: list[Baseline] = ["input-embedding", "contextual"]
    """Representations that experts are compared with."""
    controls: list[Control] = []
    """split-half: experts of either half of the sentences. length-matched: experts against negatives of
    the same length as the positives. pseudo-concepts: experts of other words, with equally many
    sentences."""
    agreement: list[AgreementMeasure] = Field(default=["spearman"], min_length=1)
    """Measures of the agreement with human scores. cka (debiased) and whitened (Pearson's correlation,
    whitened) need a score of every pair of concepts."""
    interval: IntervalMethod = "jackknife"
    """Method of the 95% confidence intervals."""
    resamples: int = Field(default=2000, ge=100, le=MAX_COUNT)
    """Number of resamples for bootstrap intervals and permutation tests."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of all random choices."""
    file: SkipJsonSchema[Path] = Field(default=Path(), exclude=True)
    """The sweep file; set when it is read, not in the file."""

    @field_validator(
        "concepts", mode="before", json_schema_input_type=str | Concepts | NonEmpty[str | Concepts]
    )
    @classmethod
    def _wrap_concepts(cls, value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        return [{"source": item} if isinstance(item, str) else item for item in items]

    @field_validator(
        "similarity",
        mode="before",
        json_schema_input_type=NonEmpty[SimilarityMeasure] | SimilaritySettings,
    )
    @classmethod
    def _wrap_similarity(cls, value: Any) -> Any:
        return {"measures": value} if isinstance(value, list) else value

    @field_validator("name")
    @classmethod
    def _check_folder_name(cls, value: str) -> str:
        # results go to the folder of this name
        if "/" in value or value in (".", "..") or len(value.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"expected a name without /, of at most {_MAX_NAME_BYTES} bytes")
        return value

    @model_validator(mode="after")
    def _check_names(self) -> Sweep:
        for index, concept_set in enumerate(self.concepts):
            if not concept_set.name and len(self.concepts) > 1:
                message = "is missing; each of several concept sets needs a name of its own"
                raise ConfigError(message, "concepts", index, "name")
        return self

    @model_validator(mode="after")
    def _check_measures(self) -> Sweep:
        if self.similarity.is_default:
            return self
        for index, measure in enumerate(self.similarity.measures):
            location = ("similarity", "measures", index)
            if measure in AP_MEASURES and self.experts.scores is not True:
                message = f"{measure!r} needs the APs of all neurons: experts: {{scores: true}}"
                raise ConfigError(message, *location)
            if measure in VECTOR_MEASURES and self.experts.scores is False:
                message = f"{measure!r} needs the AUROCs of all neurons: experts: {{scores: auto}}"
                raise ConfigError(message, *location)
            if measure == AUROC_HALVES and "split-half" not in self.controls:
                raise ConfigError(f"{measure!r} needs controls: [split-half]", *location)
        return self

    @model_validator(mode="after")
    def _check_interval(self) -> Sweep:
        for index, measure in enumerate(self.agreement):
            if measure in MATRIX_MEASURES and self.interval != "jackknife":
                raise ConfigError(f"{measure!r} needs interval: jackknife", "agreement", index)
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Sweep:
        runs = set()
        for index, model in enumerate(self.models):
            for revision in model.revisions:
                if (model.id, revision) in runs:
                    raise ConfigError(f"{model.id!r} at {revision!r} is listed twice", "models", index)
                runs.add((model.id, revision))
        for index, baseline in enumerate(self.baselines):
            if isinstance(baseline, SparseAutoencoderBaseline) and not self.models_for(baseline):
                raise ConfigError(
                    f"{baseline.model!r}: expected the model that the autoencoder was trained on",
                    *("baselines", index, "model"),
                )
        return self

    @model_validator(mode="after")
    def _check_duplicates(self) -> Sweep:
        steering = self.steering or SteeringSettings()
        lists: dict[tuple[str, ...], Sequence[Any]] = {
            ("concepts",): [concept_set.name for concept_set in self.concepts],
            ("human",): [human.name for human in self.human],
            ("agreement",): self.agreement,
            ("baselines",): [getattr(baseline, "name", baseline) for baseline in self.baselines],
            ("controls",): self.controls,
            ("experts", "threshold"): self.experts.threshold,
            ("experts", "top"): self.experts.top,
            ("neurons", "pooling"): self.neurons.pooling,
            ("similarity", "measures"): self.similarity.measures,
            ("similarity", "scopes"): self.similarity.scopes,
            ("steering", "prompts"): steering.prompts,
            ("steering", "concepts"): steering.concepts or [],
            ("steering", "k"): steering.k,
        }
        if steering.pooling not in (None, *self.neurons.pooling):
            poolings = ", ".join(self.neurons.pooling)
            raise ConfigError(
                f"{steering.pooling!r}: expected one of neurons.pooling: {poolings}",
                *("steering", "pooling"),
            )
        for location, values in lists.items():
            for index, value in enumerate(values):
                if value in values[:index]:
                    raise ConfigError(f"{value!r} is listed twice", *location, index)
        return self

    def per_concept_set(self) -> list[Sweep]:
        """One sweep for each concept set."""
        return [self.model_copy(update={"concepts": [concept_set]}) for concept_set in self.concepts]

    @property
    def concept_set(self) -> str:
        """The name of the only concept set, by default the sweep's."""
        (concept_set,) = self.concepts
        return concept_set.name or self.name

    @property
    def folder(self) -> Path:
        """The folder that paths in the file are relative to."""
        return self.file.resolve().parent

    @property
    def models_folder(self) -> Path:
        """The folder that relative paths of models start from."""
        return self.folder / self.models_in

    @property
    def store_path(self) -> Path:
        """Where the results go.

        Raises StoreError for a URL that is not in an object store, and for a folder that is deleted with
        the Ray job that runs the sweep.
        """
        store = parse_store_path(self.store or f"results/{self.name}", self.folder)
        if _JOB_FOLDER in store.parts:
            raise StoreError(
                f"{self.file}: store: {store} is in this job's copy of its working directory, which "
                "other nodes cannot see and which is deleted with the job; set `store:` to the absolute "
                "path of a folder that all nodes share, or to s3://bucket/prefix"
            )
        return store

    def models_for(self, baseline: SparseAutoencoderBaseline) -> list[Model]:
        """The model that an autoencoder was trained on: the one it names, or the only one."""
        if baseline.model is None and len(self.models) == 1:
            return self.models
        return [model for model in self.models if model.id == baseline.model]


def sweep_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a sweep file, with descriptions, defaults and allowed values."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Sweep.model_json_schema(),
        "title": "neuralign sweep file",
    }
