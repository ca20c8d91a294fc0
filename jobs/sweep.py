"""The sweep: every stage of every model, in order. `python -m jobs.sweep FILE` runs one."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cluster.runtime.session import connect, disconnected_after, is_shared
from cluster.runtime.store_access import check_reach
from jobs import activations
from jobs.engine import disk_budget
from jobs.engine.progress import say
from jobs.engine.scheduler import in_order, side_by_side
from jobs.engine.stage import Stage
from jobs.planner import Plan, plan
from storage.database import is_activations
from storage.errors import WorkFailed
from storage.store import layout
from storage.store.manifest import drop


@dataclass(frozen=True)
class Done:
    """What a run came to: how many stages it carried out, the plan of the models that did not fail, and
    what stopped the others."""

    planned: Plan
    ran: int
    failures: list[str] = field(default_factory=list)


def with_sentences(planned: Plan) -> Plan:
    """The whole plan, after the sentences that were still to be made are made."""
    if planned.is_whole:
        return planned
    to_make = [each for each in planned.sets if each.concepts is None]
    run(replace(planned, sets=to_make))
    return plan(planned.sweep)


def run(planned: Plan, until: str | None = None) -> Done:
    """Run the stages that are not done, up to those of the kind `until`.

    Stages of different models run side by side, and a model that fails does not stop the others: what
    compares models then compares those that are left.
    """
    store = layout.create(planned.sweep.store_path)
    ran, failed = 0, dict[str, str]()
    disk_budget.check(planned, store)
    with disconnected_after():
        stages = planned.until(until)
        if is_shared() and not all(stage.is_done(store) for stage in stages):
            connect()
            check_reach(store)
        several = len(planned.weights) > 1
        keep = planned.sweep.experts.keep_activations
        may_start = (lambda *_: True) if keep else partial(_may_start, _with_readers(stages))
        overlapped = partial(side_by_side, may_start=may_start)
        for stage, has_run, error in (overlapped if several else in_order)(stages, store):
            if error is not None:
                failed[_model_of(stage, error)] = f"{stage.name}: {error}"
                say(f"{stage.name}: failed; the other models go on")
            if has_run:
                ran += 1
                result = stage.result(store)
                say(f"{stage.name}: done in {result.seconds:.1f} s")
                for note in result.notes:
                    say(f"  note: {note}")
            if not keep:
                _drop_activations(planned, stage, store)
        if not failed:
            return Done(planned, ran)
        if len(failed) == len(planned.weights):
            raise WorkFailed("all models failed", list(failed.values()))
        rest = run(plan(planned.sweep, without=failed), until)
    return Done(rest.planned, ran + rest.ran, [*failed.values(), *rest.failures])


def _model_of(stage: Stage, error: Exception) -> str:
    """The label of the one model that a stage is of. Raises its error where it is of several."""
    models = {each.label for each in stage.ancestors() if each.kind == activations.KIND}
    if len(models) != 1:
        raise error
    return models.pop()


def _with_readers(stages: list[Stage]) -> dict[str, set[str]]:
    """Fingerprints of the stages of activations, in order, each with its own and its readers'."""
    found = {each.fingerprint: {each.fingerprint} for each in stages if each.kind == activations.KIND}
    for stage in stages:
        for read in stage.inputs.values():
            if read.fingerprint in found:
                found[read.fingerprint].add(stage.fingerprint)
    return found


def _may_start(with_readers: dict[str, set[str]], stage: Stage, ended: Set[str]) -> bool:
    """Where activations are dropped once the stages of a run have read them, those of two models are
    there at a time; the next model's wait."""
    unread = 0
    for read, needed in with_readers.items():
        if stage.fingerprint not in with_readers or read == stage.fingerprint:
            return True
        unread += not needed <= ended
        if unread == disk_budget.MODELS_AT_ONCE:
            return False
    return True


def _drop_activations(planned: Plan, ended: Stage, store: Path) -> None:
    """Delete the raw activations that a stage wrote or read, if all have read them that would."""
    for read in [ended, *ended.inputs.values()]:
        if read.kind != activations.KIND:
            continue
        if all(stage.is_done(store) for stage in [read, *planned.readers(read)]):
            freed = drop(read.result(store), is_activations, "experts.keep_activations is false")
            if freed:
                say(f"{read.name}: {freed / 1e6:,.0f} MB of raw activations dropped")


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file()
