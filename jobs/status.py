"""What a store holds and what is under way in it, from the store alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from storage import layout, manifest
from storage.lease import SILENT_SECONDS, silent_for
from storage.place import read_bytes


@dataclass(frozen=True)
class State:
    """One stage as the store shows it."""

    kind: str
    label: str
    state: str
    detail: str


def read_states(store: Path) -> list[State]:
    """Every stage of a store, in the order of the pipeline."""
    layout.check(store)
    return [
        state
        for kind in layout.KINDS
        for folder in manifest.stages(store, kind)
        for state in _state(kind, folder)
    ]


def print_status(console: Console, store: Path) -> None:
    """Print the state of every stage, and the errors of those that failed."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "for", "state", ""):
        table.add_column(column, overflow="fold")
    for state in read_states(store):
        table.add_row(state.kind, escape(state.label), state.state, escape(state.detail))
    console.print(table)


def _state(kind: str, folder: Path) -> Iterator[State]:
    done = manifest.read(folder)
    if done is not None:
        size = sum(record.bytes for record in done.kept)
        detail = f"{len(done.kept):,} files, {size / 1e6:,.1f} MB, {done.seconds:,.1f} s"
        if done.dropped:
            detail += f"; {len(done.dropped):,} files of activations dropped"
        yield State(kind, done.label, "done", detail)
        return
    units = len(manifest.read_units(folder))
    for name, state in ((layout.FAILED, "failed"), (layout.RUNNING, "running")):
        path = folder / name
        if not path.is_file():
            continue
        mark = json.loads(read_bytes(path))
        shown = state
        of = f" of {mark['units']}" if mark.get("units") else ""
        detail = f"{units}{of} units done"
        if state == "failed":
            detail = f"{mark['error']}; {detail}"
        elif silent_for(path) > SILENT_SECONDS:
            shown = "stopped"
        yield State(kind, mark["label"], shown, detail)
        return
    if units:
        label = folder.name.rpartition("-")[0]
        yield State(kind, label, "stopped", f"{units} units done")
