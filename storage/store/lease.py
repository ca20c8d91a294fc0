"""Leases: of all the runs on one store, just one works on a stage at a time.

The lease is a file that only one can put there. Its holder touches it again and again; who waits
watches whether it changes, by a clock of his own, so clocks that differ or are set back do no harm. A
lease that no longer changes, or whose holder was a process of this machine that ended, is taken over.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore

from storage.errors import StoreError
from storage.store.commit import as_json, put_if_absent, write_json
from storage.store.paths import is_remote, locate, read_bytes, remove

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A holder that was not heard of for so long is taken for dead."""

_POLL_SECONDS = 0.5
_held_here: set[str] = set()
"""Tokens of the leases that threads of this process hold."""

_noting = threading.Lock()


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds."""

    path: Path
    token: str

    def check(self) -> None:
        """Raise StoreError when another run has taken the lease over."""
        holder = read_lease(self.path)
        if holder is None or holder["token"] != self.token:
            raise StoreError(
                f"{self.path.parent}: another run took this stage over, as this one was silent for "
                f"{SILENT_SECONDS:.0f} s; run it again when that one is done"
            )


@contextmanager
def held(
    path: Path, facts: dict[str, Any], waiting: Callable[[dict[str, Any]], None]
) -> Iterator[Lease]:
    """Hold the lease `path`, waiting for it where another run holds it; give it back at the end.

    `waiting` is called once with the facts of the one who is waited for.
    """
    mine = {**facts, "host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    told = False
    while not put_if_absent(path.parent, path.name, as_json(mine)):
        holder = read_lease(path)
        if holder is not None and not is_gone(holder):
            if not told:
                waiting(holder)
                told = True
            if _changes(path):
                continue
        # nobody is there any more
        if holder is not None and read_lease(path) == holder:
            remove(path)
    lease = Lease(path, mine["token"])
    _held_here.add(lease.token)
    try:
        with _beating(lease):
            yield lease
    finally:
        _held_here.discard(lease.token)


def note(path: Path, **facts: Any) -> None:
    """Tell something about the work under a lease to those who look on."""
    # the heart notes its beats too, and who writes reads back what was written
    with _noting:
        holder = read_lease(path)
        if holder is not None:
            write_json(path.parent, path.name, {**holder, **facts})


def read_lease(path: Path) -> dict[str, Any] | None:
    """What the holder of a lease says of itself; None where nobody holds it."""
    try:
        content: dict[str, Any] = json.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"token": "", "host": "", "pid": 0}
    return content


def pulse(path: Path) -> object:
    """Something that changes as often as the holder of a lease is heard of; None without a lease."""
    try:
        if is_remote(path):
            store, key = locate(path)
            found = obstore.head(store, key)
            return found["e_tag"], found["last_modified"]
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def silent_for(path: Path) -> float:
    """Seconds since the holder of a lease was heard of, by this machine's clock."""
    if is_remote(path):
        store, key = locate(path)
        return abs(time.time() - obstore.head(store, key)["last_modified"].timestamp())
    return abs(time.time() - path.stat().st_mtime)


def is_held(path: Path) -> bool:
    """Whether someone who seems to be alive holds a lease."""
    try:
        holder = read_lease(path)
        return holder is not None and not is_gone(holder) and silent_for(path) <= SILENT_SECONDS
    except FileNotFoundError:
        return False


def forget_gone(path: Path) -> None:
    """Remove the lease of a process of this machine that has ended."""
    holder = read_lease(path)
    if holder is not None and is_gone(holder):
        remove(path)


def _changes(path: Path) -> bool:
    """Watch a lease; whether it was touched or given back before it had been silent for too long."""
    before, since = pulse(path), time.monotonic()
    while time.monotonic() - since < SILENT_SECONDS:
        time.sleep(_POLL_SECONDS)
        if pulse(path) != before:
            return True
    return False


def is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder is a process of this machine that has ended."""
    if holder["host"] != socket.gethostname():
        return False
    if holder["pid"] == os.getpid():
        # in a container that was started again all processes have the ids of those before
        return holder["token"] not in _held_here
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _beating(lease: Lease) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, StoreError):
                if is_remote(lease.path):
                    beats += 1
                    lease.check()
                    note(lease.path, beats=beats)
                else:
                    os.utime(lease.path)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        with suppress(StoreError):
            lease.check()
            remove(lease.path)
