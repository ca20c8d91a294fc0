"""Runs stages concurrently: each starts when its inputs are complete, one at a time per resource (see
`jobs.engine.stage.Resource`). So one model's forward passes run on the GPUs while another's experts
are scored on the CPUs and a third's are compared in the driver. Not `graphlib`: stages start in the
order of the plan, wait for a resource, and are skipped after a failure.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ray.exceptions import RayError

from cluster.runtime.session import check_session
from jobs.engine.stage import Resource, Stage, find_done, run_if_needed
from storage.errors import NeuralignError, SessionLost, StoreError, UserError

_SECONDS_TO_STOP = 20.0


class StageResult(NamedTuple):
    """A stage that ended: `ran` if it was run rather than found done, `error` if it failed."""

    stage: Stage
    ran: bool
    error: BaseException | None = None


def run_sequentially(stages: Sequence[Stage], store: Path) -> Iterator[StageResult]:
    """Run the unfinished stages one after another, in this thread; the first failure is raised."""
    for stage in stages:
        result = _run(stage, store)
        if result.error is not None:
            raise result.error
        yield result


def run_concurrently(stages: Sequence[Stage], store: Path) -> Iterator[StageResult]:
    """Run the unfinished stages in threads, each after its inputs.

    A failed stage is yielded with its error, and stages that depend on it are skipped; a store failure,
    the loss of Ray on this machine or a bug stops everything.
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
    running = _RunningStages(store)
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
                (failed if result.error else done).add(result.stage.fingerprint)
                yield result
            elif waiting:
                raise RuntimeError(f"deadlock: {waiting[0].name} cannot start")
    finally:
        running.interrupt()


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
        affects_all = isinstance(error, StoreError | SessionLost) or not isinstance(
            error, NeuralignError | RayError
        )
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
