"""How fast the units of a stage are being committed, from when their records were."""

from __future__ import annotations

from pathlib import Path

import obstore
from obstore.exceptions import BaseError

from storage.store.commit import TEMPORARY_SUFFIX
from storage.store.layout import UNITS
from storage.store.paths import entries, is_remote, locate, unreachable

_RECENT = 50


def units_per_second(folder: Path) -> float | None:
    """Units a second over the last of those that are recorded in a stage's folder; None for fewer than
    two."""
    times = sorted(_recorded_at(folder / UNITS))[-_RECENT:]
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])


def _recorded_at(folder: Path) -> list[float]:
    if not is_remote(folder):
        times = []
        for path in entries(folder):
            if path.suffix != TEMPORARY_SUFFIX:
                times.append(path.stat().st_mtime)
        return times
    store, prefix = locate(folder)
    try:
        found = [each for page in obstore.list(store, prefix) for each in page]
    except BaseError as error:
        raise unreachable(folder, error) from error
    return [each["last_modified"].timestamp() for each in found]
