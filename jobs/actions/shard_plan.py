"""The number of shards of a sweep's models, where there is a choice, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from cluster.models.weights import Weights
from cluster.runtime.devices import count_gpus
from jobs.actions.model_sites import list_names
from jobs.config.models import Model
from jobs.device_params import activation_dtype, runs_on_gpus, token_budget
from jobs.planner import Plan
from storage.errors import UserError


def print_shards(console: Console, planned: Plan) -> None:
    """Print the number of shards of models that run on GPUs, or whose number is set."""
    n_sentences = max(
        len(concept_set.concepts.sentences)
        for concept_set in planned.concept_sets
        if concept_set.concepts is not None
    )
    names: dict[str, list[str]] = {}
    for weights, model in {
        weights.model: (weights, model) for model, weights in planned.models
    }.values():
        if model.shards != "auto" or runs_on_gpus(model):
            reason = _describe(planned, model, weights, n_sentences)
            names.setdefault(reason, []).append(weights.model)
    for reason, models in names.items():
        console.print(f"Shards of {list_names(models)}: {reason}.", soft_wrap=True)


def _describe(planned: Plan, model: Model, weights: Weights, n_sentences: int) -> str:
    """The number of shards, and why."""
    if model.shards != "auto":
        return f"{model.shards} (set by `shards`)"
    from cluster.activations.layer_writer import LayerWriter
    from cluster.activations.pass_placement import choose_for, gpu_bytes
    from cluster.activations.pooling_shard import ActivationSettings
    from cluster.activations.shard_choice import PassSize
    from jobs.scoring.layer_scorer import LayerScorer

    memory = gpu_bytes() if count_gpus() else None
    if memory is None:
        return "decided when the run starts, by the memory of the cluster's GPUs"
    neurons, none = planned.sweep.neurons, np.empty(0, np.int64)
    settings = ActivationSettings(
        activation_dtype(model),
        neurons.sites,
        list(neurons.pooling),
        "contextual" in planned.sweep.baselines,
        trust_remote_code=weights.trust_remote_code,
    )
    is_kept = planned.keeping.is_kept
    consumer = LayerWriter(Path()) if is_kept else LayerScorer(Path(), [], none, none)
    size = PassSize(n_sentences, token_budget(model), consumer.working_bytes("cuda"))
    memory = int(memory * min(1, model.gpus_per_shard))
    try:
        choice = choose_for(weights, settings, size, memory, int(count_gpus() / model.gpus_per_shard))
    except UserError as error:
        return f"none, and a run will fail: {error}"
    return f"{choice.shards} ({choice.reason})"
