"""Runs stages concurrently: each starts when its inputs are complete, one at a time per resource (see
`jobs.engine.stage.Resource`). So one model's forward passes run on the GPUs while another's experts
are scored on the CPUs and a third's are compared in the driver. Not `graphlib`: stages start in the
order of the plan, wait for a resource, and are skipped after a failure.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ray.exceptions import RayError

from cluster.runtime.session import SessionLost, check_session, is_lost, restart_if_lost
from jobs.engine.progress import print_line
from jobs.engine.stage import Resource, Stage, find_done, run_if_needed
from storage.errors import NeuralignError, StoreError, UserError

_SECONDS_TO_STOP = 20.0
_MAX_RESTARTS = 2
"""Times that a stage is run again because Ray on this machine ended."""


class StageResult(NamedTuple):
    """A stage that ended: `ran` if it was run rather than found done, `error` if it failed."""

    stage: Stage
    ran: bool
    error: BaseException | None = None


def run_sequentially(stages: Sequence[Stage], store: Path) -> Iterator[StageResult]:
    """Run the unfinished stages one after another, in this thread; the first failure is raised."""
    restarts = _Restarts()
    for stage in stages:
        while error := (result := _run(stage, store)).error:
            if not restarts.should_retry(stage, error):
                raise error
            restart_if_lost()
        yield result


def run_concurrently(stages: Sequence[Stage], store: Path) -> Iterator[StageResult]:
    """Run the unfinished stages in threads, each after its inputs.

    A failed stage is yielded with its error, and stages that depend on it are skipped; a store failure
    or a bug stops everything.
    """
    done, failed = set[str](), set[str]()
    waiting = []
    for stage in stages:
        # an input that runs may get other contents
        has_inputs = all(parent.fingerprint in done for parent in stage.inputs.values())
        if has_inputs and find_done(stage, store):
            done.add(stage.fingerprint)
            yield StageResult(stage, ran=False)
        else:
            waiting.append(stage)
    running, restarts = _RunningStages(store), _Restarts()
    try:
        while waiting or running:
            for stage in list(waiting):
                inputs = {parent.fingerprint for parent in stage.inputs.values()}
                if inputs & failed:
                    failed.add(stage.fingerprint)
                    waiting.remove(stage)
                elif inputs <= done and running.try_start(stage):
                    waiting.remove(stage)
            if running:
                result = running.wait_for_next()
                if restarts.should_retry(result.stage, result.error):
                    waiting.insert(0, result.stage)
                    continue
                (failed if result.error else done).add(result.stage.fingerprint)
                yield result
            elif waiting:
                raise RuntimeError(f"deadlock: {waiting[0].name} cannot start")
    finally:
        running.interrupt()


class _Restarts:
    """Decides whether a stage is run again, from its committed work, after Ray on this machine ended."""

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def should_retry(self, stage: Stage, error: BaseException | None) -> bool:
        """Whether to run a failed stage again; if so, the user is told."""
        self._counts[stage.fingerprint] += 1
        if not isinstance(error, SessionLost) or self._counts[stage.fingerprint] > _MAX_RESTARTS:
            return False
        reason, _, _ = str(error).partition(";")
        print_line(f"{stage.name}: {reason}; starting Ray again to go on")
        return True


def _run(stage: Stage, store: Path) -> StageResult:
    """Run a stage if it is unfinished; any error is an outcome, and SessionLost if Ray has ended."""
    try:
        try:
            return StageResult(stage, run_if_needed(stage, store))
        except Exception as error:
            # the loss of the session causes errors of many types
            if not isinstance(error, UserError):
                check_session()
            raise
    except BaseException as error:
        return StageResult(stage, ran=False, error=error)


class _RunningStages:
    """Threads that run stages, and the resources that they use."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._results: queue.SimpleQueue[StageResult] = queue.SimpleQueue()
        self._threads: dict[str, tuple[threading.Thread, set[Resource]]] = {}

    def __bool__(self) -> bool:
        return bool(self._threads)

    def try_start(self, stage: Stage) -> bool:
        """Start a stage unless a resource that it needs is busy; return whether it was started."""
        if is_lost():
            # the other stages may still be using the session
            if self._threads:
                return False
            restart_if_lost()
        if self._is_busy(_available_resources({stage.resource})):
            return False
        # inputs that were dropped are recomputed by the stage that reads them
        recomputed = (
            parent for parent in stage.inputs.values() if parent.read_manifest(self._store).dropped
        )
        needed = _available_resources({stage.resource, *(parent.resource for parent in recomputed)})
        if self._is_busy(needed):
            return False
        thread = threading.Thread(target=self._run, args=(stage,), name=stage.name, daemon=True)
        self._threads[stage.fingerprint] = (thread, needed)
        thread.start()
        return True

    def wait_for_next(self) -> StageResult:
        """Wait until a stage ends. Raises errors that affect more than this stage."""
        result = self._results.get()
        self._threads.pop(result.stage.fingerprint)
        error = result.error
        affects_all = isinstance(error, StoreError) or not isinstance(error, NeuralignError | RayError)
        if error is not None and affects_all:
            raise error
        return result

    def interrupt(self) -> None:
        """Interrupt the running stages, as Ctrl-C interrupts the main thread, and wait for them."""
        for thread, _ in self._threads.values():
            thread_id = ctypes.c_ulong(thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(KeyboardInterrupt))
        for thread, _ in self._threads.values():
            thread.join(_SECONDS_TO_STOP)

    def _is_busy(self, resources: set[Resource]) -> bool:
        return any(resources & in_use for _, in_use in self._threads.values())

    def _run(self, stage: Stage) -> None:
        self._results.put(_run(stage, self._store))


def _available_resources(resources: set[Resource]) -> set[Resource]:
    """The resources, with CPUs instead of GPUs on a cluster without GPUs."""
    if resources == {Resource.DRIVER}:
        return resources
    from cluster.runtime.session import cluster_gpus, connect

    connect()
    if cluster_gpus():
        return resources
    return {Resource.CPUS if resource is Resource.GPUS else resource for resource in resources}
