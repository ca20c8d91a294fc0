"""What a sweep comes to before its sentences are made, reckoned from its models' configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.models.size import Size
from cluster.models.weights import RANDOM_INIT
from jobs.alignment import why_not
from jobs.config import Brought, Generate, Harvest, Model, Sweep
from jobs.engine import disk_budget
from jobs.sources.human_judgments import Judgments, judge
from storage.errors import UserError
from storage.readers.concepts import named, read_concepts, read_words

TOKENS = 24
"""Tokens that a sentence is reckoned to have."""


@dataclass(frozen=True)
class _Cost:
    """One model at one revision."""

    revisions: int
    layers: int
    neurons: int
    bytes: int
    flop: float


def read_configs(sweep: Sweep) -> dict[str, Any]:
    """The configurations that the sweep file gives beside the models, by the models' ids.

    Raises UserError for a file that is none.
    """
    from transformers import AutoConfig

    found = {}
    for model in sweep.models:
        path = sweep.folder / (model.config or "")
        if not path.is_file():
            raise UserError(f"models: {model.id!r}: config: {path}: no such file")
        try:
            found[model.id] = AutoConfig.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path}: is no configuration of a model: {error}".splitlines()[0]
            ) from error
    return found


def print_reckoning(console: Console, sweep: Sweep, configs: Mapping[str, Any]) -> None:
    """Print for each model its neurons, the bytes of its activations and the work of its forward pass;
    and what all of them come to. `configs` are by the models' ids."""
    sets = [_size(one) for one in sweep.each_set()]
    n_sentences = sum(sentences for _, sentences in sets)
    n_concepts = sum(len(names) for names, _ in sets)
    console.print(
        f"{n_concepts:,} concepts, {n_sentences:,} sentences of some {TOKENS} tokens. Of each revision:"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("revisions", "layers", "neurons", "activations", "forward"):
        table.add_column(name, justify="right")
    costs = []
    for model in sweep.models:
        cost = _cost(sweep, model, configs[model.id], n_sentences)
        costs.append(cost)
        table.add_row(
            escape(model.id),
            str(cost.revisions),
            str(cost.layers),
            f"{cost.neurons:,}",
            f"{cost.bytes / 1e9:,.1f} GB",
            f"{cost.flop / 1e15:,.1f} PFLOP",
        )
    console.print(table)
    written = sum(cost.bytes * cost.revisions for cost in costs)
    scores = sum(cost.neurons * cost.revisions for cost in costs) * n_concepts
    scores *= len(sweep.neurons.pooling)
    console.print(
        f"In all: {written / 1e12:,.2f} TB of activations, "
        f"{sum(cost.flop * cost.revisions for cost in costs) / 1e18:,.2f} EFLOP, "
        f"{scores / 1e9:,.1f} billion scores of a neuron."
    )
    if not sweep.experts.keep_activations:
        most = max(cost.bytes for cost in costs)
        console.print(
            f"At a time at most {most / 1e9:,.0f} GB are on disk: activations are deleted once scored."
        )
    for one, (names, _) in zip(sweep.each_set(), sets, strict=True):
        of = "" if len(sets) == 1 else f"{one.concept_set}: "
        for human in one.human_sets():
            print_human(console, judge(human, names), of)


def print_human(console: Console, judgments: Judgments, of: str = "") -> None:
    """Print what a human set says of the concepts, what is odd in it, and why it will give no agreement;
    `of` opens each line."""
    reason = why_not(judgments, judgments.groups)
    for line in (*judgments.notes, *([f"warning: {reason}"] if reason else [])):
        console.print(f"{of}{line}", markup=False, soft_wrap=True)


def _size(sweep: Sweep) -> tuple[list[str], int]:
    """The concepts of the only set, and how many sentences there are or will be."""
    (wanted,) = sweep.concepts
    if isinstance(wanted, Brought):
        found = read_concepts(sweep.folder / wanted.source, sweep.concept_set, wanted.columns)
        return [concept.name for concept in found.concepts], len(found.sentences)
    words = _words(sweep, wanted)
    neutral = wanted.pool if isinstance(wanted, Harvest) else 0
    return words, len(words) * wanted.sentences + neutral


def _words(sweep: Sweep, wanted: Harvest | Generate) -> list[str]:
    if isinstance(wanted.words, str):
        return [concept.name for concept in read_words(sweep.folder / Path(wanted.words))]
    return [concept.name for concept in named(wanted.words, f"{sweep.file}: concepts.words")]


def _cost(sweep: Sweep, model: Model, config: Any, n_sentences: int) -> _Cost:
    from cluster.models.sites import body_size, describe

    sites, hidden_size = describe(config, sweep.neurons.sites)
    size = Size(len({site.layer for site in sites}), sum(site.width for site in sites), hidden_size)
    control = "random-init" in sweep.baselines and RANDOM_INIT not in model.revisions
    states = "contextual" in sweep.baselines
    each = disk_budget.sentence_bytes(size, len(sweep.neurons.pooling), states)
    return _Cost(
        revisions=len(model.revisions) + control,
        layers=size.layers,
        neurons=size.neurons,
        bytes=each * n_sentences,
        flop=2.0 * body_size(config) * TOKENS * n_sentences,
    )
