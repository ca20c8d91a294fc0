"""Kills a process at every point where it touches the disk, and runs sweeps in one process.

The points are the system calls by which neuralign changes a store: before and after each of them, and in
the middle of a write, when half of it has reached the disk.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import ray
import ray.util.scheduling_strategies
import torch

from cluster.activations.pass_actor import PassActor
from cluster.steering.actor import SteeringActor
from cluster.steering.pipeline import SteeringPipeline

_CALLS = ("mkdir", "open", "write", "fsync", "replace", "link", "unlink", "utime")
_RANDOM = re.compile(r"\.[0-9a-f]{32}\.tmp")
_SECONDS = 900

OnDiskAccess = Callable[[str], None]


def in_child(work: Callable[[], Any], on_disk_access: OnDiskAccess | None = None) -> bool:
    """Run some work in a forked child; return whether it was killed.

    `on_disk_access` is called in the child with the name of every point where it touches the disk, and
    may kill it. An exception in the work fails the test.
    """
    return was_killed(start_child(work, on_disk_access))


def start_child(work: Callable[[], Any], on_disk_access: OnDiskAccess | None = None) -> int:
    """Start some work in a forked child; return its process id for `was_killed`."""
    child = os.fork()
    if child == 0:
        signal.alarm(_SECONDS)
        code = 1
        try:
            if on_disk_access is not None:
                _intercept_disk_access(on_disk_access)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def was_killed(child: int) -> bool:
    """Wait for a child; return whether it was killed."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"ended by signal {os.WTERMSIG(status)}"
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed: see its traceback above"
    return False


def fail_in(kind: str, call: str, code: int) -> OnDiskAccess:
    """Make a system call fail with an error code for everything that a stage writes except its lease."""

    def fail(point: str) -> None:
        if point.startswith(f"before {call} ") and f"/{kind}/" in point and "_RUNNING" not in point:
            raise OSError(code, os.strerror(code))

    return fail


@contextmanager
def heartbeats(lease: Path, clock_difference: float) -> Iterator[None]:
    """Touch a lease as a live holder does, on a disk whose clock differs by these seconds."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.05):
            now = time.time() + clock_difference
            os.utime(lease, (now, now))

    now = time.time() + clock_difference
    os.utime(lease, (now, now))
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def kill() -> None:
    """End this process as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_everywhere(work: Callable[[], Any], folder: Path, states: Path) -> list[str]:
    """Run some work in a child and kill a fork of it at every point; return the points.

    The state of `folder` after each kill is copied to `states/<number>`, unless an earlier kill left the
    same state.
    """
    points = states / "points.txt"
    states.mkdir()
    points.touch()
    seen = set[tuple[tuple[str, bytes | None], ...]]()

    lock = Lock()

    def kill_fork(point: str) -> None:
        if str(folder) not in point:
            return
        with lock:
            with points.open("a") as file:
                file.write(f"{point}\n")
            fork = os.fork()
            if fork == 0:
                kill()
            assert was_killed(fork)
            state = _state(folder)
            if state not in seen and folder.is_dir():
                seen.add(state)
                shutil.copytree(folder, states / f"{len(seen):05d}")

    assert not in_child(work, kill_fork)
    return points.read_text().splitlines()


def _state(folder: Path) -> tuple[tuple[str, bytes | None], ...]:
    return tuple(
        (_stable_name(path.relative_to(folder)), path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"), key=_stable_name)
    )


def _intercept_disk_access(on_disk_access: OnDiskAccess) -> None:
    real = {name: getattr(os, name) for name in _CALLS}
    names: dict[int, str] = {}

    def intercepted_open(path: Any, flags: int, *arguments: Any, **settings: Any) -> int:
        writes = flags & os.O_CREAT
        if writes:
            on_disk_access(f"before open {_stable_name(path)}")
        descriptor: int = real["open"](path, flags, *arguments, **settings)
        names[descriptor] = _stable_name(path)
        if writes:
            on_disk_access(f"after open {_stable_name(path)}")
        return descriptor

    def intercepted_write(descriptor: int, content: Any) -> int:
        if descriptor not in names:
            return int(real["write"](descriptor, content))
        on_disk_access(f"before write {names[descriptor]}")
        half = real["write"](descriptor, content[: len(content) // 2])
        on_disk_access(f"within write {names[descriptor]}")
        rest = real["write"](descriptor, content[half:])
        on_disk_access(f"after write {names[descriptor]}")
        return int(half + rest)

    def around(call: str) -> Callable[..., Any]:
        def called(*arguments: Any, **settings: Any) -> Any:
            path = arguments[0] if call == "mkdir" else arguments[-1]
            name = names.get(path, "") if call == "fsync" else _stable_name(path)
            on_disk_access(f"before {call} {name}")
            result = real[call](*arguments, **settings)
            on_disk_access(f"after {call} {name}")
            return result

        return called

    special = {"open": intercepted_open, "write": intercepted_write}
    for name in _CALLS:
        setattr(os, name, special.get(name) or around(name))


def _stable_name(path: Any) -> str:
    return _RANDOM.sub(".tmp", str(path))


@contextmanager
def in_one_process(threads: int = 1) -> Iterator[None]:
    """Run sweeps without Ray's processes, and passes in so many threads.

    Runs the code of the same actors and tasks, so that the bytes are the same, but as plain calls: this
    is fast enough to kill hundreds of sweeps in a minute.
    """
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded: dict[str, Any] = {}

    def once(actor: Callable[..., Any], weights: Any, settings: Any) -> Any:
        key = f"{actor} {weights} {settings}"
        if key not in loaded:
            loaded[key] = actor(weights, settings, 0, 1)
        return loaded[key]

    class Pass:
        def __init__(self, weights: Any, settings: Any, *_: Any) -> None:
            self._actor = PassActor(weights, settings, 0, 1)
            self.run = lambda request: self._actor.run(request, threads)
            self.find_tokens = self._actor.find_tokens
            self.count_done = self._actor.count_done

    class Queue:
        def __init__(self, start: Any, submit: Any, *_: Any) -> None:
            self._start, self._submit = start, submit
            self._units: list[Any] = []
            self.add = self._units.append

        def run(self, units: Any, *_: Any) -> Iterator[Any]:
            pipeline = self._start()
            self._units += units
            while self._units:
                unit = self._units.pop(0)
                yield unit, self._submit(pipeline, unit)

    class Steering(SteeringPipeline):
        def __init__(self, weights: Any, settings: Any, *_: Any) -> None:
            self._shards = [_Called(once(SteeringActor, weights, settings))]

    def remote(task: Callable[..., Any]) -> Any:
        called = SimpleNamespace(remote=lambda *arguments: _Result(task(*arguments)))
        return SimpleNamespace(options=lambda **_: called, remote=called.remote)

    class _Result:
        def __init__(self, value: Any) -> None:
            self.value = value

    class _Called:
        def __init__(self, actor: Any) -> None:
            self._actor = actor

        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(remote=getattr(self._actor, name))

    with (
        # an actor hides the GPUs that it was not given from its whole process
        patch.object(ray, "get_gpu_ids", list),
        patch.dict(os.environ),
        patch("jobs.sweep.shutdown_on_exit", nullcontext),
        patch("cluster.activations.pass_actor.PassWorker", Pass),
        patch("cluster.steering.pipeline.SteeringPipeline", Steering),
        patch("cluster.runtime.queue.WorkQueue", Queue),
        patch("cluster.runtime.session.connect", lambda: None),
        patch("cluster.runtime.session.cluster_cpus", lambda: 1),
        patch("cluster.runtime.session.cluster_gpus", lambda: 0),
        patch("cluster.runtime.session.get_result", lambda reference: reference.value),
        patch(
            "cluster.runtime.placement.plan_placement",
            lambda *_: SimpleNamespace(shards=1, replicas=1, resources={}),
        ),
        patch(
            "cluster.activations.pass_placement.place_pass",
            lambda *_: SimpleNamespace(shards=1, resources={}, notes=()),
        ),
        patch.object(ray, "remote", remote),
        patch.object(ray, "put", lambda value: value),
        patch.object(ray, "wait", lambda references, **_: (references[:1], references[1:])),
    ):
        try:
            yield
        finally:
            torch.set_num_threads(torch_threads)
