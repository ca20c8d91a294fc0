"""What a sweep would run: stages, work units, bytes on disk and devices, before it runs."""

from __future__ import annotations

import os

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.devices import visible_gpus
from jobs import activations, experts, space
from jobs.sweep import Plan


def print_outlook(console: Console, planned: Plan) -> None:
    """Print the stages of a sweep, with what is done and what is left of each."""
    store = planned.sweep.store_path
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "for", "state"):
        table.add_column(name, overflow="fold")
    for name in ("units", "bytes to write"):
        table.add_column(name, justify="right")
    models = {weights.label: weights for weights in planned.weights}
    total = 0
    for stage in planned.stages:
        done = stage.is_done(store)
        units, size = "", 0
        if stage.kind == activations.KIND:
            left = space.units_left(stage, store)
            units = f"{left} of {stage.params['units']}"
            size = space.bytes_left(stage, models[stage.label], planned, store)
        elif stage.kind == experts.KIND:
            size = space.score_bytes_left(stage, models[stage.label], planned, store)
        total += size
        table.add_row(
            stage.kind,
            escape(stage.label),
            "done" if done else "to do",
            units,
            f"{size / 1e6:,.0f} MB" if size else "",
        )
    gpus = visible_gpus()
    devices = f"{gpus} GPUs" if gpus else f"{os.cpu_count()} CPU cores"
    console.print(
        f"{_size(planned)}, {len(planned.weights)} models; on {devices} here; into {escape(str(store))}",
        soft_wrap=True,
    )
    console.print(table)
    if planned.concepts is None:
        console.print("What comes after the sentences is known once they are made.")
        return
    free = space.free(store)
    there = "" if free is None else f"; free there: {free / 1e9:,.0f} GB"
    console.print(f"Activations to write: {total / 1e9:,.2f} GB{there}.")


def _size(planned: Plan) -> str:
    if planned.concepts is None:
        (texts,) = planned.stages
        n_concepts, each = len(texts.params["concepts"]), texts.params["sentences"]
        return f"{n_concepts} concepts, {each} sentences of each to be made"
    concepts = planned.concepts
    return f"{len(concepts.concepts)} concepts, {len(concepts.sentences):,} sentences"
