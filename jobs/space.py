"""Bytes that a sweep will write, against those that are free where it writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.weights import Weights, load_config
from jobs import activations
from jobs.stage import Stage
from storage.errors import UserError
from storage.manifest import read_units
from storage.place import is_remote

if TYPE_CHECKING:
    from cluster.sites import Site
    from jobs.sweep import Plan

_FLOAT16, _FLOAT32 = 2, 4


def check(planned: Plan, store: Path) -> None:
    """Raise UserError when the activations that a sweep has still to write do not fit."""
    room = free(store)
    if room is None:
        return
    needed = [
        bytes_left(stage, weights_of(stage, planned), planned, store)
        for stage in planned.of_kind(activations.KIND)
    ]
    # where activations are dropped, those of one model are there at a time
    most = sum(needed) if planned.sweep.experts.keep_activations else max(needed, default=0)
    if most > room:
        raise UserError(
            f"{store}: the activations need {most / 1e9:,.2f} GB, {room / 1e9:,.2f} GB are free; "
            "make space, name another store, or have them deleted once they are scored "
            "(experts.keep_activations: false)"
        )


def weights_of(stage: Stage, planned: Plan) -> Weights:
    """The weights that a stage of activations reads."""
    (found,) = (
        weights
        for weights in planned.weights
        if (weights.model, weights.revision) == (stage.params["model"], stage.params["revision"])
    )
    return found


def bytes_left(stage: Stage, weights: Weights, planned: Plan, store: Path) -> int:
    """Bytes of a model's activations that are not written yet: a float16 a neuron, sentence and pooling,
    and float32 for the hidden states after each layer, their mean and the last token's."""
    from cluster.sites import describe

    left = units_left(stage, store)
    if not left or planned.concepts is None:
        return 0
    poolings = len(stage.params["poolings"])
    if "dictionary" in stage.params:
        sentence = int(stage.params["dictionary"]["width"]) * poolings * _FLOAT16
    else:
        sites, hidden_size = describe(load_config(weights), stage.params["sites"], weights.remote_code)
        sentence = sentence_bytes(sites, hidden_size, poolings, stage.params["states"])
    units: int = stage.params["units"]
    return sentence * len(planned.concepts.sentences) * left // units


def sentence_bytes(sites: list[Site], hidden_size: int, poolings: int, states: bool) -> int:
    """Bytes of one sentence's activations; `states` says whether hidden states are kept."""
    neurons = sum(site.width for site in sites)
    layers = len({site.layer for site in sites}) if states else 0
    return neurons * poolings * _FLOAT16 + layers * hidden_size * 2 * _FLOAT32


def units_left(stage: Stage, store: Path) -> int:
    """Work units of a stage that are not committed yet."""
    if stage.is_done(store):
        return 0
    units: int = stage.params["units"]
    return units - len(read_units(stage.folder(store)))


def free(store: Path) -> int | None:
    """Bytes free where a store is or will be; None for an object store, which has no end."""
    if is_remote(store):
        return None
    place = store.absolute()
    while not place.exists():
        place = place.parent
    usage = os.statvfs(place)
    return usage.f_bavail * usage.f_frsize
