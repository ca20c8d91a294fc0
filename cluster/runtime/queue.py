"""Fault-tolerant work queue: every work unit either completes exactly once or is reported as failed.

A work unit is retried with exponential backoff when its worker dies or raises; after MAX_ATTEMPTS it is
recorded as failed and the others continue. NeuralignError is not retried, and UserError stops the queue.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.memory_errors import is_out_of_memory
from cluster.runtime.session import (
    check_session,
    describe_cluster,
    format_resources,
    is_lost,
    root_cause,
)
from storage.errors import NeuralignError, UserError, WorkFailed, describe_error

MAX_ATTEMPTS = 3
_BACKOFF_SECONDS = 1.0
_POLL_SECONDS = 0.2
_MAX_IN_FLIGHT_PER_WORKER = 2
_WORKER_LOST_ERRORS = (
    RayActorError,
    WorkerCrashedError,
    OutOfMemoryError,
    NodeDiedError,
    ObjectLostError,
)
"""Loss of a process, of its node, or of an object stored on the node. Of a process that the kernel
killed for memory, only the end is known; OutOfMemoryError is that Ray killed it."""

UnitT = TypeVar("UnitT")
ResultT = TypeVar("ResultT")


class Worker:
    """A worker of the queue: one actor per tuple of arguments, packed on one node if they fit.

    `resources` are those of each actor; `placed` is a reference that resolves once all are placed.
    """

    def __init__(
        self, actor_class: Any, arguments: Sequence[Any], resources: dict[str, float], **options: Any
    ) -> None:
        self.resource_request = f"{len(arguments)} x {format_resources(resources)}"
        self._group = placement_group([resources] * len(arguments), strategy="PACK")
        self.actors: list[Any] = [
            actor_class.options(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
                **options,
            ).remote(*actor_arguments)
            for index, actor_arguments in enumerate(arguments)
        ]
        self.placed = self._group.ready()

    def stop(self) -> None:
        """Kill the actors and release their resources."""
        for actor in self.actors:
            ray.kill(actor)
        remove_placement_group(self._group)


@dataclass(frozen=True, eq=False)
class _Attempt(Generic[UnitT]):
    work_unit: UnitT
    number: int = 1
    not_before: float = 0.0


@dataclass(eq=False)
class _WorkerState:
    worker: Worker
    is_placed: bool = False
    in_flight: list[_Attempt[Any]] = field(default_factory=list)
    suspect: _Attempt[Any] | None = None


@dataclass(eq=False)
class WorkQueue(Generic[UnitT, ResultT]):
    """Runs work units on workers.

    `submit(worker, work_unit)` returns a reference to the result, `describe(work_unit)` names the unit
    in errors, and `shrink(work_unit)` returns the unit to retry when memory ran out, and
    `shrink_after_loss(work_unit)` when it lost its worker.
    """

    start_worker: Callable[[], Worker]
    submit: Callable[[Any, UnitT], Any]
    describe: Callable[[UnitT], str]
    shrink: Callable[[UnitT], UnitT]
    shrink_after_loss: Callable[[UnitT], UnitT] = lambda work_unit: work_unit
    _pending: deque[_Attempt[UnitT]] = field(default_factory=deque, init=False)
    _workers: list[_WorkerState] = field(default_factory=list, init=False)
    _in_flight: dict[Any, tuple[_Attempt[UnitT], _WorkerState]] = field(default_factory=dict, init=False)
    _failures: list[str] = field(default_factory=list, init=False)

    def add(self, work_unit: UnitT) -> None:
        """Add a work unit while `run` yields results."""
        self._pending.append(_Attempt(work_unit))

    def run(
        self, work_units: Sequence[UnitT], n_workers: int, wait_seconds: float = 60.0
    ) -> Iterator[tuple[UnitT, ResultT]]:
        """Yield (work_unit, result) as work units complete, in any order.

        Each worker has at most two units in flight, so memory stays constant. Workers that are not yet
        placed, initially or after a failure, receive none.

        Raises:
            UserError: immediately, if a work unit raises it or no worker is placed for `wait_seconds`.
            SessionLost: immediately, if Ray on this machine has ended.
            WorkFailed: at the end, if any work units failed.
        """
        self._pending.extend(_Attempt(work_unit) for work_unit in work_units)
        self._workers = [_WorkerState(self.start_worker()) for _ in range(n_workers)]
        last_placed = time.monotonic()
        try:
            while self._pending or self._in_flight:
                check_session()
                if self._any_placed():
                    last_placed = time.monotonic()
                elif time.monotonic() > last_placed + wait_seconds:
                    raise _no_resources_error(self._workers[0].worker.resource_request, wait_seconds)
                self._dispatch()
                if not self._in_flight:
                    time.sleep(_POLL_SECONDS)
                    continue
                done, _ = ray.wait(list(self._in_flight), timeout=_POLL_SECONDS)
                for reference in done:
                    work_unit = self._in_flight[reference][0].work_unit
                    if self._succeeded(reference):
                        yield work_unit, ray.get(reference)
        finally:
            # requests to a session that has ended are not answered
            for state in [] if is_lost() else self._workers:
                state.worker.stop()
        if self._failures:
            raise WorkFailed(f"{len(self._failures)} of {len(work_units)} units failed", self._failures)

    def _any_placed(self) -> bool:
        for state in self._workers:
            if not state.is_placed:
                state.is_placed = bool(ray.wait([state.worker.placed], timeout=0)[0])
        return any(state.is_placed for state in self._workers)

    def _dispatch(self) -> None:
        placed = [state for state in self._workers if state.is_placed]
        for _ in range(len(self._pending)):
            state = min(placed, key=lambda candidate: len(candidate.in_flight), default=None)
            if state is None or len(state.in_flight) >= _MAX_IN_FLIGHT_PER_WORKER:
                return
            attempt = self._pending.popleft()
            if attempt.not_before > time.monotonic():
                self._pending.append(attempt)
                continue
            state.in_flight.append(attempt)
            self._in_flight[self.submit(state.worker, attempt.work_unit)] = (attempt, state)

    def _succeeded(self, reference: Any) -> bool:
        """Process a completed reference; on failure, retry its work unit or record it as failed."""
        attempt, state = self._in_flight.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            cause = root_cause(error)
            if isinstance(cause, UserError):
                raise cause from error
            if isinstance(cause, _WORKER_LOST_ERRORS):
                self._replace_lost_worker(state)
                if attempt is not state.suspect:
                    # It was queued behind the unit that killed the worker.
                    self._pending.append(attempt)
                    return False
            self._retry_or_fail(attempt, cause)
            return False
        finally:
            if state.suspect is None:
                state.in_flight.remove(attempt)
        return True

    def _replace_lost_worker(self, state: _WorkerState) -> None:
        """Replace a lost worker, and suspect its oldest work unit of killing it."""
        if state.suspect is None:
            state.suspect = state.in_flight[0]
            state.worker.stop()
            self._workers[self._workers.index(state)] = _WorkerState(self.start_worker())

    def _retry_or_fail(self, attempt: _Attempt[UnitT], cause: BaseException) -> None:
        # Errors that neuralign itself raises are deterministic.
        if attempt.number < MAX_ATTEMPTS and not isinstance(cause, NeuralignError):
            pause = _BACKOFF_SECONDS * 2 ** (attempt.number - 1)
            work_unit = attempt.work_unit
            if is_out_of_memory(cause):
                work_unit = self.shrink(work_unit)
            elif isinstance(cause, _WORKER_LOST_ERRORS):
                work_unit = self.shrink_after_loss(work_unit)
            self._pending.append(_Attempt(work_unit, attempt.number + 1, time.monotonic() + pause))
        else:
            count = f" ({attempt.number} attempts)" if attempt.number > 1 else ""
            self._failures.append(f"{self.describe(attempt.work_unit)}: {describe_error(cause)}{count}")


def _no_resources_error(resource_request: str, seconds: float) -> UserError:
    free = ray.available_resources()
    return UserError(
        f"timed out after {seconds:.0f} s waiting for {resource_request}: the cluster has "
        f"{describe_cluster()}, of which {free.get('CPU', 0):.0f} and {free.get('GPU', 0):.0f} are free"
    )
