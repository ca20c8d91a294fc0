"""The sweep as a whole, and what its parts must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from alignment.statistics.rank_correlation import Measure
from alignment.statistics.resampling import Method
from jobs.config.analysis import VECTOR_MEASURES, Experts, Similarity, Steering
from jobs.config.base import Part
from jobs.config.comparison import Baseline, Control, Human, Latents
from jobs.config.concepts import Concepts
from jobs.config.models import Model, Neurons
from storage.errors import StoreError
from storage.readers.human import HumanSet
from storage.store.paths import place

_JOB_FOLDER = "working_dir_files"
"""Below it, Ray keeps each job's copy of its working folder."""


class Sweep(Part):
    """Models x revisions, concept sets, human data and baselines."""

    name: str = ""
    store: str = ""
    concepts: list[Concepts] = Field(min_length=1)
    models: list[Model] = Field(min_length=1)
    models_in: str = ""
    neurons: Neurons = Neurons()
    experts: Experts = Experts()
    similarity: Similarity = Similarity()
    steering: Steering | None = None
    human: list[Human] = Field(default=[Human(name="men")], min_length=1)
    baselines: list[Baseline] = ["input-embedding", "contextual"]
    controls: list[Control] = []
    agreement: list[Measure] = Field(default=["spearman"], min_length=1)
    interval: Method = "jackknife"
    resamples: int = Field(default=2000, ge=100)
    seed: int = Field(default=0, ge=0)
    file: Path = Field(default=Path(), exclude=True)

    @field_validator("concepts", mode="before")
    @classmethod
    def _concepts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            value = [value]
        return [{"source": item} if isinstance(item, str) else item for item in value]

    @field_validator("models", mode="before")
    @classmethod
    def _models(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"id": item} if isinstance(item, str) else item for item in value]

    @field_validator("similarity", mode="before")
    @classmethod
    def _similarity(cls, value: Any) -> Any:
        return {"measures": value} if isinstance(value, list) else value

    @field_validator("human", mode="before")
    @classmethod
    def _human(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"name": item} if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _sets_have_names(self) -> Sweep:
        if len(self.concepts) > 1:
            for number, wanted in enumerate(self.concepts):
                if not wanted.name:
                    raise ValueError(
                        f"concepts[{number}]: name: is missing; each of several concept sets has its own"
                    )
        return self

    @model_validator(mode="after")
    def _scores_are_kept(self) -> Sweep:
        for measure in self.similarity.measures:
            if measure in VECTOR_MEASURES and not self.experts.scores:
                raise ValueError(
                    f"similarity.measures: {measure!r} needs all neurons' APs: experts: {{scores: true}}"
                )
        return self

    @model_validator(mode="after")
    def _no_run_twice(self) -> Sweep:
        seen = set()
        for model in self.models:
            for revision in model.revisions:
                if (model.id, revision) in seen:
                    raise ValueError(f"models: {model.id!r} at {revision!r} is listed twice")
                seen.add((model.id, revision))
        for each in self.baselines:
            if isinstance(each, Latents) and not self.models_of(each):
                raise ValueError(
                    f"baselines: {each.name}: model: {each.model!r}: name the one of the models that "
                    "the dictionary was trained on"
                )
        lists: dict[str, list[Any]] = {
            "concepts: name": [each.name for each in self.concepts],
            "human": [human.name for human in self.human],
            "agreement": list(self.agreement),
            "baselines": [each if isinstance(each, str) else each.name for each in self.baselines],
            "controls": list(self.controls),
            "experts.threshold": self.experts.threshold,
            "experts.top": list(self.experts.top),
            "neurons.pooling": list(self.neurons.pooling),
            "similarity.measures": list(self.similarity.measures),
            "similarity.scopes": list(self.similarity.scopes),
        }
        if self.steering is not None:
            lists |= {
                "steering.prompts": self.steering.prompts,
                "steering.concepts": list(self.steering.concepts or []),
                "steering.k": list(self.steering.k),
            }
            if self.steering.pooling not in (None, *self.neurons.pooling):
                raise ValueError(
                    f"steering.pooling: {self.steering.pooling!r} is none of neurons.pooling: "
                    f"{', '.join(self.neurons.pooling)}"
                )
        for key, values in lists.items():
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{key}: {value!r} is listed twice")
        return self

    def each_set(self) -> list[Sweep]:
        """The sweep of each concept set alone."""
        return [self.model_copy(update={"concepts": [wanted]}) for wanted in self.concepts]

    @property
    def concept_set(self) -> str:
        """The name of the only concept set: the sweep's own by default."""
        (wanted,) = self.concepts
        return wanted.name or self.name

    @property
    def folder(self) -> Path:
        """The folder that the file's paths are relative to."""
        return self.file.resolve().parent

    @property
    def models_folder(self) -> Path:
        """The folder that relative paths of models are relative to: the file's own by default."""
        return self.folder / self.models_in

    @property
    def store_path(self) -> Path:
        """Where the results go. Raises StoreError for a URL that is none of an object store, and for a
        folder that goes with the Ray job that runs the sweep."""
        store = place(self.store or f"results/{self.name}", self.folder)
        if _JOB_FOLDER in store.parts:
            raise StoreError(
                f"{self.file}: store: {store} is in this job's copy of its working folder, which no "
                "other node sees and which goes with the job; give `store:` the absolute path of a "
                "folder that all nodes share, or s3://bucket/prefix"
            )
        return store

    def models_of(self, latents: Latents) -> list[Model]:
        """The model that a dictionary is of: the one that it names, or the only one."""
        if latents.model is None and len(self.models) == 1:
            return self.models
        return [model for model in self.models if model.id == latents.model]

    def human_sets(self) -> list[HumanSet]:
        """The human data sets, by name or by path."""
        return [human.where(self.folder) for human in self.human]
