"""Stage `attributions`: gradient attributions, which estimate the effect of clamping a single expert on
its concept's word.

One backward pass per (concept, batch of prompts) gives the attributions of all neurons at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.models.weights import Weights
from jobs import activations, sentences
from jobs.config.analysis import SteeringSettings
from jobs.config.models import Model
from jobs.engine.progress import progress
from jobs.engine.stage import Stage, StageOutput, run_missing_units
from storage import sql, tables
from storage.errors import UserError
from storage.store.activation_files import MLP_ROUTER
from storage.store.commit import FileRecord, write_table

if TYPE_CHECKING:
    from cluster.runtime.placement import Placement
    from cluster.steering.actor import AttributionRequest
    from cluster.steering.interventions import PromptedWord
    from cluster.steering.pipeline import SteeringPipeline

KIND = "attributions"
HALVES = ("attribution_odd", "attribution_even")
"""Attributions over every other prompt, from the first and from the second: neurons selected on one half
of the prompts can be measured on the other."""

_CONCEPTS_IN_UNIT = 8


@dataclass(frozen=True)
class ConceptUnit:
    """A work unit of some concepts after all prompts, in batches of at most `budget` tokens."""

    number: int
    concepts: list[str]
    budget: int

    def halve_batches(self) -> Self:
        return replace(self, budget=max(1, self.budget // 2))

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


UnitT = TypeVar("UnitT", bound=ConceptUnit)


def plan(experts: Stage, weights: Weights, model: Model, config: SteeringSettings) -> Stage:
    """The stage for the experts of one model. Raises UserError if none of its sites can be clamped."""
    if set(experts.inputs["activations"].params["sites"]) == {MLP_ROUTER}:
        raise UserError(
            f"steering: {MLP_ROUTER} cannot be clamped: a router chooses its experts inside its module; "
            "add other sites to neurons.sites, or remove steering"
        )
    params = {
        **{name: experts.params[name] for name in ("model", "revision", "concept_set")},
        "dtype": config.dtype,
        "prompts": list(config.prompts),
        "concepts": config.concepts,
    }

    def run(stage: Stage, store: Path) -> StageOutput:
        return _run(stage, store, weights, model)

    resource = activations.resource_for(model)
    return Stage(KIND, experts.label, params, run, {"experts": experts}, resource)


def check_concepts(known: Collection[str], config: SteeringSettings) -> None:
    """Raise UserError for a concept to steer that is not in any concept set."""
    for name in config.concepts or []:
        if name not in known:
            raise UserError(f"steering.concepts: concept {name!r} is not in any concept set")


def run_units(
    stage: Stage,
    weights: Weights,
    model: Model,
    placement: Placement,
    units: Sequence[UnitT],
    n_concepts: int,
    submit: Callable[[SteeringPipeline, UnitT], Any],
    make_next: Callable[[UnitT, Any], UnitT | None] = lambda *_: None,
) -> Iterator[tuple[UnitT, Any]]:
    """Run the remaining units on replicas of the model, with a progress bar, and yield their results.

    A unit whose result leads to a next unit (`make_next`) is followed by that one, and yields nothing.
    """
    from cluster.models.shard import ShardSettings
    from cluster.runtime.queue import WorkQueue
    from cluster.steering.pipeline import SteeringPipeline

    activations_stage = next(
        ancestor for ancestor in stage.ancestors() if ancestor.kind == activations.KIND
    )
    sites = activations_stage.params["sites"]
    settings = ShardSettings(stage.params["dtype"], sites, trust_remote_code=weights.trust_remote_code)
    queue: WorkQueue[UnitT, Any] = WorkQueue(
        lambda: SteeringPipeline(weights, settings, placement.shards, placement.resources),
        submit,
        lambda unit: f"{stage.name}, concepts {', '.join(unit.concepts)}",
        lambda unit: unit.halve_batches(),
    )
    n_remaining = sum(len(unit.concepts) for unit in units)
    with progress(stage.name, n_concepts, "concepts", n_concepts - n_remaining) as advance:
        replicas = min(placement.replicas, len(units))
        for unit, result in queue.run(units, replicas, model.wait_seconds):
            following = make_next(unit, result)
            if following is not None:
                queue.add(following)
                continue
            yield unit, result
            advance(len(unit.concepts))


def tokenize_prompts(
    weights: Weights, model: Model, prompts: list[str], concepts: list[str], n_continuation: int = 0
) -> tuple[list[tuple[int, ...]], list[list[PromptedWord]]]:
    """Token ids of each prompt, and of each concept's word after each prompt. Runs on the cluster: the
    driver may lack the tokenizer. See `cluster.steering.tokens.tokenize_words`."""
    import ray

    from cluster.runtime.session import get_result
    from cluster.steering.tokens import tokenize_words

    words = [concept.replace("_", " ") for concept in concepts]
    options = activations.input_options(model)
    remote: Any = ray.remote(tokenize_words)
    task = remote.remote(weights, prompts, words, n_continuation, options)
    tokens: tuple[list[tuple[int, ...]], list[list[PromptedWord]]] = get_result(task)
    return tokens


def tokenize_texts(
    weights: Weights, model: Model, texts: list[list[tuple[str, str]]]
) -> list[list[PromptedWord]]:
    """Token ids of the parts of texts, on the cluster. See `cluster.steering.tokens.tokenize_parts`."""
    import ray

    from cluster.runtime.session import get_result
    from cluster.steering.tokens import tokenize_parts

    remote: Any = ray.remote(tokenize_parts)
    task = remote.remote(weights, texts, activations.input_options(model))
    tokens: list[list[PromptedWord]] = get_result(task)
    return tokens


def read_attributions(stage: Stage, store: Path, concept: str, pooling: str) -> pa.Table:
    """Experts of a concept at one pooling by descending AP, with their AUROCs, on values and
    attributions, over all prompts and over each half."""
    with duckdb.connect() as connection:
        for source, table in (
            (stage.inputs["experts"], tables.EXPERTS),
            (stage, tables.ATTRIBUTIONS),
        ):
            paths = source.read_manifest(store).paths(table.file)
            sql.scan_parquet(connection, paths).create_view(table.name)
        return connection.sql(
            f"SELECT layer, site, unit, ap, auroc, on_p50, attribution, {', '.join(HALVES)} "  # noqa: S608
            "FROM experts JOIN attributions USING (pooling, concept, layer, site, unit) "
            "WHERE concept = $concept AND pooling = $pooling ORDER BY ap DESC, layer, site, unit",
            params={"concept": concept, "pooling": pooling},
        ).to_arrow_table()


def _run(stage: Stage, store: Path, weights: Weights, model: Model) -> StageOutput:
    from cluster.runtime.placement import plan_placement
    from cluster.runtime.session import connect
    from cluster.steering.actor import TOKEN_BUDGET

    folder, params = stage.folder(store), stage.params
    experts_stage = stage.inputs["experts"]
    sentences_stage = experts_stage.inputs["activations"].inputs["sentences"]
    concepts = params["concepts"] or sentences.read_concept_names(sentences_stage, store)
    units = [
        ConceptUnit(number, concepts[first : first + _CONCEPTS_IN_UNIT], TOKEN_BUDGET)
        for number, first in enumerate(range(0, len(concepts), _CONCEPTS_IN_UNIT))
    ]
    paths = experts_stage.read_manifest(store).paths(tables.EXPERTS.file)
    connect()

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        placement = plan_placement(weights, params["dtype"], model.shards, model.gpus_per_shard)
        _, words = tokenize_prompts(weights, model, params["prompts"], concepts)
        words_by_concept = dict(zip(concepts, words, strict=True))

        def submit(pipeline: SteeringPipeline, unit: ConceptUnit) -> Any:
            unit_words = [words_by_concept[name] for name in unit.concepts]
            experts = _read_experts(paths, unit.concepts)
            return pipeline.attribute(_make_request(unit, unit_words, experts))

        for unit, values_by_site in run_units(
            stage, weights, model, placement, list(missing), len(concepts), submit
        ):
            table = _make_table(stage, _read_experts(paths, unit.concepts), values_by_site)
            name = f"{tables.ATTRIBUTIONS.file}/{unit.name}.parquet"
            yield unit.name, [write_table(folder, name, table)], {}

    files, _ = run_missing_units(folder, {unit.name: unit for unit in units}, run)
    notes = []
    if MLP_ROUTER in experts_stage.inputs["activations"].params["sites"]:
        notes = [
            f"{MLP_ROUTER} is left out of attributions and steering: a router chooses its experts "
            "inside its module, so its logits cannot be clamped"
        ]
    return StageOutput(files, notes)


def _read_experts(paths: list[Path], concepts: list[str]) -> pa.Table:
    """Experts of some concepts at all poolings, sorted by site, except router logits: clamping them has
    no effect."""
    with duckdb.connect() as connection:
        sql.scan_parquet(connection, paths).create_view("experts")
        return connection.sql(
            "SELECT pooling, concept, layer, site, unit, on_p50 FROM experts "
            "WHERE list_contains($concepts, concept) AND site != $router "
            "ORDER BY layer, site, pooling, concept, unit",
            params={"concepts": concepts, "router": MLP_ROUTER},
        ).to_arrow_table()


def _split_by_site(experts: pa.Table) -> Iterator[tuple[tuple[int, str], pa.Table]]:
    """The rows of each site, which are contiguous."""
    layers, sites = (experts.column(name).to_pylist() for name in ("layer", "site"))
    for site_key, group in groupby(range(len(layers)), key=lambda row: (layers[row], sites[row])):
        rows = list(group)
        yield site_key, experts.slice(rows[0], len(rows))


def _make_request(
    unit: ConceptUnit, words: list[list[PromptedWord]], experts: pa.Table
) -> AttributionRequest:
    from cluster.steering.actor import AttributionRequest, AttributionTargets
    from cluster.steering.interventions import SteeredSequence

    n_halves = len(HALVES)
    sequences = [
        SteeredSequence(
            word.sequence, targets=word.targets, group=n_halves * concept + prompt % n_halves
        )
        for concept, prompted_words in enumerate(words)
        for prompt, word in enumerate(prompted_words)
    ]
    concept_names = pa.array(unit.concepts)
    targets = {}
    for site_key, rows in _split_by_site(experts):
        concepts = pc.index_in(rows.column("concept"), concept_names).to_numpy().astype(np.int64)
        on_values = rows.column("on_p50").to_numpy().astype(np.float64)
        units = rows.column("unit").to_numpy().astype(np.int64)
        groups = [n_halves * concepts + half for half in range(n_halves)]
        targets[site_key] = AttributionTargets(
            np.concatenate(groups), np.tile(units, n_halves), np.tile(on_values, n_halves)
        )
    return AttributionRequest(unit.name, sequences, targets, unit.budget)


def _make_table(stage: Stage, experts: pa.Table, values_by_site: dict[tuple[int, str], Any]) -> pa.Table:
    n_halves = len(HALVES)
    parts = [values_by_site[site_key].reshape(n_halves, -1) for site_key, _ in _split_by_site(experts)]
    by_half = np.concatenate(parts, axis=1) if parts else np.empty((n_halves, 0))
    sizes = [len(stage.params["prompts"][half::n_halves]) for half in range(n_halves)]
    columns = {
        name: pa.repeat(stage.params[name], experts.num_rows)
        for name in ("model", "revision", "concept_set")
    }
    columns |= {name: experts.column(name) for name in ("pooling", "concept", "layer", "site", "unit")}
    columns["attribution"] = np.average(by_half, axis=0, weights=sizes)
    return pa.table({**columns, **dict(zip(HALVES, by_half, strict=True))}, tables.ATTRIBUTIONS.schema)


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("attributions")
