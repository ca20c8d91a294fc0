"""The work queue: every unit is done once for good, whatever dies on the way.

A unit is tried again, after a growing pause, when its worker dies or it raises; after some attempts
it is set aside with its error and the rest goes on. What neuralign itself finds wrong is not tried
again, and what a user has to mend (UserError) stops the work.
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
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from cluster.runtime.session import raised
from storage.errors import NeuralignError, UserError, WorkFailed

ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
_POLL_SECONDS = 0.2
_HELD_PER_WORKER = 2
_DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
"""What a worker's death looks like: that of a process, of its node, or of what it left on the node."""

Unit = TypeVar("Unit")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Task(Generic[Unit]):
    unit: Unit
    attempt: int = 1
    not_before: float = 0.0


@dataclass(eq=False)
class _Worker:
    handle: Any
    ready: Any
    placed: bool = False
    held: list[_Task[Any]] = field(default_factory=list)
    suspect: _Task[Any] | None = None


class WorkQueue(Generic[Unit, Result]):
    """Runs units on workers, which may be whole pipelines of actors.

    `start_worker` makes a worker, which has `asks`, what it asks of the cluster in words, `ready()`, a
    reference that is there as soon as it is placed, and `stop()`; `submit(worker, unit)` gives the
    reference of the unit's result; `name(unit)` stands for the unit in errors; `smaller(unit)` is the
    unit to try where memory ran out.
    """

    def __init__(
        self,
        start_worker: Callable[[], Any],
        submit: Callable[[Any, Unit], Any],
        name: Callable[[Unit], str],
        smaller: Callable[[Unit], Unit],
    ) -> None:
        self._start_worker = start_worker
        self._submit = submit
        self._name = name
        self._smaller = smaller
        self._todo: deque[_Task[Unit]] = deque()
        self._workers: list[_Worker] = []
        self._flying: dict[Any, tuple[_Task[Unit], _Worker]] = {}
        self._failures: list[str] = []

    def run(
        self, units: Sequence[Unit], n_workers: int, wait_seconds: float = 60.0
    ) -> Iterator[tuple[Unit, Result]]:
        """Give (unit, result) as each unit is done, in any order.

        A worker holds at most two units, so memory stays flat however many there are.

        A worker that waits for its place, at the start or after a death, gets no unit; the others go on.

        Raises UserError at once when a unit does, or when for `wait_seconds` no worker has a place;
        WorkFailed at the end when units were set aside.
        """
        self._todo.extend(_Task(unit) for unit in units)
        self._workers = [self._new_worker() for _ in range(n_workers)]
        had_a_place = time.monotonic()
        try:
            while self._todo or self._flying:
                if self._any_placed():
                    had_a_place = time.monotonic()
                elif time.monotonic() > had_a_place + wait_seconds:
                    raise _no_place(self._workers[0].handle.asks, wait_seconds)
                self._hand_out()
                if not self._flying:
                    time.sleep(_POLL_SECONDS)
                    continue
                done, _ = ray.wait(list(self._flying), timeout=_POLL_SECONDS)
                for reference in done:
                    unit = self._flying[reference][0].unit
                    if self._succeeded(reference):
                        yield unit, ray.get(reference)
        finally:
            for worker in self._workers:
                worker.handle.stop()
        if self._failures:
            raise WorkFailed(f"{len(self._failures)} of {len(units)} units failed", self._failures)

    def _new_worker(self) -> _Worker:
        handle = self._start_worker()
        return _Worker(handle, handle.ready())

    def _any_placed(self) -> bool:
        for worker in self._workers:
            if not worker.placed:
                worker.placed = bool(ray.wait([worker.ready], timeout=0)[0])
        return any(worker.placed for worker in self._workers)

    def _hand_out(self) -> None:
        placed = [worker for worker in self._workers if worker.placed]
        for _ in range(len(self._todo)):
            worker = min(placed, key=lambda candidate: len(candidate.held), default=None)
            if worker is None or len(worker.held) >= _HELD_PER_WORKER:
                return
            task = self._todo.popleft()
            if task.not_before > time.monotonic():
                self._todo.append(task)
                continue
            worker.held.append(task)
            self._flying[self._submit(worker.handle, task.unit)] = (task, worker)

    def _succeeded(self, reference: Any) -> bool:
        """Take a finished reference in; a failed unit is queued again or set aside."""
        task, worker = self._flying.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            cause = raised(error)
            if isinstance(cause, UserError):
                raise cause from None
            if isinstance(cause, _DEATHS):
                self._bury(worker)
                if task is not worker.suspect:
                    # it waited behind the unit that the worker died of
                    self._todo.append(task)
                    return False
            self._try_again_or_set_aside(task, cause)
            return False
        finally:
            if worker.suspect is None:
                worker.held.remove(task)
        return True

    def _bury(self, worker: _Worker) -> None:
        """Put a new worker in a dead one's place. The oldest unit that it held is what it died of."""
        if worker.suspect is None:
            worker.suspect = worker.held[0]
            worker.handle.stop()
            self._workers[self._workers.index(worker)] = self._new_worker()

    def _try_again_or_set_aside(self, task: _Task[Unit], cause: BaseException) -> None:
        # what neuralign itself found wrong with a unit is wrong the next time too
        if task.attempt < ATTEMPTS and not isinstance(cause, NeuralignError):
            pause = _PAUSE_SECONDS * 2 ** (task.attempt - 1)
            unit = self._smaller(task.unit) if _out_of_memory(cause) else task.unit
            self._todo.append(_Task(unit, task.attempt + 1, time.monotonic() + pause))
        else:
            reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
            tried = f" (tried {task.attempt} times)" if task.attempt > 1 else ""
            self._failures.append(f"{self._name(task.unit)}: {reason}{tried}")


def _out_of_memory(cause: BaseException) -> bool:
    return "out of memory" in str(cause).lower() or "can't allocate memory" in str(cause).lower()


def _no_place(asks: str, seconds: float) -> UserError:
    has, free = ray.cluster_resources(), ray.available_resources()
    return UserError(
        f"no place was found within {seconds:.0f} s for {asks}: the cluster has "
        f"{has.get('CPU', 0):.0f} CPUs and {has.get('GPU', 0):.0f} GPUs, of which "
        f"{free.get('CPU', 0):.0f} and {free.get('GPU', 0):.0f} are free"
    )
