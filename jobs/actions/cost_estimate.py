"""Cost estimates of models: neurons, bytes, FLOPs and neuron scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from alignment.statistics.matrix_correlation import AgreementMeasure
from cluster.models.model_config import errors_of_libraries, read_config_json
from cluster.models.size import ModelSize, measure_size
from cluster.models.weights import is_random_init
from jobs.actions.gpu_time import GPU, HOST_GIGABYTES, TOKENS_PER_SENTENCE, GpuTime, estimate_time
from jobs.actions.output import text_table
from jobs.alignment import reasons_not_comparable
from jobs.config.concepts import ProvidedSentences
from jobs.config.models import Model
from jobs.config.sweep import Sweep
from jobs.engine import disk_budget
from jobs.engine.progress import format_duration
from jobs.planner import Keeping, count_sentences_to_make, decide_keeping, random_revisions
from jobs.sources.human_judgments import Judgments, load_judgments
from storage.errors import UserError
from storage.readers.concepts import concepts_from_names, read_concept_names, read_concepts


def read_configs(sweep: Sweep) -> dict[str, Any]:
    """The model configurations that the sweep file refers to, by model id.

    Raises:
        UserError: if one is missing or is not a model configuration.
    """
    from transformers import AutoConfig

    configs = {}
    for model in sweep.models:
        path = sweep.folder / (model.config or "")
        if not path.is_file():
            raise UserError(f"models: {model.id!r}: config: {path}: no such file")
        read_config_json(model.id, path)
        with errors_of_libraries(f"{path}: is not a model configuration"):
            configs[model.id] = AutoConfig.from_pretrained(path)
    return configs


def print_cost_estimate(
    console: Console, sweep: Sweep, configs: Mapping[str, Any], keeping: Keeping | None = None
) -> None:
    """Print the cost of every model and of the whole sweep; `configs` are by model id.

    Neither models nor sentences need to exist yet. `keeping` is that of the sweep's plan; without one it
    is estimated, and a pattern of revisions counts as one.
    """
    from cluster.models.sites import count_layer_weights

    sets = [_set_size(single) for single in sweep.per_concept_set()]
    n_sentences = sum(count for _, count in sets)
    n_concepts = sum(len(names) for names, _ in sets)
    n_poolings, with_states = len(sweep.neurons.pooling), "contextual" in sweep.baselines
    console.print(
        f"{n_concepts:,} concepts, {n_sentences:,} sentences, ~{TOKENS_PER_SENTENCE} tokens each. "
        "Per revision:"
    )
    rows, total_bytes, total_flop, total_scores = [], 0, 0.0, 0
    revisions: list[tuple[Model, ModelSize, bool]] = []
    for model in sweep.models:
        config = configs[model.id]
        size = measure_size(config, sweep.neurons.sites)
        names = [*model.revisions, *random_revisions(sweep, model)]
        are_random = list(map(is_random_init, names))
        revisions += [(model, size, is_random) for is_random in are_random]
        n_revisions = len(are_random)
        per_sentence = disk_budget.activation_bytes_per_sentence(size, n_poolings, with_states)
        n_bytes = per_sentence * n_sentences
        # two FLOPs per weight and token
        flop = 2.0 * count_layer_weights(config) * TOKENS_PER_SENTENCE * n_sentences
        counts = (n_revisions, size.layers, f"{size.neurons:,}")
        rows.append((model.id, *counts, f"{n_bytes / 1e9:,.1f} GB", f"{flop / 1e15:,.1f} PFLOP"))
        total_bytes += n_bytes * n_revisions
        total_flop += flop * n_revisions
        total_scores += size.neurons * n_concepts * n_poolings * n_revisions
    columns = ("model", "revisions", "layers", "neurons", "activations", "forward")
    console.print(text_table("lrrrrr", columns, rows))
    console.print(
        f"Total: {total_bytes / 1e12:,.2f} TB of activations, {total_flop / 1e18:,.2f} EFLOP, "
        f"{total_scores / 1e9:,.1f} billion neuron scores."
    )
    keeping = keeping or decide_keeping(sweep, n_sentences, revisions, is_estimate=True)
    console.print(str(keeping))
    if not keeping.is_kept:
        console.print("Activations to write: 0.00 GB.")
        _print_gpu_time(console, sweep, configs, revisions, sets)
    for set_sweep, (names, _) in zip(sweep.per_concept_set(), sets, strict=True):
        prefix = "" if len(sets) == 1 else f"{set_sweep.concept_set}: "
        for human in set_sweep.human:
            judgments = load_judgments(human.resolve(sweep.folder), names)
            print_judgment_notes(console, judgments, sweep.agreement, prefix)


def _print_gpu_time(
    console: Console,
    sweep: Sweep,
    configs: Mapping[str, Any],
    revisions: Sequence[tuple[Model, ModelSize, bool]],
    sets: Sequence[tuple[list[str], int]],
) -> None:
    """Print the time that a sweep takes on one GPU."""
    total = GpuTime()
    counts = Counter((model.id, size, is_random) for model, size, is_random in revisions)
    try:
        for (name, size, is_random), count in counts.items():
            for names, n_sentences in sets:
                total += count * estimate_time(
                    sweep, configs[name], size, len(names), n_sentences, is_trained=not is_random
                )
    except UserError as error:
        console.print(f"One {GPU} is too small: {error}.")
        return
    forward, scoring, disk = (
        format_duration(seconds)
        for seconds in (total.forward_seconds, total.scoring_seconds, total.disk_seconds)
    )
    on_disk = f", hidden states on disk {disk}" if total.disk_bytes else ""
    console.print(
        f"One {GPU}: about {format_duration(total.seconds)} at the rates in docs/gpu.md (forward passes "
        f"{forward}, scoring {scoring}{on_disk}), without loading weights."
    )
    if total.most_hidden_bytes:
        rest = ", and the rest on disk" if total.disk_bytes else ""
        console.print(
            f"Blocks of layers take turns on it: up to {total.most_hidden_bytes / 1e9:,.0f} GB of "
            f"hidden states are kept, in host memory of which {HOST_GIGABYTES} GB are assumed to be "
            f"free{rest}."
        )


def print_judgment_notes(
    console: Console, judgments: Judgments, measures: Sequence[AgreementMeasure], prefix: str = ""
) -> None:
    """Print the notes on a human data set, and warnings if it cannot be compared with the concepts."""
    reasons = reasons_not_comparable(judgments, judgments.groups, measures)
    for line in (*judgments.notes, *(f"warning: {reason}" for reason in reasons)):
        console.print(f"{prefix}{line}", soft_wrap=True)


def _set_size(sweep: Sweep) -> tuple[list[str], int]:
    """Concepts and number of sentences, existing or planned, of a sweep with one concept set."""
    (config,) = sweep.concepts
    if isinstance(config, ProvidedSentences):
        concept_set = read_concepts(sweep.folder / config.source, sweep.concept_set, config.columns)
        return [concept.name for concept in concept_set.concepts], len(concept_set.sentences)
    if isinstance(config.words, str):
        concepts = read_concept_names(sweep.folder / Path(config.words))
    else:
        concepts = concepts_from_names(config.words, f"{sweep.file}: concepts.words")
    names = [concept.name for concept in concepts]
    return names, count_sentences_to_make(config, len(names))
