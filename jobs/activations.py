"""Stage `activations`: every sentence through the model; the neurons' pooled activations to Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.models.weights import Weights
from jobs import sentences
from jobs.config import Model, Neurons
from jobs.engine.progress import progress
from jobs.engine.stage import Outcome, Resource, Stage, run_missing_units
from storage import tables
from storage.store.activation_files import INPUT_EMBEDDINGS_FILE, SiteFiles, activation_folder
from storage.store.commit import FileRecord, write_table
from storage.store.fingerprint import hash_file
from storage.store.paths import read_table

if TYPE_CHECKING:
    from cluster.models.sparse_autoencoder import Dictionary

KIND = "activations"
SITES_FILE = "sites.parquet"
FILES_FILE = "files.parquet"

TOKEN_BUDGET = 1024
_PLACE = ("pooling", "layer", "site")
_FEWEST_IN_UNIT, _MOST_IN_UNIT = 64, 4096
_UNITS_AT_LEAST = 8


def plan(
    weights: Weights,
    model: Model,
    dtype: str,
    neurons: Neurons,
    texts: Stage,
    n_sentences: int,
    states: bool,
    dictionary: Dictionary | None = None,
) -> Stage:
    """The stage for one model at one revision over one concept set, with the hidden states after each
    layer or without; or of a dictionary's latents alone. How many shards and replicas run it is no part
    of what it is: the values are the same."""
    size = unit_size(n_sentences)
    params = {
        "model": weights.model,
        "revision": weights.revision,
        "identity": weights.identity,
        "concept_set": texts.params["concept_set"],
        "dtype": dtype,
        "sites": neurons.sites,
        "poolings": list(neurons.pooling),
        "states": states,
        "token_budget": TOKEN_BUDGET,
        "sentences_in_unit": size,
        "units": -(-n_sentences // size),
    }

    if dictionary is not None:
        params |= {"sites": [dictionary.name], "dictionary": _described(dictionary)}

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, weights, model, dictionary)

    return Stage(KIND, weights.label, params, run, {"sentences": texts}, lane_of(model))


def lane_of(model: Model) -> Resource:
    """The lane of the stages that hold a model's shards."""
    return Resource.GPUS if model.gpus_per_shard else Resource.CPUS


def unit_size(n_sentences: int) -> int:
    """Sentences in a work unit: a function of their number alone, so that a run that is taken up on
    another cluster finds the same units. A power of two that gives at least eight units."""
    size = 1 << max(0, (n_sentences // _UNITS_AT_LEAST).bit_length() - 1)
    return min(max(size, _FEWEST_IN_UNIT), _MOST_IN_UNIT)


def site_files(stage: Stage, store: Path, pooling: str, layer: int, site: str) -> SiteFiles:
    """The files of one site over all sentences."""
    paths = stage.result(store).paths(activation_folder(pooling, layer, site))
    (width,) = (
        row["width"]
        for row in read_sites(stage, store)
        if (row["pooling"], row["layer"], row["site"]) == (pooling, layer, site)
    )
    return SiteFiles(sorted(paths), width)


def read_sites(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """The rows of the stage's `sites` table."""
    (path,) = stage.result(store).paths(SITES_FILE)
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def read_input_embeddings(stage: Stage, store: Path) -> dict[str, list[float]]:
    """Input embedding of each concept."""
    (path,) = stage.result(store).paths(INPUT_EMBEDDINGS_FILE)
    return {row["concept"]: row["vector"] for row in read_table(path).to_pylist()}


def _described(dictionary: Dictionary) -> dict[str, Any]:
    """What an encoder is: its numbers, where it is read and how."""
    facts = {name: value for name, value in vars(dictionary).items() if name != "path"}
    return {**facts, "width": dictionary.check(), "sha256": hash_file(dictionary.path)}


def _run(
    stage: Stage, store: Path, weights: Weights, model: Model, dictionary: Dictionary | None
) -> Outcome:
    from cluster.activations.actor import Receipt, WorkUnit
    from cluster.activations.pipeline import Pipeline
    from cluster.activations.shard import LONGEST_SENTENCE, Settings
    from cluster.activations.tokens import Text
    from cluster.runtime.placement import place
    from cluster.runtime.queue import WorkQueue
    from cluster.runtime.session import connect

    folder = stage.folder(store)
    size = stage.params["sentences_in_unit"]
    read = sentences.read_texts(stage.inputs["sentences"], store)
    texts = [Text(text, spans) for text, spans in read]
    units = [
        WorkUnit(number, first, texts[first : first + size], TOKEN_BUDGET, len(texts))
        for number, first in enumerate(range(0, len(texts), size))
    ]
    words = sentences.read_concept_names(stage.inputs["sentences"], store)
    settings = Settings(
        stage.params["dtype"],
        stage.params["sites"],
        list(stage.params["poolings"]),
        weights.remote_code,
        stage.params["states"],
        dictionary,
    )

    connect()
    placed = place(weights, stage.params["dtype"], model.shards, model.replicas, model.gpus_per_shard)

    def start() -> Pipeline:
        return Pipeline(weights, settings, placed.shards, placed.resources)

    def submit(pipeline: Pipeline, unit: WorkUnit) -> Any:
        return pipeline.submit(unit, folder, words if unit.number == 0 else [])

    def smaller(unit: WorkUnit) -> WorkUnit:
        return replace(unit, budget=max(1, unit.budget // 2))

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        todo = list(missing)
        left = sum(len(unit.texts) for unit in todo)
        queue: WorkQueue[WorkUnit, Receipt] = WorkQueue(
            start, submit, lambda unit: f"{stage.name}, unit {unit.name}", smaller
        )
        with progress(stage.name, len(texts), "sentences", len(texts) - left) as advance:
            replicas = min(placed.replicas, len(todo))
            for unit, receipt in queue.run(todo, replicas, model.wait_seconds):
                places = [
                    [pooling, site.layer, site.name, site.width] for pooling, site in receipt.places
                ]
                facts = {
                    "places": places,
                    "tokens": receipt.tokens,
                    "cut": receipt.truncated,
                    "budget": unit.budget,
                }
                yield unit.name, receipt.files, facts
                advance(len(unit.texts))

    files, facts = run_missing_units(folder, {unit.name: unit for unit in units}, run)
    described = {name: stage.params[name] for name in ("model", "revision", "concept_set")}
    places = [
        {**described, "pooling": pooling, "layer": layer, "site": site, "width": width}
        for pooling, layer, site, width in facts[0]["places"]
    ]
    pieces = [
        {
            **place,
            "first": unit.first,
            "sentences": len(unit.texts),
            "path": f"{activation_folder(*(place[key] for key in _PLACE))}/{unit.name}.parquet",
        }
        for place in places
        for unit in units
    ]
    files += [
        write_table(folder, SITES_FILE, pa.Table.from_pylist(places, tables.SITES)),
        write_table(folder, FILES_FILE, pa.Table.from_pylist(pieces, tables.ACTIVATION_FILES)),
    ]
    return Outcome(files, told(facts, len(texts), LONGEST_SENTENCE))


def told(facts: Sequence[Mapping[str, Any]], n_sentences: int, longest: int) -> list[str]:
    """What the user should know of the units: sentences that were cut, and memory that ran out."""
    notes = []
    if cut := sum(fact["cut"] for fact in facts):
        notes.append(
            f"{cut} of {n_sentences} sentences are longer than the model can read, or than {longest} "
            "tokens, and were cut there"
        )
    budgets = [fact["budget"] for fact in facts if fact.get("budget", TOKEN_BUDGET) < TOKEN_BUDGET]
    if budgets:
        notes.append(
            f"memory ran out in {len(budgets)} of {len(facts)} units, which were read again in batches "
            f"of down to {min(budgets)} tokens instead of {TOKEN_BUDGET}; in bfloat16 that may change "
            "last digits"
        )
    return notes


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("activations")
