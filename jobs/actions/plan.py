"""`neuralign plan`: stages that are done and remaining, with bytes on disk and time.

A stage counts as done if its manifest exists; a run checks its files too. Times are extrapolated from
finished stages of the same kind in this store, with activations that were kept or not as in this sweep.
"""

from __future__ import annotations

import gc
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from cluster.models.size import ModelSize, measure_size, model_size
from cluster.models.weights import load_config
from cluster.runtime.devices import count_gpus
from jobs import activations, experts
from jobs.actions.cost_estimate import print_cost_estimate, print_judgment_notes, read_configs
from jobs.actions.model_checks import check_models
from jobs.actions.model_sites import print_sites
from jobs.actions.output import stdout_console, text_table
from jobs.actions.shard_plan import print_shards
from jobs.config.loader import read_sweep
from jobs.engine import disk_budget
from jobs.engine.keeping import are_kept
from jobs.engine.progress import format_duration
from jobs.engine.stage import Stage
from jobs.planner import LATENTS_SUFFIX, MAX_AUROC_BYTES, Plan, PlannedConceptSet, plan_sweep
from storage.errors import UserError
from storage.store import layout, manifest
from storage.store.paths import file_size, list_dir

_MAX_ROWS = 60
_MAX_TIMED_PER_KIND = 20
_ALL_MODELS = "(all models)"
_REMAINING_COLUMNS = ("units left", "to write", "time")


@dataclass(frozen=True)
class RemainingStage:
    """What remains of a stage; `seconds` is None if the store has no timing data for its kind."""

    stage: Stage
    is_done: bool
    work_units: int = 0
    total_units: int = 0
    bytes: int = 0
    temporary_bytes: int = 0
    seconds: float | None = 0.0


def print_plan(file: Path) -> None:
    """Print what a sweep would run; if it cannot be planned on this machine, its cost."""
    console, sweep = stdout_console(), read_sweep(file)
    # the millions of objects of a large plan all stay alive; scanning them takes a third of the time
    gc.disable()
    try:
        planned = plan_sweep(sweep)
        check_models(planned)
    except UserError as error:
        if not all(model.config for model in sweep.models):
            raise
        console.print(f"Cannot run here: {error}", soft_wrap=True)
        configs, selection = read_configs(sweep), sweep.neurons.sites
        print_sites(console, {name: measure_size(configs[name], selection) for name in configs})
        print_cost_estimate(console, sweep, configs)
    else:
        _print_stages(console, planned)
    finally:
        gc.enable()


def _print_stages(console: Console, planned: Plan) -> None:
    """Print one row per stage, or per model if there are too many."""
    store = planned.sweep.store_path
    n_gpus = count_gpus()
    devices = f"{n_gpus} GPUs" if n_gpus else f"{os.cpu_count()} CPU cores"
    has_several_sets = len(planned.concept_sets) > 1
    sizes = "; ".join(
        _describe_set(concept_set, has_several_sets) for concept_set in planned.concept_sets
    )
    console.print(
        f"{sizes}, {len(planned.weights)} models; {devices} on this machine; results in {store}",
        soft_wrap=True,
    )
    stages = list(remaining_stages(planned, store))
    is_short = len(stages) <= _MAX_ROWS
    console.print(_stage_table(stages, has_several_sets) if is_short else _model_table(stages, planned))
    if planned.is_complete:
        console.print(str(planned.keeping), soft_wrap=True)
        console.print(_describe_scores(planned), soft_wrap=True)
        print_shards(console, planned)
    models = {weights.model: weights for weights in planned.weights}
    selection = planned.sweep.neurons.sites
    print_sites(console, {name: model_size(weights, selection) for name, weights in models.items()})
    if not planned.is_complete:
        configs = {weights.model: load_config(weights) for weights in planned.weights}
        print_cost_estimate(console, planned.sweep, configs, planned.keeping)
        return
    for concept_set in planned.concept_sets:
        for judgments in concept_set.judgments:
            prefix = f"{concept_set.name}: " if has_several_sets else ""
            print_judgment_notes(console, judgments, planned.sweep.agreement, prefix)
    done = Counter(item.stage.kind for item in stages if item.is_done)
    kinds = Counter(item.stage.kind for item in stages)
    counts = ", ".join(f"{kind} {done[kind]} of {count}" for kind, count in kinds.items())
    console.print(f"Stages done: {counts}.", soft_wrap=True)
    free = disk_budget.free_bytes(store)
    suffix = "" if free is None else f"; free disk space: {free / 1e9:,.0f} GB"
    n_activations = sum(item.bytes for item in stages if item.stage.kind == activations.KIND)
    n_scores = sum(item.bytes for item in stages) - n_activations
    sizes = f"{n_activations / 1e9:,.2f} GB, scores: {n_scores / 1e9:,.2f} GB"
    console.print(f"Activations to write: {sizes}{suffix}.")
    # Stages that read models run one after another.
    if temporary := max((item.temporary_bytes for item in stages), default=0):
        console.print(
            f"Hidden states of one model at a time: up to {temporary / 1e9:,.2f} GB, on disk or, beside "
            "a GPU, in host memory; none if the model fits one block of layers.",
            soft_wrap=True,
        )
    seconds, n_unknown = _total_time(stages)
    if seconds is not None:
        unknown = f", plus {n_unknown} stages without timing data" if n_unknown else ""
        time = f"About {format_duration(seconds)} at the rates measured in this store{unknown}."
        console.print(time, soft_wrap=True)
    elif n_unknown:
        console.print("No time estimate: no such stage has run in this store yet.")


def _describe_scores(planned: Plan) -> str:
    """Which scores of all neurons are kept, and why."""
    setting = planned.sweep.experts.scores
    if setting != "auto":
        kept = (
            "APs and AUROCs of all neurons are kept" if setting else "scores of all neurons are not kept"
        )
        return f"The {kept} (experts.scores: {str(setting).lower()})."
    stages = planned.stages_of_kind(experts.KIND)
    without = dict.fromkeys(stage.params["model"] for stage in stages if not stage.params["scores"])
    if not without:
        return "The AUROCs of all neurons are kept (experts.scores: auto)."
    limit = f"a model's take more than {MAX_AUROC_BYTES / 1e6:.0f} MB; experts.scores: auto"
    return (
        "The AUROCs of all neurons are not kept, and concepts not compared by them, for "
        f"{', '.join(without)} ({limit})."
    )


def _stage_table(stages: list[RemainingStage], has_several_sets: bool) -> Table:
    rows = [
        (
            item.stage.kind,
            *([item.stage.concept_set_name] if has_several_sets else []),
            item.stage.label,
            "done" if item.is_done else "to do",
            f"{item.work_units} of {item.total_units}" if item.total_units else "",
            *_format_cost([item]),
        )
        for item in stages
    ]
    names = ("stage", *(["concepts"] if has_several_sets else []), "for", "state", *_REMAINING_COLUMNS)
    return text_table("l" * (len(names) - 3) + "rrr", names, rows)


def _model_table(stages: list[RemainingStage], planned: Plan) -> Table:
    """One row per revision, or per model if those are too many as well."""
    labels = {
        weights.label: weights.label if len(planned.weights) <= _MAX_ROWS else weights.model
        for weights in planned.weights
    }
    rows = defaultdict[str, list[RemainingStage]](list)
    for item in stages:
        model = _find_model(item.stage)
        rows[_ALL_MODELS if model is None else labels[model]].append(item)
    cells = [
        (
            label,
            f"{sum(item.is_done for item in items)} of {len(items)}",
            sum(item.work_units for item in items) or "",
            *_format_cost(items),
        )
        for label, items in sorted(rows.items(), key=lambda row: row[0] == _ALL_MODELS)
    ]
    return text_table("llrrr", ("for", "stages done", *_REMAINING_COLUMNS), cells)


def remaining_stages(planned: Plan, store: Path) -> Iterator[RemainingStage]:
    """What remains of every stage of a plan."""
    weights = {weights.label: weights for weights in planned.weights}
    folders = {kind: {path.name for path in list_dir(store / kind)} for kind in layout.STAGE_KINDS}
    estimator = _WorkEstimator(planned)
    rates = _measure_rates(planned, store, estimator)
    for concept_set in planned.concept_sets:
        concepts = concept_set.concepts
        n_tokens = 0 if concepts is None else disk_budget.estimate_tokens(concepts)
        for stage in concept_set.stages:
            folder = stage.folder(store)
            is_started = folder.name in folders[stage.kind]
            if is_started and file_size(folder / layout.SUCCESS) is not None:
                total = stage.params.get("units", 0)
                yield RemainingStage(stage, is_done=True, total_units=total)
                continue
            share, work_units, total, n_bytes, temporary = 1.0, 0, 0, 0, 0
            if stage.kind == activations.KIND and concepts is not None:
                model = weights[stage.label]
                total = work_units = disk_budget.count_units(stage, model)
                if is_started:
                    work_units = disk_budget.remaining_units(stage, model, store)
                share = work_units / total
                n_bytes = disk_budget.remaining_activation_bytes(stage, model, concepts, work_units)
                temporary = disk_budget.temporary_bytes(stage, model, n_tokens) if work_units else 0
            elif stage.kind in (experts.KIND, experts.CONTROL_KIND) and concepts is not None:
                model = weights[stage.inputs["activations"].label]
                n_bytes = disk_budget.score_bytes(stage, model, concepts)
            work, rate = estimator.work(stage.kind, stage.params), rates.get(_rate_key(stage))
            seconds = None if work is None or rate is None else share * work * rate
            yield RemainingStage(stage, False, work_units, total, n_bytes, temporary, seconds)


class _WorkEstimator:
    """Work of stages, in units that their run time is proportional to."""

    def __init__(self, planned: Plan) -> None:
        self._n_sentences = {
            concept_set.stages[0].concept_set: len(concept_set.concepts.sentences)
            for concept_set in planned.concept_sets
            if concept_set.concepts is not None
        }
        self._sites = planned.sweep.neurons.sites
        self._weights = {(weights.model, weights.revision): weights for weights in planned.weights}
        self._sizes: dict[str, ModelSize] = {}

    def work(self, kind: str, params: Any) -> float | None:
        """Work of a stage: a forward pass for activations, values for experts, 1 for other kinds.

        None for a model or sentences that the plan does not have, and for sparse autoencoders.
        """
        if kind not in (activations.KIND, experts.KIND, experts.CONTROL_KIND):
            return 1.0
        weights = self._weights.get((params["model"], params["revision"]))
        is_sae = "dictionary" in params or str(params.get("control")).endswith(LATENTS_SUFFIX)
        n_sentences = self._n_sentences.get(params["concept_set"])
        if is_sae or weights is None or n_sentences is None:
            return None
        if weights.model not in self._sizes:
            self._sizes[weights.model] = model_size(weights, self._sites)
        size = self._sizes[weights.model]
        n_values = float(size.neurons * n_sentences)
        return n_values * size.hidden_size if kind == activations.KIND else n_values


class _RateKey(NamedTuple):
    """What stages have in common whose times are extrapolated from each other: also whether the
    activations that they make or read are kept. If not, they are scored where they are made, and their
    rows are copied."""

    kind: str
    is_kept: bool


def _rate_key(stage: Stage) -> _RateKey:
    activations_stage = stage.inputs.get(activations.KIND, stage)
    return _RateKey(stage.kind, are_kept(activations_stage.params))


def _measure_rates(planned: Plan, store: Path, estimator: _WorkEstimator) -> dict[_RateKey, float]:
    """Seconds per unit of work, from the finished stages of this store."""
    seconds, work = defaultdict[_RateKey, float](float), defaultdict[_RateKey, float](float)
    for kind in {stage.kind for stage in planned.stages}:
        for done in islice(manifest.completed(store, kind), _MAX_TIMED_PER_KIND):
            amount = estimator.work(kind, done.params)
            folder = done.inputs.get(activations.KIND)
            made_of = manifest.read(store / activations.KIND / folder) if folder else done
            if amount is not None and made_of is not None:
                key = _RateKey(kind, are_kept(made_of.params))
                seconds[key] += done.seconds
                work[key] += amount
    return {key: seconds[key] / work[key] for key in work if work[key]}


def _find_model(stage: Stage) -> str | None:
    """The label of a stage's model; None if it has several or none."""
    labels = {item.label for item in _sample_ancestors(stage) if item.kind == activations.KIND}
    return labels.pop() if len(labels) == 1 else None


def _sample_ancestors(stage: Stage) -> Iterator[Stage]:
    # a stage that compares all models has thousands of inputs; two models are enough to tell
    yield stage
    for parent in list(stage.inputs.values())[:4]:
        yield from _sample_ancestors(parent)


def _describe_set(planned: PlannedConceptSet, with_name: bool) -> str:
    prefix = f"{planned.name}: " if with_name else ""
    if planned.concepts is None:
        (stage,) = planned.stages
        n_concepts, per_concept = len(stage.params["concepts"]), stage.params["sentences"]
        return f"{prefix}{n_concepts} concepts, {per_concept} sentences of each to be made"
    concepts = planned.concepts
    return f"{prefix}{len(concepts.concepts)} concepts, {len(concepts.sentences):,} sentences"


def _total_time(stages: list[RemainingStage]) -> tuple[float | None, int]:
    """Seconds of the remaining stages with timing data, None if there are none; the number of others."""
    remaining = [item.seconds for item in stages if not item.is_done]
    estimates = [seconds for seconds in remaining if seconds is not None]
    return sum(estimates) if estimates else None, len(remaining) - len(estimates)


def _format_cost(stages: list[RemainingStage]) -> tuple[str, str]:
    """Bytes to write and time, for a table."""
    n_bytes, (seconds, n_unknown) = sum(item.bytes for item in stages), _total_time(stages)
    time = "?" if n_unknown else "" if seconds is None else format_duration(seconds)
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes else "", time
