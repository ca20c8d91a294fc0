"""Killing a process at the n-th place where it touches the disk, and a sweep that runs in one process.

The places are the system calls by which neuralign changes a store: before and after each of them, and in
the middle of a write, half of which then reached the disk.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
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

from cluster.activations.actor import STEPS, ShardActor
from cluster.steering.pipeline import SteeringActor, SteeringPipeline

_CALLS = ("mkdir", "open", "write", "fsync", "replace", "link", "unlink", "utime")
_RANDOM = re.compile(r"\.[0-9a-f]{32}\.tmp")
_SECONDS = 900

Reached = Callable[[str], None]


def in_child(work: Callable[[], Any], reached: Reached | None = None) -> bool:
    """Run some work in a forked child; whether it was killed there. `reached` is called in the child
    with the name of each place where the disk is touched, and may kill it.

    What the work raises fails the test.
    """
    return was_killed(start_child(work, reached))


def start_child(work: Callable[[], Any], reached: Reached | None = None) -> int:
    """Start some work in a forked child, and give its process id for `was_killed`."""
    child = os.fork()
    if child == 0:
        signal.alarm(_SECONDS)
        code = 1
        try:
            if reached is not None:
                _watch(reached)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def was_killed(child: int) -> bool:
    """Wait for a child; whether it was killed."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"ended by signal {os.WTERMSIG(status)}"
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed: see its traceback above"
    return False


def fail_in(kind: str, call: str, code: int) -> Reached:
    """Let a system call fail, with an error's code, for all that a stage writes but its lease."""

    def reached(place: str) -> None:
        if place.startswith(f"before {call} ") and f"/{kind}/" in place and "_RUNNING" not in place:
            raise OSError(code, os.strerror(code))

    return reached


def kill() -> None:
    """End this very process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_everywhere(work: Callable[[], Any], folder: Path, states: Path) -> list[str]:
    """Run some work in a child of which a fork is killed at each place; the places. How each kill leaves
    `folder` is copied to `states/<number>`, but for what a kill left before: one that changes nothing
    on the disk (as around a flush) cannot be told from the one before it."""
    places = states / "places.txt"
    states.mkdir()
    places.touch()
    seen = set[tuple[tuple[str, bytes | None], ...]]()

    one_at_a_time = Lock()

    def reached(place: str) -> None:
        if str(folder) not in place:
            return
        with one_at_a_time:
            with places.open("a") as file:
                file.write(f"{place}\n")
            killed = os.fork()
            if killed == 0:
                kill()
            assert was_killed(killed)
            state = _state(folder)
            if state not in seen and folder.is_dir():
                seen.add(state)
                shutil.copytree(folder, states / f"{len(seen):05d}")

    assert not in_child(work, reached)
    return places.read_text().splitlines()


def _state(folder: Path) -> tuple[tuple[str, bytes | None], ...]:
    return tuple(
        (_named(path.relative_to(folder)), path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"), key=_named)
    )


def _watch(reached: Reached) -> None:
    real = {name: getattr(os, name) for name in _CALLS}
    names: dict[int, str] = {}

    def opened(path: Any, flags: int, *arguments: Any, **settings: Any) -> int:
        writes = flags & os.O_CREAT
        if writes:
            reached(f"before open {_named(path)}")
        descriptor: int = real["open"](path, flags, *arguments, **settings)
        names[descriptor] = _named(path)
        if writes:
            reached(f"after open {_named(path)}")
        return descriptor

    def written(descriptor: int, content: Any) -> int:
        if descriptor not in names:
            return int(real["write"](descriptor, content))
        reached(f"before write {names[descriptor]}")
        half = real["write"](descriptor, content[: len(content) // 2])
        reached(f"within write {names[descriptor]}")
        rest = real["write"](descriptor, content[half:])
        reached(f"after write {names[descriptor]}")
        return int(half + rest)

    def around(call: str) -> Callable[..., Any]:
        def called(*arguments: Any, **settings: Any) -> Any:
            path = arguments[0] if call == "mkdir" else arguments[-1]
            of = names.get(path, "") if call == "fsync" else _named(path)
            reached(f"before {call} {of}")
            result = real[call](*arguments, **settings)
            reached(f"after {call} {of}")
            return result

        return called

    special = {"open": opened, "write": written}
    for name in _CALLS:
        setattr(os, name, special.get(name) or around(name))


def _named(path: Any) -> str:
    return _RANDOM.sub(".tmp", str(path))


@contextmanager
def in_one_process() -> Iterator[None]:
    """Let sweeps run without Ray's processes, each model loaded once: the same actors' and tasks' code,
    called instead of sent, with one thread as there, so that the bytes are the same. Only so can
    hundreds of sweeps be killed in a minute, and one that others are compared with costs seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded: dict[str, Any] = {}

    def once(actor: Callable[..., Any], weights: Any, settings: Any) -> Any:
        key = f"{actor} {weights} {settings}"
        if key not in loaded:
            loaded[key] = actor(weights, settings, 0, 1)
        return loaded[key]

    class Pipeline:
        def __init__(self, weights: Any, settings: Any, *_: Any) -> None:
            self._actor = once(ShardActor, weights, settings)

        def submit(self, unit: Any, folder: Path, words: Any) -> Any:
            for piece in range(STEPS):
                self._actor.step(unit, piece, None, stay_on_device=False)
            return self._actor.commit(unit, folder, words, None, None)

    class Queue:
        def __init__(self, start: Any, submit: Any, *_: Any) -> None:
            self._start, self._submit = start, submit

        def run(self, units: Any, *_: Any) -> Iterator[Any]:
            pipeline = self._start()
            for unit in units:
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
        patch("jobs.sweep.disconnected_after", nullcontext),
        patch("cluster.activations.pipeline.Pipeline", Pipeline),
        patch("cluster.steering.pipeline.SteeringPipeline", Steering),
        patch("cluster.runtime.queue.WorkQueue", Queue),
        patch("cluster.runtime.session.connect", lambda: None),
        patch("cluster.runtime.session.cpus", lambda: 1),
        patch("cluster.runtime.session.gpus", lambda: 0),
        patch("cluster.runtime.session.result", lambda reference: reference.value),
        patch(
            "cluster.runtime.placement.place",
            lambda *_: SimpleNamespace(shards=1, replicas=1, resources={}),
        ),
        patch.object(ray, "remote", remote),
        patch.object(ray, "put", lambda value: value),
        patch.object(ray, "wait", lambda references, **_: (references[:1], references[1:])),
    ):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
