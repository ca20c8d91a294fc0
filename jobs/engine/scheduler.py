"""Runs stages concurrently: each starts when its inputs are complete, one at a time per resource (see
`jobs.engine.stage.Lane`). So the next model's shards run on the GPUs while one model's experts are
scored on the CPUs and another's are compared in this process.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from ray.exceptions import RayError

from jobs.engine.stage import Resource, Stage, ensure
from storage.errors import NeuralignError, StoreError

_SECONDS_TO_STOP = 20.0


class Ended(NamedTuple):
    """A stage that is done, whether it was run for that, and else what stopped it."""

    stage: Stage
    ran: bool
    error: Exception | None = None


def in_order(stages: Sequence[Stage], store: Path) -> Iterator[Ended]:
    """Carry out the stages that are not done, one after another, in this thread.

    Raises what the first that fails raises.
    """
    for stage in stages:
        yield Ended(stage, ensure(stage, store))


def side_by_side(
    stages: Sequence[Stage], store: Path, may_start: Callable[[Stage, Set[str]], bool]
) -> Iterator[Ended]:
    """Carry out the stages that are not done, each after those that it reads, in threads.

    A stage that fails is given with its error, and what reads it is left out; a store that fails and a
    bug stop everything. `may_start` may hold a stage back, knowing the fingerprints of those that ended.
    """
    done, lost = set[str](), set[str]()
    waiting = []
    for stage in stages:
        if stage.is_done(store):
            done.add(stage.fingerprint)
            yield Ended(stage, ran=False)
        else:
            waiting.append(stage)
    lanes = _Lanes(store)
    try:
        while waiting or lanes.busy:
            for stage in list(waiting):
                inputs = {each.fingerprint for each in stage.inputs.values()}
                if inputs & lost:
                    lost.add(stage.fingerprint)
                    waiting.remove(stage)
                elif inputs <= done and may_start(stage, done | lost) and lanes.start(stage):
                    waiting.remove(stage)
            if lanes.busy:
                ended = lanes.next_ended()
                (lost if ended.error else done).add(ended.stage.fingerprint)
                yield ended
            elif waiting:
                raise RuntimeError(f"nothing lets {waiting[0].name} start")
    finally:
        lanes.stop()


class _Lanes:
    def __init__(self, store: Path) -> None:
        self._store = store
        self._ended: queue.SimpleQueue[tuple[Ended, BaseException | None]] = queue.SimpleQueue()
        self._threads: dict[str, tuple[threading.Thread, set[Resource]]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._threads)

    def start(self, stage: Stage) -> bool:
        """Start a stage unless another is on a lane that it needs; whether it was started."""
        if self._taken(self._had({stage.lane})):
            return False
        # what was dropped is made again by the stage that reads it
        again = {each.lane for each in stage.inputs.values() if each.result(self._store).dropped}
        needed = self._had({stage.lane, *again})
        if self._taken(needed):
            return False
        thread = threading.Thread(target=self._work, args=(stage,), name=stage.name, daemon=True)
        self._threads[stage.fingerprint] = (thread, needed)
        thread.start()
        return True

    def next_ended(self) -> Ended:
        """Wait for a stage to end. Raises what concerns more than this stage."""
        ended, raised = self._ended.get()
        self._threads.pop(ended.stage.fingerprint)
        if raised is not None:
            raise raised
        return ended

    def stop(self) -> None:
        """Interrupt what still runs, as Ctrl-C interrupts the main thread, and wait for it."""
        for thread, _ in self._threads.values():
            number = ctypes.c_ulong(thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(KeyboardInterrupt))
        for thread, _ in self._threads.values():
            thread.join(_SECONDS_TO_STOP)

    def _taken(self, lanes: set[Resource]) -> bool:
        return any(lanes & held for _, held in self._threads.values())

    def _had(self, lanes: set[Resource]) -> set[Resource]:
        """The lanes as the cluster has them."""
        if lanes == {Resource.HERE}:
            return lanes
        from cluster.runtime.session import connect, gpus

        connect()
        return lanes if gpus() else {Resource.CPUS if lane is Resource.GPUS else lane for lane in lanes}

    def _work(self, stage: Stage) -> None:
        ended = Ended(stage, ran=False)
        raised: BaseException | None = None
        try:
            ended = Ended(stage, ensure(stage, self._store))
        except StoreError as error:
            raised = error
        except (NeuralignError, RayError) as error:
            ended = Ended(stage, ran=False, error=error)
        except BaseException as error:
            raised = error
        self._ended.put((ended, raised))
