"""`neuralign status`: the state of every stage, from the store alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from rich.console import Group
from rich.live import Live

from jobs.actions.output import stdout_console, text_table
from jobs.engine.progress import format_duration
from storage.store import layout, manifest
from storage.store.lease import LEASE_TIMEOUT_SECONDS, holder_has_exited, seconds_since_heartbeat
from storage.store.paths import parse_store_path, read_bytes
from storage.store.throughput import units_per_second

_REFRESH_SECONDS = 2.0
_MAX_ROWS = 60
_STATES = ("failed", "stopped", "running", "done")


@dataclass(frozen=True)
class StageState:
    """State of one stage."""

    kind: str
    label: str
    concept_set: str
    state: str
    detail: str


def print_status(store: str, watch: bool) -> None:
    """Print the state of every stage, or show it until interrupted."""
    console, path = stdout_console(), parse_store_path(store)
    if not watch:
        console.print(_render(read_states(path)))
        return
    with Live(_render(read_states(path)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_REFRESH_SECONDS)
            live.update(_render(read_states(path)), refresh=True)


def read_states(store: Path) -> list[StageState]:
    """States of all stages of a store, in pipeline order."""
    layout.check_store(store)
    concept_sets = dict[str, str]()
    return [
        state
        for kind in layout.STAGE_KINDS
        for folder in manifest.stage_folders(store, kind)
        for state in _read_state(kind, folder, concept_sets)
    ]


def _render(states: list[StageState]) -> Group:
    """One row per stage; if they are too many, one per unfinished stage, and counts per kind."""
    counts = Counter((state.kind, state.state) for state in states)
    rows = states
    if len(states) > _MAX_ROWS:
        rows = [state for state in states if state.state != "done"]
    columns = {"stage": "kind", "for": "label", "state": "state", "": "detail"}
    if len({state.concept_set for state in states if state.concept_set}) > 1:
        columns = {"stage": "kind", "concepts": "concept_set"} | columns
    table = text_table("l" * len(columns), columns, map(attrgetter(*columns.values()), rows[:_MAX_ROWS]))
    lines = []
    if len(rows) < len(states):
        for kind in layout.STAGE_KINDS:
            parts = [f"{counts[kind, state]} {state}" for state in _STATES if counts[kind, state]]
            lines += [f"{kind}: {', '.join(parts)}"] if parts else []
    if len(rows) > _MAX_ROWS:
        lines.append(f"and {len(rows) - _MAX_ROWS} more unfinished stages")
    return Group(*([table] if rows else []), *lines)


def _read_state(kind: str, folder: Path, concept_sets: dict[str, str]) -> Iterator[StageState]:
    """The state of a stage, if it was started; `concept_sets` collects those of finished stages."""
    stage = manifest.read(folder)
    if stage is not None:
        first_input = next(iter(stage.inputs.values()), None)
        concept_set = concept_sets.get(first_input or "") or str(stage.params.get("concept_set", ""))
        concept_sets[folder.name] = concept_set
        size = sum(record.bytes for record in stage.present_records)
        detail = f"{len(stage.present_records):,} files, {size / 1e6:,.1f} MB, {stage.seconds:,.1f} s"
        if stage.dropped:
            detail += f"; {len(stage.dropped):,} activation files deleted"
        yield StageState(kind, stage.label, concept_set, "done", detail)
        return
    n_done = len(manifest.read_work_units(folder))
    for name, state in ((layout.FAILED, "failed"), (layout.RUNNING, "running")):
        path = folder / name
        try:
            lease, age = json.loads(read_bytes(path)), seconds_since_heartbeat(path)
        except FileNotFoundError:
            continue
        is_stopped = state == "running" and (age > LEASE_TIMEOUT_SECONDS or holder_has_exited(lease))
        total = lease.get("units")
        detail = f"{n_done} of {total} units done" if total else f"{n_done} units done"
        if state == "failed":
            detail = f"{lease['error']}; {detail}"
        elif total and not is_stopped and (rate := units_per_second(folder)) is not None:
            detail += f", {rate:.2g}/s, {format_duration((total - n_done) / rate)} left"
        state_name = "stopped" if is_stopped else state
        yield StageState(kind, lease["label"], lease.get("concept_set", ""), state_name, detail)
        return
    if manifest.read(folder) is not None:
        # finished since the first look
        yield from _read_state(kind, folder, concept_sets)
    elif n_done:
        label = folder.name.rpartition("-")[0]
        yield StageState(kind, label, "", "stopped", f"{n_done} units done")
