"""Stage `activations`: run every sentence through the model and write pooled activations to Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.models.earlier_versions import reading_params
from cluster.models.size import model_size
from cluster.models.weights import Weights
from cluster.runtime.devices import default_dtype
from jobs import sentences
from jobs.config.models import Model, Neurons
from jobs.engine.disk_budget import activation_bytes_per_sentence
from jobs.engine.progress import progress
from jobs.engine.stage import Resource, Stage, StageOutput, run_missing_units
from storage import tables
from storage.store.activation_files import (
    INPUT_EMBEDDINGS_FILE,
    RESIDUAL,
    SiteActivations,
    activation_folder,
)
from storage.store.commit import FileRecord, write_table
from storage.store.fingerprint import hash_file

if TYPE_CHECKING:
    from cluster.activations.pooling_shard import ActivationSettings
    from cluster.models.sparse_autoencoder import SparseAutoencoder
    from cluster.models.tokenizer import InputOptions

KIND = "activations"
TOKEN_BUDGET = 1024
_SITE_KEY = ("pooling", "layer", "site")
_MIN_UNIT_SENTENCES, _MAX_UNIT_SENTENCES = 64, 4096
_MIN_UNITS = 8
_MAX_UNIT_BYTES = 4 << 30


def plan(
    weights: Weights,
    model: Model,
    neurons: Neurons,
    sentences_stage: Stage,
    n_sentences: int,
    states: bool,
    autoencoder: SparseAutoencoder | None = None,
) -> Stage:
    """The stage that keeps the activations of one model revision on one concept set; see `make_params`.

    Shards and replicas are not part of the fingerprint: they do not change the values.
    """
    size = work_unit_size(n_sentences)
    if reading_params(weights) and autoencoder is None:
        # The size is part of the fingerprint, so that of models read by earlier versions is kept.
        size = limit_unit_size(size, _bytes_per_sentence(weights, neurons, states))
    params = {
        **make_params(weights, model, neurons, sentences_stage, states, autoencoder),
        "token_budget": TOKEN_BUDGET,
        "sentences_in_unit": size,
        "units": -(-n_sentences // size),
    }

    def run(stage: Stage, store: Path) -> StageOutput:
        return _run(stage, store, weights, model, autoencoder)

    return Stage(KIND, weights.label, params, run, {"sentences": sentences_stage}, resource_for(model))


def make_params(
    weights: Weights,
    model: Model,
    neurons: Neurons,
    sentences_stage: Stage,
    states: bool,
    autoencoder: SparseAutoencoder | None,
) -> dict[str, Any]:
    """The parameters of what is read; `states` adds the hidden states after every layer, and an
    `autoencoder` replaces the neurons by its latents."""
    params = {
        "model": weights.model,
        "revision": weights.revision,
        "identity": weights.identity,
        "concept_set": sentences_stage.params["concept_set"],
        "dtype": default_dtype() if model.dtype == "auto" else model.dtype,
        "sites": neurons.sites,
        "poolings": list(neurons.pooling),
        "states": states,
        **reading_params(weights),
        **model.input_params(),
    }
    if autoencoder is not None:
        params |= {"sites": [autoencoder.name], "dictionary": _autoencoder_params(autoencoder)}
    return params


def are_kept(stage: Stage) -> bool:
    """Whether the stage keeps activations; else it has the rows that are made of them."""
    return bool(stage.params.get("keep", True))


def input_options(model: Model) -> InputOptions:
    """How the inputs of a model are made from texts."""
    from cluster.models.tokenizer import InputOptions

    return InputOptions(model.add_bos, model.skip_first_token)


def resource_for(model: Model) -> Resource:
    """What stages that hold the model's shards run on."""
    return Resource.GPUS if model.gpus_per_shard else Resource.CPUS


def work_unit_size(n_sentences: int) -> int:
    """Sentences in a work unit: a power of two that gives at least 8 units, within bounds.

    It depends on the number of sentences alone, so that a run resumed on another cluster has the same
    units.
    """
    size = 1 << max(0, (n_sentences // _MIN_UNITS).bit_length() - 1)
    return min(max(size, _MIN_UNIT_SENTENCES), _MAX_UNIT_SENTENCES)


def limit_unit_size(size: int, bytes_per_sentence: int) -> int:
    """A work unit's sentences, halved until their activations fit into 4 GB of a worker's memory; at
    least the minimum."""
    while size > _MIN_UNIT_SENTENCES and size * bytes_per_sentence > _MAX_UNIT_BYTES:
        size //= 2
    return size


def open_site(stage: Stage, store: Path, pooling: str, layer: int, site: str) -> SiteActivations:
    """Activations of one site on all sentences."""
    manifest = stage.read_manifest(store)
    records = manifest.records(activation_folder(pooling, layer, site))
    records.sort(key=attrgetter("path"))
    (width,) = (
        row["width"]
        for row in read_sites(stage, store)
        if tuple(row[name] for name in _SITE_KEY) == (pooling, layer, site)
    )
    return SiteActivations([manifest.folder / record.path for record in records], width, records)


def read_sites(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """Rows of the stage's `sites` table."""
    rows: list[dict[str, Any]] = stage.read_table(store, tables.SITES.file).to_pylist()
    return rows


def read_neuron_sites(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """Rows of the stage's `sites` table without the residual stream, which has no neurons."""
    return [row for row in read_sites(stage, store) if row["site"] != RESIDUAL]


def read_input_embeddings(stage: Stage, store: Path) -> dict[str, list[float]]:
    """Input embedding of each concept."""
    table = stage.read_table(store, INPUT_EMBEDDINGS_FILE)
    return {row["concept"]: row["vector"] for row in table.to_pylist()}


def _bytes_per_sentence(weights: Weights, neurons: Neurons, states: bool) -> int:
    size = model_size(weights, neurons.sites)
    return activation_bytes_per_sentence(size, len(neurons.pooling), states)


def _autoencoder_params(autoencoder: SparseAutoencoder) -> dict[str, Any]:
    """The identity of an autoencoder: its settings, its width and its content, not its path."""
    settings = {name: value for name, value in vars(autoencoder).items() if name != "path"}
    return {**settings, "width": autoencoder.validate(), "sha256": hash_file(autoencoder.path)}


def _run(
    stage: Stage, store: Path, weights: Weights, model: Model, autoencoder: SparseAutoencoder | None
) -> StageOutput:
    from cluster.activations.actor import UnitResult, WorkUnit
    from cluster.activations.pipeline import ActivationPipeline
    from cluster.models.shard import MAX_TOKENS
    from cluster.models.tokenizer import Text
    from cluster.runtime.placement import plan_placement
    from cluster.runtime.queue import WorkQueue
    from cluster.runtime.session import connect

    folder = stage.folder(store)
    size = stage.params["sentences_in_unit"]
    texts = [Text(text, spans) for text, spans in sentences.read_texts(stage.inputs["sentences"], store)]
    units = [
        WorkUnit(number, first, texts[first : first + size], TOKEN_BUDGET, len(texts))
        for number, first in enumerate(range(0, len(texts), size))
    ]
    words = sentences.read_concept_names(stage.inputs["sentences"], store)
    settings = make_settings(stage, weights, model, autoencoder)
    connect()
    placement = plan_placement(
        weights, stage.params["dtype"], model.shards, model.replicas, model.gpus_per_shard
    )

    def start() -> ActivationPipeline:
        return ActivationPipeline(weights, settings, placement.shards, placement.resources)

    def submit(pipeline: ActivationPipeline, unit: WorkUnit) -> Any:
        return pipeline.submit(unit, folder, words if unit.number == 0 else [])

    def halve_batches(unit: WorkUnit) -> WorkUnit:
        return replace(unit, budget=max(1, unit.budget // 2))

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        remaining = list(missing)
        n_remaining = sum(len(unit.texts) for unit in remaining)
        queue: WorkQueue[WorkUnit, UnitResult] = WorkQueue(
            start, submit, lambda unit: f"{stage.name}, unit {unit.name}", halve_batches
        )
        with progress(stage.name, len(texts), "sentences", len(texts) - n_remaining) as advance:
            replicas = min(placement.replicas, len(remaining))
            for unit, result in queue.run(remaining, replicas, model.wait_seconds):
                facts = {
                    "places": [
                        [pooling, site.layer, site.name, site.width, site.module, site.part]
                        for pooling, site in result.pooled_sites
                    ],
                    "tokens": result.n_tokens,
                    "cut": result.n_truncated,
                    "budget": unit.budget,
                    "word_tokens": result.word_tokens,
                }
                yield unit.name, result.files, facts
                advance(len(unit.texts))

    files, facts = run_missing_units(folder, {unit.name: unit for unit in units}, run)
    sites = site_rows(stage.params, facts[0]["places"])
    file_rows = [
        {
            **row,
            "first": unit.first,
            "sentences": len(unit.texts),
            "path": f"{activation_folder(*(row[name] for name in _SITE_KEY))}/{unit.name}.parquet",
        }
        for row in sites
        for unit in units
    ]
    files.append(_write_rows(folder, tables.ACTIVATION_FILES, file_rows))
    # Units of earlier versions lack these counts.
    files += write_site_tables(stage, folder, sites, words, facts[0].get("word_tokens", {}))
    return StageOutput(files, [*size_notes(stage, weights), *make_notes(facts, len(texts), MAX_TOKENS)])


def make_settings(
    stage: Stage, weights: Weights, model: Model, autoencoder: SparseAutoencoder | None
) -> ActivationSettings:
    """What a model's shards record."""
    from cluster.activations.pooling_shard import ActivationSettings

    return ActivationSettings(
        stage.params["dtype"],
        stage.params["sites"],
        list(stage.params["poolings"]),
        stage.params["states"],
        autoencoder,
        input_options(model),
        trust_remote_code=weights.trust_remote_code,
    )


def site_rows(params: Mapping[str, Any], places: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows of the table `sites`, from the facts of work units."""
    constants = {name: params[name] for name in ("model", "revision", "concept_set")}
    columns = ("pooling", "layer", "site", "width", "module", "part")
    # Work units of earlier versions lack the last two.
    return [constants | dict(zip(columns, values, strict=False)) for values in places]


def write_site_tables(
    stage: Stage,
    folder: Path,
    sites: list[dict[str, Any]],
    words: Sequence[str],
    word_tokens: Mapping[str, int],
) -> list[FileRecord]:
    """Commit the tables of the sites and of the concepts' tokens."""
    constants = {name: stage.params[name] for name in ("model", "revision", "concept_set")}
    word_rows = [
        {**constants, "concept": word, "n_tokens": word_tokens[word]}
        for word in words
        if word in word_tokens
    ]
    return [
        _write_rows(folder, tables.SITES, sites),
        _write_rows(folder, tables.CONCEPT_TOKENS, word_rows),
    ]


def _write_rows(folder: Path, table: tables.Table, rows: list[dict[str, Any]]) -> FileRecord:
    return write_table(folder, table.file, pa.Table.from_pylist(rows, table.schema))


def size_notes(stage: Stage, weights: Weights) -> list[str]:
    """Notes on layers that have none of the selected sites."""
    return [] if "dictionary" in stage.params else [*model_size(weights, stage.params["sites"]).notes]


def make_notes(unit_facts: Sequence[Mapping[str, Any]], n_sentences: int, max_tokens: int) -> list[str]:
    """Notes on truncated sentences and on work units that ran out of memory."""
    notes = []
    if truncated := sum(facts["cut"] for facts in unit_facts):
        notes.append(
            f"{truncated} of {n_sentences} sentences exceed the model's context or {max_tokens} tokens "
            "and were truncated"
        )
    budgets = [facts.get("budget", TOKEN_BUDGET) for facts in unit_facts]
    reduced = [budget for budget in budgets if budget < TOKEN_BUDGET]
    if reduced:
        notes.append(
            f"{len(reduced)} of {len(unit_facts)} work units ran out of memory and were rerun with "
            f"batches of down to {min(reduced)} tokens instead of {TOKEN_BUDGET}; bfloat16 values may "
            "differ in the last digit"
        )
    return notes


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("activations")
