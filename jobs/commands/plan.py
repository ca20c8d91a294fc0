"""What a sweep would run: its grid of models and stages, with what is done and what is left, the bytes
on disk and the time, before it runs.

A stage counts as done here when its manifest is there; a run looks at its files too. Times are those of
the stages of this store, in proportion to the work.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.models.size import Size, size_of
from cluster.models.weights import load_config
from cluster.runtime.devices import visible_gpus
from jobs import activations, experts
from jobs.commands.cost_estimate import print_human, print_reckoning
from jobs.engine import disk_budget
from jobs.engine.duration import duration
from jobs.engine.stage import Stage
from jobs.planner import LATENTS, Plan, PlannedSet
from storage.store import layout, manifest
from storage.store.paths import entries, size

_MOST_ROWS = 60
_MEASURED_PER_KIND = 20
_ALL = "(all models)"


@dataclass(frozen=True)
class _Left:
    """What is left of a stage; `seconds` is None where no such stage has been measured."""

    stage: Stage
    done: bool
    units: int = 0
    bytes: int = 0
    seconds: float | None = 0.0


def print_outlook(console: Console, planned: Plan) -> None:
    """Print a row for each stage of a sweep; for each model where those are too many."""
    store = planned.sweep.store_path
    gpus = visible_gpus()
    devices = f"{gpus} GPUs" if gpus else f"{os.cpu_count()} CPU cores"
    sizes = "; ".join(_size(each, len(planned.sets)) for each in planned.sets)
    console.print(
        f"{escape(sizes)}, {len(planned.weights)} models; on {devices} here; into {escape(str(store))}",
        soft_wrap=True,
    )
    left = list(_left(planned, store))
    console.print(_by_stage(left, planned) if len(left) <= _MOST_ROWS else _by_model(left, planned))
    if not planned.is_whole:
        configs = {weights.model: load_config(weights) for weights in planned.weights}
        print_reckoning(console, planned.sweep, configs)
        return
    for each in planned.sets:
        for judgments in each.human:
            print_human(console, judgments, f"{each.name}: " if len(planned.sets) > 1 else "")
    kinds = Counter(each.stage.kind for each in left)
    done = Counter(each.stage.kind for each in left if each.done)
    counted = ", ".join(f"{kind} {done[kind]} of {kinds[kind]}" for kind in kinds)
    console.print(f"Stages done: {counted}.", soft_wrap=True)
    free = disk_budget.free(store)
    there = "" if free is None else f"; free there: {free / 1e9:,.0f} GB"
    to_write = sum(each.bytes for each in left)
    what = "Activations and scores" if planned.sweep.experts.scores else "Activations"
    console.print(f"{what} to write: {to_write / 1e9:,.2f} GB{there}.")
    if done != kinds:
        console.print(_time_left(left), soft_wrap=True)


def _by_stage(left: list[_Left], planned: Plan) -> Table:
    several = len(planned.sets) > 1
    table = _table("stage", *(["concepts"] if several else []), "for", "state")
    for each in left:
        units = each.stage.params.get("units")
        table.add_row(
            each.stage.kind,
            *([escape(each.stage.of_set)] if several else []),
            escape(each.stage.label),
            "done" if each.done else "to do",
            f"{each.units} of {units}" if units else "",
            _amount(each.bytes),
            _time([each]),
        )
    return table


def _by_model(left: list[_Left], planned: Plan) -> Table:
    """Rows for the revisions of each model, or for each model where those are too many too."""
    labels = {
        weights.label: weights.label if len(planned.weights) <= _MOST_ROWS else weights.model
        for weights in planned.weights
    }
    rows = defaultdict[str, list[_Left]](list)
    for each in left:
        of = _model(each.stage)
        rows[_ALL if of is None else labels[of]].append(each)
    table = _table("for", "stages done")
    for label, of_model in sorted(rows.items(), key=lambda row: row[0] == _ALL):
        done = sum(each.done for each in of_model)
        units = sum(each.units for each in of_model)
        table.add_row(
            escape(label),
            f"{done} of {len(of_model)}",
            str(units) if units else "",
            _amount(sum(each.bytes for each in of_model)),
            _time(of_model),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in ("units left", "to write", "time"):
        table.add_column(name, justify="right")
    return table


def _left(planned: Plan, store: Path) -> Iterator[_Left]:
    models = {weights.label: weights for weights in planned.weights}
    there = {kind: {path.name for path in entries(store / kind)} for kind in layout.KINDS}
    sizes = _Sizes(planned)
    rates = _rates(planned, store, sizes)
    for concepts, stage in [(each.concepts, stage) for each in planned.sets for stage in each.stages]:
        folder = stage.folder(store)
        started = folder.name in there[stage.kind]
        if started and size(folder / layout.SUCCESS) is not None:
            yield _Left(stage, done=True)
            continue
        share, units, bytes_left = 1.0, 0, 0
        if stage.kind == activations.KIND and concepts is not None:
            units = disk_budget.units_left(stage, store) if started else stage.params["units"]
            share = units / stage.params["units"]
            bytes_left = int(share * disk_budget.bytes_of(stage, models[stage.label], concepts))
        elif stage.kind == experts.KIND and concepts is not None:
            bytes_left = disk_budget.score_bytes(stage, models[stage.label], concepts)
        work, rate = sizes.work(stage.kind, stage.params), rates.get(stage.kind)
        seconds = None if work is None or rate is None else share * work * rate
        yield _Left(stage, False, units, bytes_left, seconds)


class _Sizes:
    """How much work a stage is, in what its time grows with."""

    def __init__(self, planned: Plan) -> None:
        self._sentences = {
            each.stages[0].concept_set: len(each.concepts.sentences)
            for each in planned.sets
            if each.concepts is not None
        }
        self._sites = planned.sweep.neurons.sites
        self._weights = {(each.model, each.revision): each for each in planned.weights}
        self._known: dict[str, Size] = {}

    def work(self, kind: str, params: Any) -> float | None:
        """Neurons x sentences for experts, and x the model's width for activations; 1 for others. None
        for a model or sentences that are not in the plan, and for latents."""
        if kind not in (activations.KIND, experts.KIND, experts.CONTROL_KIND):
            return 1.0
        weights = self._weights.get((params["model"], params["revision"]))
        latents = "dictionary" in params or str(params.get("control")).endswith(LATENTS)
        sentences = self._sentences.get(params["concept_set"])
        if latents or weights is None or sentences is None:
            return None
        if weights.model not in self._known:
            self._known[weights.model] = size_of(weights, self._sites)
        found = self._known[weights.model]
        neurons = float(found.neurons * sentences)
        return neurons * found.hidden if kind == activations.KIND else neurons


def _rates(planned: Plan, store: Path, sizes: _Sizes) -> dict[str, float]:
    """Seconds a unit of work of each kind of stage, as measured in this store."""
    seconds, work = defaultdict[str, float](float), defaultdict[str, float](float)
    for kind in {stage.kind for stage in planned.stages}:
        for done in _some_done(store, kind):
            amount = sizes.work(kind, done.params)
            if amount is not None:
                seconds[kind] += done.seconds
                work[kind] += amount
    return {kind: seconds[kind] / work[kind] for kind in work if work[kind]}


def _some_done(store: Path, kind: str) -> Iterator[manifest.Manifest]:
    found = 0
    for folder in manifest.stages(store, kind):
        done = manifest.read(folder)
        if done is not None:
            yield done
            found += 1
        if found == _MEASURED_PER_KIND:
            return


def _model(stage: Stage) -> str | None:
    """The label of the model that a stage is of; None where it is of several or none."""
    reads = {each.label for each in _near(stage) if each.kind == activations.KIND}
    return reads.pop() if len(reads) == 1 else None


def _near(stage: Stage) -> Iterator[Stage]:
    # what compares all models reads thousands of stages: two are enough to tell
    yield stage
    for each in list(stage.inputs.values())[:4]:
        yield from _near(each)


def _size(planned: PlannedSet, sets: int) -> str:
    name = f"{planned.name}: " if sets > 1 else ""
    if planned.concepts is None:
        (texts,) = planned.stages
        n_concepts, each = len(texts.params["concepts"]), texts.params["sentences"]
        return f"{name}{n_concepts} concepts, {each} sentences of each to be made"
    concepts = planned.concepts
    return f"{name}{len(concepts.concepts)} concepts, {len(concepts.sentences):,} sentences"


def _amount(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count else ""


def _time(left: Iterable[_Left]) -> str:
    to_do = [each.seconds for each in left if not each.done]
    known = [seconds for seconds in to_do if seconds is not None]
    return "" if not to_do else duration(sum(known)) if len(known) == len(to_do) else "?"


def _time_left(left: list[_Left]) -> str:
    to_do = [each.seconds for each in left if not each.done]
    known = [seconds for seconds in to_do if seconds is not None]
    if not known:
        return "How long it takes can be told when such stages have run into this store."
    measured = f"About {duration(sum(known))} at the rates measured in this store"
    others = len(to_do) - len(known)
    return f"{measured}, and {others} stages of which none was measured." if others else f"{measured}."
