"""The sweep file: what a user asks for, read from YAML and checked before anything runs.

Paths in a sweep file are relative to the file.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from alignment.agreement import Measure
from alignment.expertise import REFERENCE_PREVALENCE
from alignment.quality import LANGUAGES
from alignment.resampling import Method
from storage.concepts import FEWEST_SENTENCES, POOL
from storage.errors import StoreError, UserError
from storage.human import DEFAULT_COLUMNS, Comparison, HumanSet, Kind, Taxonomy, known_set, known_sets
from storage.place import absolute, place

Pooling = Literal["max", "concept", "context", "mean", "last"]
Count = Annotated[int, Field(ge=1)]
KnownBaseline = Literal[
    "glove", "input-embedding", "contextual", "sentence-encoder", "shuffled", "random-init"
]
Control = Literal["split-half", "length-matched"]
Threshold = Annotated[float, Field(ge=0, lt=1)]
SimilarityMeasure = Literal["jaccard", "overlap", "dice", "containment", "cosine", "spearman", "kl"]
VECTOR_MEASURES = ("cosine", "spearman", "kl")
"""Measures on the APs of all neurons, which must then be kept."""
Scope = Literal["model", "layer", "site"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
_JOB_FOLDER = "working_dir_files"
"""Below it, Ray keeps each job's copy of its working folder."""

OTHERS = "others"
OWN = "own"


def _known_language(value: str) -> str:
    if value not in LANGUAGES:
        raise ValueError(f"allowed: {', '.join(sorted(LANGUAGES))}")
    return value


Language = Annotated[str, AfterValidator(_known_language)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Brought(_Part):
    """Sentences that are there: a file or folder, and what its columns are called."""

    source: str = Field(min_length=1)
    columns: dict[str, str] = {}
    language: Language = "en"


class _Made(_Part):
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


class Harvest(_Made):
    """Sentences taken from text, and neutral ones (`pool`) in which no concept is named."""

    source: Literal["harvest"]
    corpus: str | list[str]
    column: str = "text"
    pool: int = Field(default=0, ge=0)


class Generate(_Made):
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


class Model(_Part):
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


class Neurons(_Part):
    """Which neurons are read, and over which tokens their maximum goes."""

    sites: Literal["mlp", "linears"] | list[str] = "mlp"
    pooling: list[Pooling] = Field(default=["max"], min_length=1)


class Experts(_Part):
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


class Similarity(_Part):
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


class Steering(_Part):
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


class Human(_Part):
    """Human judgments: a known data set by its name, or a file with how to read it."""

    name: str = Field(min_length=1)
    path: str | None = None
    kind: Kind = "pairs"
    columns: list[str] | None = None
    raters: list[str] = []
    items: str | None = None
    scores: Literal["similarity", "dissimilarity"] = "similarity"
    vectors: Comparison = "cosine"
    taxonomy: Taxonomy = "path"
    lemma: bool = False

    @model_validator(mode="after")
    def _known(self) -> Human:
        if self.path is None and self.name not in known_sets():
            raise ValueError(f"allowed: {', '.join(known_sets())}, or a file: {{name, path, columns}}")
        if self.path is None and self.model_fields_set - {"name", "lemma"}:
            raise ValueError(f"{self.name!r} is a known data set; only a file is told how to be read")
        wanted = 3 if self.kind == "features" else len(DEFAULT_COLUMNS[self.kind])
        if self.columns is not None and len(self.columns) != wanted:
            raise ValueError(f"columns: {self.kind} have {wanted}, here are {len(self.columns)}")
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
        )


class WordVectors(_Part):
    """A baseline: word vectors in a file."""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)


class SentenceEncoder(_Part):
    """A baseline: a sentence encoder, in a folder or on the hub."""

    name: str = Field(min_length=1)
    encoder: str = Field(min_length=1)
    revision: str = "main"


class Latents(_Part):
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
    if isinstance(value, dict | _Part):
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


class Sweep(_Part):
    """Models x revisions, one concept set, human data and baselines."""

    name: str = ""
    store: str = ""
    concepts: Concepts
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
        return {"source": value} if isinstance(value, str) else value

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


def read_sweep(file: Path, store: Path | None = None) -> Sweep:
    """Read and check a sweep file; `store` overrides where the results go.

    Raises UserError that names the file, the key, the value given and what is allowed.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text: {error.reason}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no keys; a sweep needs at least concepts and models")
    if "file" in content:
        raise UserError(f"{file}: file: unknown key; {_allowed_keys(('file',))}")
    content.setdefault("name", file.stem)
    if store is not None:
        content["store"] = absolute(store)
    try:
        return Sweep.model_validate({**content, "file": file})
    except ValidationError as error:
        raise UserError(
            "\n".join(f"{file}: {_explain(dict(problem))}" for problem in error.errors())
        ) from error


_UNION_MEMBER = re.compile(r"^(constrained-)?int$|^literal\[|^list\[")


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _explain(problem: dict[str, Any]) -> str:
    """One line for one problem that pydantic found."""
    # the parts that name a member of a union are no keys of the user's
    tag = {"concepts": 1, "baselines": 2}.get(str(problem["loc"][0]) if problem["loc"] else "", 99)
    kind = problem["loc"][tag] if len(problem["loc"]) > tag else None
    location = tuple(
        part for part in problem["loc"] if part != kind and not _UNION_MEMBER.search(str(part))
    )
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    where = f"{where.lstrip('.')}: " if where else ""
    if problem["type"] == "extra_forbidden":
        return f"{where}unknown key; {_allowed_keys(location, kind)}"
    if problem["type"] == "missing":
        return f"{where}is missing; give it a value"
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    if problem["type"] == "value_error" and not where:
        return message
    return f"{where}{problem['input']!r}: {message}"


def _allowed_keys(location: tuple[Any, ...], kind: str | None = None) -> str:
    parts: dict[str, type[_Part]] = {
        "brought": Brought,
        "harvest": Harvest,
        "generate": Generate,
        "vectors": WordVectors,
        "encoder": SentenceEncoder,
        "dictionary": Latents,
        "models": Model,
        "neurons": Neurons,
        "experts": Experts,
        "human": Human,
        "similarity": Similarity,
        "steering": Steering,
    }
    owner = parts.get(kind or str(location[0]), Sweep) if len(location) > 1 else Sweep
    allowed = [name for name in owner.model_fields if name != "file"]
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"
