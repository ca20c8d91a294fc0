"""Disk space that the stages of a sweep still need, and free disk space."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignment.expertise.scoring import SCORE_TYPES
from cluster.activations.spool_size import hidden_state_bytes
from cluster.models.architecture import count_layers
from cluster.models.size import ModelSize, model_size
from cluster.models.weights import Weights, available_config, load_config
from jobs.engine.keeping import are_kept
from jobs.engine.stage import Stage
from storage.readers.concepts import ConceptSet
from storage.store.activation_files import STATE_POOLINGS
from storage.store.manifest import read_work_units
from storage.store.paths import is_remote

_FLOAT16, _FLOAT32 = 2, 4
_CHARACTERS_IN_TOKEN = 4


def remaining_activation_bytes(
    stage: Stage, weights: Weights, concepts: ConceptSet, remaining: int
) -> int:
    """Bytes of a model's activations that its `remaining` work units will write."""
    if not remaining or not are_kept(stage.params):
        return 0
    return activation_bytes(stage, weights, concepts) * remaining // count_units(stage, weights)


def activation_bytes(stage: Stage, weights: Weights, concepts: ConceptSet) -> int:
    """Bytes of a model's activations on a concept set."""
    poolings = len(stage.params["poolings"])
    if "dictionary" in stage.params:
        per_sentence = latent_bytes_per_sentence(int(stage.params["dictionary"]["width"]), poolings)
    else:
        size = model_size(weights, stage.params["sites"])
        per_sentence = activation_bytes_per_sentence(size, poolings, stage.params["states"])
    return per_sentence * len(concepts.sentences)


def activation_bytes_per_sentence(size: ModelSize, poolings: int, states: bool) -> int:
    """Bytes of one sentence's activations: one float16 per neuron and pooling and, with hidden states,
    float32 for each of their poolings after each layer."""
    state_bytes = size.layers * size.hidden_size * len(STATE_POOLINGS) * _FLOAT32 if states else 0
    return size.neurons * poolings * _FLOAT16 + state_bytes


def latent_bytes_per_sentence(latents: int, poolings: int) -> int:
    """Bytes of the latents of a sparse autoencoder on one sentence."""
    return latents * poolings * _FLOAT16


def estimate_tokens(concepts: ConceptSet) -> int:
    """About the number of tokens of all sentences, in any tokenizer."""
    return sum(len(sentence.text) for sentence in concepts.sentences) // _CHARACTERS_IN_TOKEN


def temporary_bytes(stage: Stage, weights: Weights, n_tokens: int) -> int:
    """Most bytes of hidden states at a time that a stage `activations` keeps between blocks of layers;
    none if its model fits one block."""
    if (size := available_config(weights).get("hidden_size")) is None:
        size = load_config(weights).get_text_config().hidden_size
    return hidden_state_bytes(n_tokens, size, stage.params["dtype"])


def score_bytes(stage: Stage, weights: Weights, concepts: ConceptSet) -> int:
    """Bytes of the scores of all neurons that a stage `experts` or `controls` keeps."""
    kinds = stage.params["scores"]
    if not kinds:
        return 0
    params = stage.inputs["activations"].params
    n_neurons = model_size(weights, params["sites"]).neurons
    n_bytes = kept_bytes(kinds, n_neurons, len(concepts.concepts), len(params["poolings"]))
    # Those of activations that are not kept are in the stage `activations`, too.
    return n_bytes if are_kept(params) else 2 * n_bytes


def kept_bytes(kinds: Sequence[str], n_neurons: int, n_concepts: int, n_poolings: int) -> int:
    """Bytes of a model's scores of these kinds, under one labeling."""
    n_bytes = sum(np.dtype(SCORE_TYPES[kind]).itemsize for kind in kinds)
    return n_neurons * n_concepts * n_poolings * n_bytes


def count_units(stage: Stage, weights: Weights) -> int:
    """Work units of a stage `activations`: layers."""
    if "dictionary" in stage.params:
        return count_layers(load_config(weights))
    return model_size(weights, stage.params["sites"]).layers


def remaining_units(stage: Stage, weights: Weights, store: Path) -> int:
    """Work units of a stage `activations` that are not committed yet."""
    if stage.is_done(store):
        return 0
    return count_units(stage, weights) - len(read_work_units(stage.folder(store)))


def free_bytes(store: Path) -> int | None:
    """Free bytes at the location of a store that may not exist yet; None for an object store."""
    if is_remote(store):
        return None
    path = store.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
