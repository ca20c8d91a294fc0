"""What a store holds and what is under way in it, from the store alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jobs.engine.duration import duration
from storage.store import layout, manifest
from storage.store.lease import SILENT_SECONDS, is_gone, silent_for
from storage.store.paths import read_bytes
from storage.store.throughput import units_per_second

_WATCH_SECONDS = 2.0
_MOST_ROWS = 60
_STATES = ("failed", "stopped", "running", "done")


@dataclass(frozen=True)
class State:
    """One stage as the store shows it."""

    kind: str
    label: str
    concept_set: str
    state: str
    detail: str


def read_states(store: Path) -> list[State]:
    """Every stage of a store, in the order of the pipeline."""
    layout.check(store)
    sets = dict[str, str]()
    return [
        state
        for kind in layout.KINDS
        for folder in manifest.stages(store, kind)
        for state in _state(kind, folder, sets)
    ]


def print_status(console: Console, store: Path) -> None:
    """Print the state of every stage, and the errors of those that failed."""
    console.print(_shown(read_states(store)))


def watch(console: Console, store: Path) -> None:
    """Show the state of every stage again and again, until interrupted."""
    with Live(_shown(read_states(store)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_SECONDS)
            live.update(_shown(read_states(store)), refresh=True)


def _shown(states: list[State]) -> Group:
    """A row for each stage; where those are too many, for each that is not done, and how many there are
    of each kind."""
    counts = Counter((each.kind, each.state) for each in states)
    rows = states if len(states) <= _MOST_ROWS else [each for each in states if each.state != "done"]
    several = len({each.concept_set for each in states if each.concept_set}) > 1
    table = Table(box=None, pad_edge=False)
    for column in ("stage", *(["concepts"] if several else []), "for", "state", ""):
        table.add_column(column, overflow="fold")
    for state in rows[:_MOST_ROWS]:
        concepts = [escape(state.concept_set)] if several else []
        table.add_row(state.kind, *concepts, escape(state.label), state.state, escape(state.detail))
    lines = [
        f"{kind}: "
        + ", ".join(f"{counts[kind, state]} {state}" for state in _STATES if counts[kind, state])
        for kind in layout.KINDS
        if any(counts[kind, state] for state in _STATES)
    ]
    if len(rows) == len(states):
        lines = []
    if len(rows) > _MOST_ROWS:
        lines.append(f"and {len(rows) - _MOST_ROWS} more that are not done")
    return Group(table, *(Text(line) for line in lines)) if rows else Group(*map(Text, lines))


def _state(kind: str, folder: Path, sets: dict[str, str]) -> Iterator[State]:
    """The state of a stage, if it was begun; `sets` are the concept sets of those that are done, which
    it is added to."""
    done = manifest.read(folder)
    if done is not None:
        first = next(iter(done.inputs.values()), None)
        sets[folder.name] = sets.get(first or "") or str(done.params.get("concept_set", ""))
        size = sum(record.bytes for record in done.kept)
        detail = f"{len(done.kept):,} files, {size / 1e6:,.1f} MB, {done.seconds:,.1f} s"
        if done.dropped:
            detail += f"; {len(done.dropped):,} files of activations dropped"
        yield State(kind, done.label, sets[folder.name], "done", detail)
        return
    units = len(manifest.read_units(folder))
    for name, state in ((layout.FAILED, "failed"), (layout.RUNNING, "running")):
        path = folder / name
        try:
            mark, silent = json.loads(read_bytes(path)), silent_for(path)
        except FileNotFoundError:
            continue
        shown = state
        total = mark.get("units")
        of = f" of {total}" if total else ""
        detail = f"{units}{of} units done"
        if state == "failed":
            detail = f"{mark['error']}; {detail}"
        elif silent > SILENT_SECONDS or is_gone(mark):
            shown = "stopped"
        elif total:
            detail += _pace(folder, total - units)
        yield State(kind, mark["label"], mark.get("concept_set", ""), shown, detail)
        return
    if manifest.read(folder) is not None:
        # it was done meanwhile
        yield from _state(kind, folder, sets)
    elif units:
        label = folder.name.rpartition("-")[0]
        yield State(kind, label, "", "stopped", f"{units} units done")


def _pace(folder: Path, left: int) -> str:
    rate = units_per_second(folder)
    if rate is None:
        return ""
    return f", {rate:.2g}/s, {duration(left / rate)} left"
