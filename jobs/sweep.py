"""The sweep: runs all stages of all models. `python -m jobs.sweep FILE` runs one."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cluster.runtime.session import connect, root_cause, shutdown_on_exit, uses_external_cluster
from cluster.runtime.store_access import check_store_visible
from jobs import activations, experts
from jobs.engine import disk_budget
from jobs.engine.progress import print_line
from jobs.engine.scheduler import run_concurrently, run_sequentially
from jobs.engine.stage import Stage
from jobs.planner import Plan, plan_sweep
from storage.database import is_activation_file
from storage.errors import NeuralignError, UserError, WorkFailed, describe_error
from storage.store import layout
from storage.store.manifest import drop_files


@dataclass(frozen=True)
class SweepResult:
    """How many stages a run executed, the plan of the models that did not fail, and the other models'
    errors."""

    plan: Plan
    stages_run: int
    failures: list[str] = field(default_factory=list)


def make_missing_sentences(plan: Plan) -> Plan:
    """Harvest or generate the sentences that do not exist yet; return the complete plan."""
    if plan.is_complete:
        return plan
    missing = [concept_set for concept_set in plan.concept_sets if concept_set.concepts is None]
    run(replace(plan, concept_sets=missing))
    return plan_sweep(plan.sweep)


def run(plan: Plan, until: str | None = None) -> SweepResult:
    """Run the unfinished stages, up to those of the kind `until`.

    Stages of different models run concurrently. A model that fails does not stop the others; stages that
    compare models then compare the remaining ones.
    """
    store = layout.create_store(plan.sweep.store_path)
    stages_run, failed = 0, dict[str, str]()
    check_disk_space(plan, store, until)
    with shutdown_on_exit():
        stages = plan.stages_until(until)
        if uses_external_cluster() and not all(stage.is_done(store) for stage in stages):
            connect()
            check_store_visible(store)
        keep = plan.sweep.experts.keep_activations
        may_start = (lambda *_: True) if keep else partial(_may_start, _consumers_of_activations(stages))
        if len(plan.weights) > 1:
            results = run_concurrently(stages, store, may_start)
        else:
            results = run_sequentially(stages, store)
        for stage, ran, error in results:
            if error is not None:
                failed[_find_model(stage, error)] = f"{stage.name}: {_describe(error)}"
                print_line(f"{stage.name}: failed; continuing with the other models")
            if ran:
                stages_run += 1
                committed = stage.read_manifest(store)
                print_line(f"{stage.name}: done in {committed.seconds:.1f} s")
                for note in committed.notes:
                    print_line(f"  note: {note}")
            if not keep:
                _drop_activations(plan, stage, store)
        if not failed:
            return SweepResult(plan, stages_run)
        if len(failed) == len(plan.weights):
            raise WorkFailed("all models failed", list(failed.values()))
        rest = run(plan_sweep(plan.sweep, exclude=failed), until)
    return SweepResult(rest.plan, stages_run + rest.stages_run, [*failed.values(), *rest.failures])


def check_disk_space(plan: Plan, store: Path, until: str | None = None) -> None:
    """Raise UserError if the activations and scores that a sweep has still to write do not fit, up to
    the stages of the kind `until`."""
    free = disk_budget.free_bytes(store)
    if free is None:
        return
    weights = {weights.label: weights for weights in plan.weights}
    activation_bytes, score_bytes = list[int](), 0
    planned = {stage.fingerprint for stage in plan.stages_until(until)}
    for concept_set in plan.concept_sets:
        concepts = concept_set.concepts
        if concepts is None:
            continue
        for stage in concept_set.stages:
            if stage.fingerprint not in planned:
                continue
            if stage.kind == activations.KIND:
                model = weights[stage.label]
                remaining = disk_budget.remaining_units(stage, store)
                n_bytes = disk_budget.remaining_activation_bytes(stage, model, concepts, remaining)
                activation_bytes.append(n_bytes)
            elif stage.kind == experts.KIND and not stage.is_done(store):
                score_bytes += disk_budget.score_bytes(stage, weights[stage.label], concepts)
    if not plan.sweep.experts.keep_activations:
        activation_bytes = sorted(activation_bytes)[-disk_budget.MAX_MODELS_WITH_ACTIVATIONS :]
    needed = sum(activation_bytes) + score_bytes
    if needed > free:
        raise UserError(
            f"{store}: the activations need {needed / 1e9:,.2f} GB, but only {free / 1e9:,.2f} GB are "
            "free; free disk space, choose another store, or delete activations after scoring "
            "(experts.keep_activations: false)"
        )


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, NeuralignError) else describe_error(root_cause(error))


def _find_model(stage: Stage, error: BaseException) -> str:
    """The label of the model that a stage belongs to. Re-raises the error if there are several."""
    models = {ancestor.label for ancestor in stage.ancestors() if ancestor.kind == activations.KIND}
    if len(models) != 1:
        raise error
    return models.pop()


def _consumers_of_activations(stages: list[Stage]) -> dict[str, set[str]]:
    """For each activations stage, in order: the fingerprints of itself and its consumers."""
    consumers = {
        stage.fingerprint: {stage.fingerprint} for stage in stages if stage.kind == activations.KIND
    }
    for stage in stages:
        for parent in stage.inputs.values():
            if parent.fingerprint in consumers:
                consumers[parent.fingerprint].add(stage.fingerprint)
    return consumers


def _may_start(consumers: dict[str, set[str]], stage: Stage, ended: Set[str]) -> bool:
    """Whether a stage may start when activations are dropped after use: the next model waits while
    activations of two models are stored."""
    in_use = 0
    for activations_stage, users in consumers.items():
        if stage.fingerprint not in consumers or activations_stage == stage.fingerprint:
            return True
        in_use += not users <= ended
        if in_use == disk_budget.MAX_MODELS_WITH_ACTIVATIONS:
            return False
    return True


def _drop_activations(plan: Plan, ended: Stage, store: Path) -> None:
    """Delete the raw activations that a stage wrote or read, once all their consumers are done."""
    for stage in [ended, *ended.inputs.values()]:
        if stage.kind != activations.KIND:
            continue
        consumers = [user for user in plan.stages if stage in user.inputs.values()]
        if all(user.is_done(store) for user in [stage, *consumers]):
            freed = drop_files(
                stage.read_manifest(store), is_activation_file, "experts.keep_activations is false"
            )
            if freed:
                print_line(f"{stage.name}: {freed / 1e6:,.0f} MB of raw activations dropped")


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage()
