"""`neuralign status`: the state of every stage, from the store alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from rich.console import Group
from rich.live import Live

from jobs.actions.output import stdout_console, text_table
from jobs.engine.progress import format_duration
from storage.store import layout, manifest
from storage.store.lease import HEARTBEAT_SECONDS, find_held, read_facts
from storage.store.paths import parse_store_path
from storage.store.throughput import units_per_second

_REFRESH_SECONDS = 2.0
_MAX_ROWS = 60
_MISSED_HEARTBEATS = 2
"""Heartbeats without which a run counts as stopped, if its last one is old by this host's clock."""
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
    folders = {kind: manifest.stage_folders(store, kind) for kind in layout.STAGE_KINDS}
    held = _find_held(folder / layout.RUNNING for paths in folders.values() for folder in paths)
    concept_sets = dict[str, str]()
    return [
        state
        for kind, paths in folders.items()
        for folder in paths
        for state in _read_state(kind, folder, concept_sets, held)
    ]


def _find_held(leases: Iterable[Path]) -> Set[Path]:
    return find_held(leases, _MISSED_HEARTBEATS * HEARTBEAT_SECONDS)


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


def _read_state(
    kind: str, folder: Path, concept_sets: dict[str, str], held: Set[Path]
) -> Iterator[StageState]:
    """The state of a stage, if it was started; `concept_sets` collects those of finished stages, and
    `held` are leases that were held a moment ago."""
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
    # the label without its capitals, if the record lacks it
    label = folder.name.rpartition("-")[0]
    for name in (layout.FAILED, layout.RUNNING):
        path = folder / name
        facts = read_facts(path)
        if facts is None:
            continue
        if name == layout.FAILED:
            state = "failed"
        else:
            state = "running" if path in held or _find_held([path]) else "stopped"
        total = facts.get("units")
        detail = f"{n_done} of {total} units done" if total else f"{n_done} units done"
        if state == "failed":
            detail = f"{facts.get('error', f'{name} is damaged')}; {detail}"
        elif total and state == "running" and (rate := units_per_second(folder)) is not None:
            detail += f", {rate:.2g}/s, {format_duration(max(0, total - n_done) / rate)} left"
        yield StageState(kind, facts.get("label", label), facts.get("concept_set", ""), state, detail)
        return
    if manifest.read(folder) is not None:
        # finished since the first look
        yield from _read_state(kind, folder, concept_sets, held)
    elif n_done:
        yield StageState(kind, label, "", "stopped", f"{n_done} units done")
