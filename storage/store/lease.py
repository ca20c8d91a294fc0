"""Leases: of all runs on a store, only one works on a stage at a time.

A lease is a file that only one process can create. Its holder touches it periodically. Waiting processes
watch for changes by their own clocks, so that clock differences are harmless. A lease that stops
changing, or whose holder was a process of this machine that has exited, is taken over. A damaged lease
has an unknown holder.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
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

_UNKNOWN_HOLDER: dict[str, Any] = {"token": "", "host": "", "pid": 0}
_FACT_TYPES = {
    **dict.fromkeys(("token", "host", "label", "concept_set", "error"), str),
    **dict.fromkeys(("pid", "units"), int),
}
_MAX_NUMBER = 2**31

_local_tokens: set[str] = set()
"""Tokens of the leases held by threads of this process."""

_first_seen: dict[Path, tuple[object, float]] = {}
"""Leases that look old: their version, and when it was first seen by the monotonic clock."""

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
    """Publish facts about the work under a lease that this process holds."""
    # the heartbeat thread updates it too
    with _update_lock:
        holder = read_lease(path)
        if holder is not None and holder["token"] in _local_tokens:
            write_json(path.parent, path.name, {**holder, **facts})


def read_lease(path: Path) -> dict[str, Any] | None:
    """The facts that the holder of a lease has published; None if no process holds it."""
    facts = read_facts(path)
    return None if facts is None else {**_UNKNOWN_HOLDER, **facts}


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a lease or in the record of a failure, without those of a wrong type or size; None if
    the file does not exist."""
    try:
        content = parse_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except ValueError:
        content = {}
    facts = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in facts if _is_valid_fact(name, value)}


def is_held(path: Path) -> bool:
    """Whether a live process appears to hold a lease."""
    return bool(find_held([path]))


def find_held(paths: Iterable[Path], timeout_seconds: float | None = None) -> set[Path]:
    """The leases that a live process appears to hold.

    Clocks differ, so leases that are old by this host's clock are watched together, until they are
    unchanged since they were first seen `timeout_seconds` (default: LEASE_TIMEOUT_SECONDS) ago.
    """
    timeout_seconds = LEASE_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
    held, watched = set[Path](), set[Path]()
    for path in paths:
        version, holder = file_version(path), read_lease(path)
        if version is None or holder is None or holder_has_exited(holder):
            continue
        if _is_recent(path):
            held.add(path)
            continue
        watched.add(path)
        if path not in _first_seen or _first_seen[path][0] != version:
            _first_seen[path] = (version, time.monotonic())
    while watched:
        versions = {path: file_version(path) for path in watched}
        changed = {path for path, version in versions.items() if version != _first_seen[path][0]}
        held |= {path for path in changed if versions[path] is not None}
        earliest = time.monotonic() - timeout_seconds
        watched = {path for path in watched - changed if _first_seen[path][1] > earliest}
        if watched:
            time.sleep(_POLL_SECONDS)
    return held


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


def _is_valid_fact(name: str, value: object) -> bool:
    kind = _FACT_TYPES.get(name)
    if kind is int:
        return type(value) is int and 0 < value < _MAX_NUMBER
    return kind is None or isinstance(value, kind)


def _is_recent(path: Path) -> bool:
    """Whether the last heartbeat of a lease's holder is recent by this host's clock."""
    try:
        if is_remote(path):
            touched = obstore.head(*locate_object(path))["last_modified"].timestamp()
        else:
            touched = path.stat().st_mtime
    except FileNotFoundError:
        return False
    return bool(abs(time.time() - touched) <= LEASE_TIMEOUT_SECONDS)


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
                # another run may have taken it over
                lease.check()
                if is_remote(lease.path):
                    beats += 1
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
