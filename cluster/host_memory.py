"""Host memory that this process can still allocate, within the limits of its container and its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

UNKNOWN_MEMORY = 1 << 62
"""Where /proc does not say how much is free."""

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class _Files(NamedTuple):
    """Files of a control group: its limit and its use; and the fields of memory.stat for page cache."""

    limit: str
    usage: str
    cache: tuple[str, str]


_V1 = _Files(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2 = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def free_host_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes that this process can allocate: what is free on the machine, in each control group (cgroup)
    that contains it, and of its address space.

    `proc` and `cgroups` are where the kernel's files are. Page cache counts as free.
    """
    free = [_available(proc), *_free_in_groups(proc, cgroups), _free_addresses(proc)]
    return max(0, min(free))


def _available(proc: Path) -> int:
    return _read_fields(proc / "meminfo").get("MemAvailable:", UNKNOWN_MEMORY >> 10) << 10


def _free_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    for line in _read(proc / "self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            root, files = cgroups, _V2
        elif "memory" in controllers.split(","):
            root, files = cgroups / "memory", _V1
        else:
            continue
        # A group is also bound by the limits of those above it. In a container, the root is its own
        # group, and the name may be one that only the host knows.
        parts = [part for part in name.split("/") if part]
        for depth in range(len(parts) + 1):
            group = root.joinpath(*parts[:depth])
            limit, usage = _read(group / files.limit), _read(group / files.usage)
            if limit.strip().isdecimal() and usage.strip().isdecimal():
                fields = _read_fields(group / "memory.stat")
                yield int(limit) - int(usage) + sum(fields.get(field, 0) for field in files.cache)


def _free_addresses(proc: Path) -> int:
    for line in _read(proc / "self/limits").splitlines():
        limit = line.removeprefix("Max address space").split()
        if line.startswith("Max address space") and limit[0].isdecimal():
            return int(limit[0]) - (_read_fields(proc / "self/status").get("VmSize:", 0) << 10)
    return UNKNOWN_MEMORY


def _read_fields(path: Path) -> dict[str, int]:
    """The first number after each name in a file of lines; those of the kernel's /proc are in KiB."""
    pairs = (line.split()[:2] for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""
