"""Leases: of all runs on a store, only one works on a stage at a time.

A lease is a file that only one process can create. Its holder touches it periodically. Waiting processes
watch for changes by their own clocks, so that clock differences are harmless. A lease that stops
changing, or whose holder was a process of this machine that has exited, is taken over.
"""

from __future__ import annotations

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
from storage.readers.strict_json import parse_json
from storage.store.commit import encode_json, put_if_absent, write_json
from storage.store.paths import file_version, is_remote, locate_object, read_bytes, remove_file

HEARTBEAT_SECONDS = 5.0
LEASE_TIMEOUT_SECONDS = 30.0
"""Time without a heartbeat after which a holder is presumed dead."""

_POLL_SECONDS = 0.5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")

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
    record = {**facts, **_machine(), "pid": os.getpid(), "token": uuid.uuid4().hex}
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
    with _hold(lease):
        yield lease


@contextmanager
def hold_free_lease(path: Path, facts: dict[str, Any]) -> Iterator[bool]:
    """Hold the lease `path` unless another run does; yields whether it is held."""
    remove_stale_lease(path)
    record = {**facts, **_machine(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    if not put_if_absent(path.parent, path.name, encode_json(record)):
        yield False
        return
    with _hold(Lease(path, str(record["token"]))):
        yield True


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
        content: dict[str, Any] = parse_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"token": "", "host": "", "pid": 0}
    return content


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
    """Remove the lease of a complete stage unless a live process appears to hold it."""
    holder = read_lease(path)
    if holder is not None and not is_held(path) and read_lease(path) == holder:
        remove_file(path)


def wait_for_heartbeat(path: Path, timeout_seconds: float) -> bool:
    """Watch a lease; returns whether it was touched or released before the timeout."""
    before, since = file_version(path), time.monotonic()
    while time.monotonic() - since < timeout_seconds:
        time.sleep(_POLL_SECONDS)
        if file_version(path) != before:
            return True
    return False


def holder_has_exited(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this machine that has exited.

    False if it is unknown: a process id says nothing about processes of another namespace, such as those
    of another container, or before the machine was restarted.
    """
    machine = _machine()
    if None in machine.values() or any(holder.get(name) != machine[name] for name in machine):
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


def _machine() -> dict[str, str | None]:
    """Where process ids identify processes: the host, its boot and the namespace; None if unknown."""
    facts: dict[str, str | None] = {"host": socket.gethostname(), "boot": None, "pid_namespace": None}
    with suppress(OSError):
        facts |= {"boot": _BOOT_ID.read_text().strip(), "pid_namespace": str(_PID_NAMESPACE.readlink())}
    return facts


@contextmanager
def _hold(lease: Lease) -> Iterator[None]:
    """Keep a lease alive, and release it at the end."""
    _local_tokens.add(lease.token)
    try:
        with _heartbeat(lease):
            yield
    finally:
        _local_tokens.discard(lease.token)


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
