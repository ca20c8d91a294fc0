"""Throughput of a stage, from when its work units were recorded."""

from __future__ import annotations

from pathlib import Path

import obstore

from storage.store.commit import TEMPORARY_SUFFIX
from storage.store.layout import WORK_UNITS
from storage.store.paths import is_remote, list_dir, object_store

_MAX_UNITS = 50


def units_per_second(folder: Path) -> float | None:
    """Recent work units per second of a stage; None if fewer than two are recorded."""
    times = sorted(_record_times(folder / WORK_UNITS))[-_MAX_UNITS:]
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])


def _record_times(folder: Path) -> list[float]:
    if not is_remote(folder):
        return [path.stat().st_mtime for path in list_dir(folder) if path.suffix != TEMPORARY_SUFFIX]
    with object_store(folder) as (store, prefix):
        items = (item for page in obstore.list(store, prefix) for item in page)
        return [item["last_modified"].timestamp() for item in items]
