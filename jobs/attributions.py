"""Stage `attributions`: what forcing each expert alone would do to its concept's word, by gradients.

One backward pass for each (concept, batch of prompts) gives the attributions of all neurons at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.models.weights import Weights
from jobs import activations, sentences
from jobs.config import Model, Steering
from jobs.engine.progress import progress
from jobs.engine.stage import Outcome, Stage, run_missing_units
from jobs.experts import SITES_FOLDER as EXPERTS_FOLDER
from storage import tables
from storage.errors import UserError
from storage.store.commit import FileRecord, write_table
from storage.store.paths import let_read

if TYPE_CHECKING:
    from cluster.runtime.placement import Placement
    from cluster.steering.interventions import Word
    from cluster.steering.pipeline import SlopeUnit, SteeringPipeline

KIND = "attributions"
FOLDER = "attributions"
HALVES = ("attribution_odd", "attribution_even")
"""Attributions over every second prompt, from the first and from the second: neurons chosen by those of
one half can be measured on the other."""

_CONCEPTS_IN_UNIT = 8


@dataclass(frozen=True)
class _Unit:
    number: int
    concepts: list[str]
    budget: int

    def smaller(self) -> _Unit:
        return replace(self, budget=max(1, self.budget // 2))

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


def plan(scored: Stage, weights: Weights, model: Model, wanted: Steering) -> Stage:
    """The stage for the experts of one model."""
    params = {
        **{name: scored.params[name] for name in ("model", "revision", "concept_set")},
        "dtype": wanted.dtype,
        "prompts": list(wanted.prompts),
        "concepts": wanted.concepts,
    }

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, weights, model)

    return Stage(KIND, scored.label, params, run, {"experts": scored}, activations.lane_of(model))


def check(known: Collection[str], wanted: Steering) -> None:
    """Raise UserError for a concept to steer that no concept set has."""
    for name in wanted.concepts or []:
        if name not in known:
            raise UserError(f"steering.concepts: no concept set has the concept {name!r}")


def word_of(concept: str) -> str:
    """The word whose probability stands for a concept."""
    return concept.replace("_", " ")


def place_steering(weights: Weights, dtype: str, model: Model) -> Placement:
    """Where the shards that steer go."""
    from cluster.runtime.placement import place

    return place(weights, dtype, model.shards, model.replicas, model.gpus_per_shard)


def start_pipeline(
    weights: Weights, dtype: str, sites: str | list[str], placed: Placement
) -> SteeringPipeline:
    """A replica that steers."""
    from cluster.activations.shard import Settings
    from cluster.steering.pipeline import SteeringPipeline

    settings = Settings(dtype, sites, [], weights.remote_code)
    return SteeringPipeline(weights, settings, placed.shards, placed.resources)


def read_words(
    weights: Weights, prompts: list[str], concepts: list[str], further: int = 0
) -> tuple[list[tuple[int, ...]], list[list[Word]]]:
    """Tokens of each prompt, and of each concept's word after each of them, from a worker, where the
    model's tokenizer is. So many further tokens are to fit after a prompt."""
    import ray

    from cluster.runtime.session import result
    from cluster.steering.pipeline import tokens_of

    found: tuple[list[tuple[int, ...]], list[list[Word]]] = result(
        ray.remote(tokens_of).remote(weights, prompts, [word_of(name) for name in concepts], further)
    )
    return found


def read_attributions(stage: Stage, store: Path, concept: str, pooling: str) -> pa.Table:
    """Experts of a concept by one pooling, best AP first: layer, site, unit, ap, on_p50, attribution and
    those of the halves of the prompts."""
    (experts, found) = (
        each.result(store).paths(folder)
        for each, folder in ((stage.inputs["experts"], EXPERTS_FOLDER), (stage, FOLDER))
    )
    with duckdb.connect() as connection:
        return connection.sql(
            f"SELECT layer, site, unit, ap, on_p50, attribution, {', '.join(HALVES)} "  # noqa: S608
            "FROM read_parquet($experts, hive_partitioning = false) AS e "
            "JOIN read_parquet($found, hive_partitioning = false) AS f "
            "USING (pooling, concept, layer, site, unit) "
            "WHERE concept = $concept AND pooling = $pooling ORDER BY ap DESC, layer, site, unit",
            params={
                "experts": let_read(connection, experts),
                "found": let_read(connection, found),
                "concept": concept,
                "pooling": pooling,
            },
        ).to_arrow_table()


def _run(stage: Stage, store: Path, weights: Weights, model: Model) -> Outcome:
    from cluster.runtime.queue import WorkQueue
    from cluster.runtime.session import connect
    from cluster.steering.pipeline import TOKEN_BUDGET

    folder = stage.folder(store)
    scored = stage.inputs["experts"]
    read = scored.inputs["activations"]
    concepts = stage.params["concepts"] or sentences.read_concept_names(read.inputs["sentences"], store)
    units = [
        _Unit(number, concepts[first : first + _CONCEPTS_IN_UNIT], TOKEN_BUDGET)
        for number, first in enumerate(range(0, len(concepts), _CONCEPTS_IN_UNIT))
    ]
    paths = scored.result(store).paths(EXPERTS_FOLDER)
    connect()

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        todo = list(missing)
        placed = place_steering(weights, stage.params["dtype"], model)
        _, words = read_words(weights, stage.params["prompts"], concepts)
        word = dict(zip(concepts, words, strict=True))
        queue: WorkQueue[_Unit, Any] = WorkQueue(
            lambda: start_pipeline(weights, stage.params["dtype"], read.params["sites"], placed),
            lambda pipeline, unit: pipeline.attribute(
                _slopes(unit, [word[name] for name in unit.concepts], _experts(paths, unit.concepts))
            ),
            lambda unit: f"{stage.name}, unit {unit.name}",
            _Unit.smaller,
        )
        left = sum(len(unit.concepts) for unit in todo)
        with progress(stage.name, len(concepts), "concepts", len(concepts) - left) as advance:
            replicas = min(placed.replicas, len(todo))
            for unit, found in queue.run(todo, replicas, model.wait_seconds):
                table = _table(stage, _experts(paths, unit.concepts), found)
                yield unit.name, [write_table(folder, f"{FOLDER}/{unit.name}.parquet", table)], {}
                advance(len(unit.concepts))

    files, _ = run_missing_units(folder, {unit.name: unit for unit in units}, run)
    return Outcome(files)


def _experts(paths: list[Path], concepts: list[str]) -> pa.Table:
    """Experts of some concepts by all poolings, site by site."""
    with duckdb.connect() as connection:
        return connection.sql(
            "SELECT pooling, concept, layer, site, unit, on_p50 "
            "FROM read_parquet($paths, hive_partitioning = false) "
            "WHERE list_contains($concepts, concept) ORDER BY layer, site, pooling, concept, unit",
            params={"paths": let_read(connection, paths), "concepts": concepts},
        ).to_arrow_table()


def _places(experts: pa.Table) -> Iterator[tuple[tuple[int, str], pa.Table]]:
    """The rows of each site, which lie together."""
    layers, sites = (experts.column(name).to_pylist() for name in ("layer", "site"))
    for place, rows in groupby(range(len(layers)), key=lambda row: (layers[row], sites[row])):
        numbers = list(rows)
        yield place, experts.slice(numbers[0], len(numbers))


def _slopes(unit: _Unit, words: list[list[Word]], experts: pa.Table) -> SlopeUnit:
    from cluster.steering.interventions import Row
    from cluster.steering.pipeline import Sloped, SlopeUnit

    rows = [
        Row(word.sequence, targets=word.targets, group=len(HALVES) * concept + prompt % len(HALVES))
        for concept, after_prompts in enumerate(words)
        for prompt, word in enumerate(after_prompts)
    ]
    wanted = {}
    numbers = pa.array(unit.concepts)
    for place, found in _places(experts):
        concept = pc.index_in(found.column("concept"), numbers).to_numpy().astype(np.int64)
        on = found.column("on_p50").to_numpy().astype(np.float64)
        units = found.column("unit").to_numpy().astype(np.int64)
        groups = [len(HALVES) * concept + half for half in range(len(HALVES))]
        wanted[place] = Sloped(
            np.concatenate(groups), np.tile(units, len(HALVES)), np.tile(on, len(HALVES))
        )
    return SlopeUnit(unit.name, rows, wanted, unit.budget)


def _table(stage: Stage, experts: pa.Table, found: dict[tuple[int, str], Any]) -> pa.Table:
    parts = [found[place].reshape(len(HALVES), -1) for place, _ in _places(experts)]
    by_half = np.concatenate(parts, axis=1) if parts else np.empty((len(HALVES), 0))
    sizes = [len(stage.params["prompts"][half :: len(HALVES)]) for half in range(len(HALVES))]
    columns = {
        name: pa.repeat(pa.scalar(stage.params[name]), experts.num_rows)
        for name in ("model", "revision", "concept_set")
    }
    columns |= {name: experts.column(name) for name in ("pooling", "concept", "layer", "site", "unit")}
    columns["attribution"] = np.average(by_half, axis=0, weights=sizes)
    return pa.table({**columns, **dict(zip(HALVES, by_half, strict=True))}, tables.ATTRIBUTIONS)


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("attributions")
