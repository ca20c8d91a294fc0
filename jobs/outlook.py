"""What a sweep would run: stages, work units, bytes on disk and devices, before it runs."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.devices import visible_gpus
from cluster.weights import Weights, load_config
from jobs import activations
from jobs.stage import Stage
from jobs.sweep import Plan
from storage.manifest import read_units

_FLOAT16, _FLOAT32 = 2, 4


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
    n_sentences = len(planned.concepts.sentences) if planned.concepts else 0
    for stage in planned.stages:
        done = stage.is_done(store)
        units, size = "", 0
        if stage.kind == activations.KIND:
            ready = 0 if done else len(read_units(stage.folder(store)))
            units = f"{stage.params['units'] - ready if not done else 0} of {stage.params['units']}"
            whole = 0 if done else activation_bytes(stage, models[stage.label], n_sentences)
            size = whole * (stage.params["units"] - ready) // stage.params["units"]
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
    console.print(
        f"Activations to write: {total / 1e9:,.2f} GB; free there: {_free(store) / 1e9:,.0f} GB."
    )


def _size(planned: Plan) -> str:
    if planned.concepts is None:
        (texts,) = planned.stages
        n_concepts, each = len(texts.params["concepts"]), texts.params["sentences"]
        return f"{n_concepts} concepts, {each} sentences of each to be made"
    concepts = planned.concepts
    return f"{len(concepts.concepts)} concepts, {len(concepts.sentences):,} sentences"


def activation_bytes(stage: Stage, weights: Weights, n_sentences: int) -> int:
    """Bytes of a model's activations: a float16 a neuron, sentence and pooling, and a float32 a
    coordinate of the mean residual stream."""
    from cluster.sites import describe

    sites, hidden_size = describe(load_config(weights), stage.params["sites"])
    poolings = len(stage.params["poolings"])
    neurons = sum(site.width for site in sites)
    sentence = neurons * poolings * _FLOAT16 + len(sites) * hidden_size * _FLOAT32
    return sentence * n_sentences


def _free(store: Path) -> int:
    place = store.absolute()
    while not place.exists():
        place = place.parent
    usage = os.statvfs(place)
    return usage.f_bavail * usage.f_frsize
