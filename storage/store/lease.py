"""Leases: of all runs on a store, only one works on a stage at a time.

A lease is a file that only one process can create. Its holder touches it periodically. Waiting processes
watch for changes by their own clocks, so that clock differences are harmless. A lease that stops
changing, or whose holder was a process on this host that has exited, is taken over.
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
from storage.store.commit import encode_json, put_if_absent, write_json
from storage.store.paths import is_remote, locate_object, read_bytes, remove_file

HEARTBEAT_SECONDS = 5.0
LEASE_TIMEOUT_SECONDS = 30.0
"""Time without a heartbeat after which a holder is presumed dead."""

_POLL_SECONDS = 0.5
_local_tokens: set[str] = set()
"""Tokens of the leases held by threads of this process."""

_update_lock = threading.Lock()


@dataclass(frozen=True)
class Lease:
    """A lease held by this process."""

    path: Path
    token: str

    def check(self) -> None:
        """Raise StoreError if another run has taken the lease over."""
        holder = read_lease(self.path)
        if holder is None or holder["token"] != self.token:
            raise StoreError(
                f"{self.path.parent}: another run took this stage over after "
                f"{LEASE_TIMEOUT_SECONDS:.0f} s without a heartbeat; rerun when that run is done"
            )


@contextmanager
def acquire_lease(
    path: Path, facts: dict[str, Any], on_wait: Callable[[dict[str, Any]], None]
) -> Iterator[Lease]:
    """Hold the lease `path`; waits while another run holds it.

    `on_wait` is called once with the facts of the holder.
    """
    record = {**facts, "host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    has_waited = False
    while not put_if_absent(path.parent, path.name, encode_json(record)):
        holder = read_lease(path)
        if holder is not None and not holder_has_exited(holder):
            if not has_waited:
                on_wait(holder)
                has_waited = True
            if wait_for_heartbeat(path, LEASE_TIMEOUT_SECONDS):
                continue
        # the holder is dead
        if holder is not None and read_lease(path) == holder:
            remove_file(path)
    lease = Lease(path, record["token"])
    _local_tokens.add(lease.token)
    try:
        with _heartbeat(lease):
            yield lease
    finally:
        _local_tokens.discard(lease.token)


def update_lease(path: Path, **facts: Any) -> None:
    """Publish facts about the work under a lease."""
    # the heartbeat thread updates it too
    with _update_lock:
        holder = read_lease(path)
        if holder is not None:
            write_json(path.parent, path.name, {**holder, **facts})


def read_lease(path: Path) -> dict[str, Any] | None:
    """The facts that the holder of a lease has published; None if no process holds it."""
    try:
        content: dict[str, Any] = json.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"token": "", "host": "", "pid": 0}
    return content


def last_heartbeat(path: Path) -> object:
    """A value that changes with every heartbeat of a lease's holder; None if there is no lease."""
    try:
        if is_remote(path):
            head = obstore.head(*locate_object(path))
            return head["e_tag"], head["last_modified"]
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def seconds_since_heartbeat(path: Path) -> float:
    """Seconds since the last heartbeat of a lease's holder, by this host's clock."""
    if is_remote(path):
        return abs(time.time() - obstore.head(*locate_object(path))["last_modified"].timestamp())
    return abs(time.time() - path.stat().st_mtime)


def is_held(path: Path) -> bool:
    """Whether a live process appears to hold a lease."""
    try:
        holder = read_lease(path)
        if holder is None or holder_has_exited(holder):
            return False
        return seconds_since_heartbeat(path) <= LEASE_TIMEOUT_SECONDS
    except FileNotFoundError:
        return False


def remove_stale_lease(path: Path) -> None:
    """Remove a lease whose holder was a process on this host that has exited."""
    holder = read_lease(path)
    if holder is not None and holder_has_exited(holder):
        remove_file(path)


def wait_for_heartbeat(path: Path, timeout_seconds: float) -> bool:
    """Watch a lease; returns whether it was touched or released before the timeout."""
    before, since = last_heartbeat(path), time.monotonic()
    while time.monotonic() - since < timeout_seconds:
        time.sleep(_POLL_SECONDS)
        if last_heartbeat(path) != before:
            return True
    return False


def holder_has_exited(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process on this host that has exited."""
    if holder["host"] != socket.gethostname():
        return False
    if holder["pid"] == os.getpid():
        # a restarted container reuses process ids
        return holder["token"] not in _local_tokens
    try:
        # /proc may hide the processes of other users; for them, the signal is not permitted
        with suppress(PermissionError):
            os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    return False


@contextmanager
def _heartbeat(lease: Lease) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, StoreError):
                if is_remote(lease.path):
                    beats += 1
                    lease.check()
                    update_lease(lease.path, beats=beats)
                else:
                    os.utime(lease.path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(StoreError):
            lease.check()
            remove_file(lease.path)
