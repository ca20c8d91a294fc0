"""Bytes that a sweep will write, against those that are free where it writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.models.size import Size, size_of
from cluster.models.weights import Weights
from jobs import activations, experts
from jobs.engine.stage import Stage
from storage.errors import UserError
from storage.readers.concepts import ConceptSet
from storage.store.manifest import read_units
from storage.store.paths import is_remote

if TYPE_CHECKING:
    from jobs.planner import Plan

_FLOAT16, _FLOAT32 = 2, 4
MODELS_AT_ONCE = 2
"""Where activations are dropped once they are scored, those of so many models are there at a time."""


def check(planned: Plan, store: Path) -> None:
    """Raise UserError when the activations that a sweep has still to write do not fit."""
    room = free(store)
    if room is None:
        return
    models = {weights.label: weights for weights in planned.weights}
    needed, scores = list[int](), 0
    for each in planned.sets:
        if each.concepts is None:
            continue
        for stage in each.stages:
            if stage.kind == activations.KIND:
                needed.append(bytes_left(stage, models[stage.label], each.concepts, store))
            elif stage.kind == experts.KIND:
                done = stage.is_done(store)
                scores += 0 if done else score_bytes(stage, models[stage.label], each.concepts)
    if not planned.sweep.experts.keep_activations:
        needed = sorted(needed)[-MODELS_AT_ONCE:]
    most = sum(needed) + scores
    if most > room:
        raise UserError(
            f"{store}: the activations need {most / 1e9:,.2f} GB, {room / 1e9:,.2f} GB are free; "
            "make space, name another store, or have them deleted once they are scored "
            "(experts.keep_activations: false)"
        )


def bytes_left(stage: Stage, weights: Weights, concepts: ConceptSet, store: Path) -> int:
    """Bytes of a model's activations that are not written yet."""
    left = units_left(stage, store)
    units: int = stage.params["units"]
    return bytes_of(stage, weights, concepts) * left // units if left else 0


def bytes_of(stage: Stage, weights: Weights, concepts: ConceptSet) -> int:
    """Bytes of a model's activations on a concept set."""
    poolings = len(stage.params["poolings"])
    if "dictionary" in stage.params:
        sentence = int(stage.params["dictionary"]["width"]) * poolings * _FLOAT16
    else:
        size = size_of(weights, stage.params["sites"])
        sentence = sentence_bytes(size, poolings, stage.params["states"])
    return sentence * len(concepts.sentences)


def sentence_bytes(size: Size, poolings: int, states: bool) -> int:
    """Bytes of one sentence's activations: a float16 a neuron and pooling and, where hidden states are
    kept, float32 for their mean and the last token's after each layer."""
    of_states = size.layers * size.hidden * 2 * _FLOAT32 if states else 0
    return size.neurons * poolings * _FLOAT16 + of_states


def score_bytes(stage: Stage, weights: Weights, concepts: ConceptSet) -> int:
    """Bytes of a model's scores, where all are kept: a float32 a neuron, concept and pooling."""
    if not stage.params["scores"]:
        return 0
    read = stage.inputs["activations"]
    pairs = size_of(weights, read.params["sites"]).neurons * len(concepts.concepts)
    return pairs * len(read.params["poolings"]) * _FLOAT32


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
