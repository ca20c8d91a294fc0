"""The sweep: runs all stages of all models. `python -m jobs.sweep FILE` runs one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.runtime.session import connect, root_cause, shutdown_on_exit, uses_external_cluster
from cluster.runtime.store_access import check_store_visible
from jobs import activations, experts
from jobs.device_params import runs_on_gpus
from jobs.engine import disk_budget
from jobs.engine.progress import print_line
from jobs.engine.scheduler import run_concurrently, run_sequentially
from jobs.engine.stage import Stage
from jobs.planner import Plan, plan_sweep
from storage.errors import NeuralignError, UserError, WorkFailed, describe_error
from storage.store import layout


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
        if len(plan.weights) > 1:
            results = run_concurrently(stages, store)
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
    models = {weights.label: (model, weights) for model, weights in plan.models}
    activation_bytes = score_bytes = temporary_bytes = 0
    planned = {stage.fingerprint for stage in plan.stages_until(until)}
    for concept_set in plan.concept_sets:
        concepts = concept_set.concepts
        if concepts is None:
            continue
        n_tokens = disk_budget.estimate_tokens(concepts)
        for stage in concept_set.stages:
            if stage.fingerprint not in planned:
                continue
            if stage.kind == activations.KIND:
                model, weights = models[stage.label]
                remaining = disk_budget.remaining_units(stage, weights, store)
                activation_bytes += disk_budget.remaining_activation_bytes(
                    stage, weights, concepts, remaining
                )
                # Beside a GPU, host memory may have them. One stage at a time has some.
                if remaining > 1 and not runs_on_gpus(model):
                    hidden_bytes = disk_budget.temporary_bytes(stage, weights, n_tokens)
                    temporary_bytes = max(temporary_bytes, hidden_bytes)
            elif stage.kind in (experts.KIND, experts.CONTROL_KIND) and not stage.is_done(store):
                _, weights = models[stage.inputs["activations"].label]
                score_bytes += disk_budget.score_bytes(stage, weights, concepts)
    needed = activation_bytes + score_bytes + temporary_bytes
    if needed > free:
        raise UserError(
            f"{store}: the activations, hidden states and scores need {needed / 1e9:,.2f} GB, but only "
            f"{free / 1e9:,.2f} GB are free; free disk space, choose another store, or do not keep "
            "activations (experts.keep_activations: false)"
        )


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, NeuralignError) else describe_error(root_cause(error))


def _find_model(stage: Stage, error: BaseException) -> str:
    """The label of the model that a stage belongs to. Re-raises the error if there are several."""
    models = {ancestor.label for ancestor in stage.ancestors() if ancestor.kind == activations.KIND}
    if len(models) != 1:
        raise error
    return models.pop()


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage()
