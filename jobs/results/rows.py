"""Row selection: which rows of a result table the console and the report show, in order and labeled."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from statistics import mean
from typing import Any

from cluster.models.weights import is_random_init, random_init_number
from jobs.alignment import TRIPLETS
from jobs.config.analysis import AUROC, AUROC_HALVES
from jobs.representations.domain_labels import SAME_DOMAIN
from jobs.representations.embeddings import (
    CENTRED_COSINE,
    COSINE,
    HIDDEN_STATE,
    INPUT_EMBEDDING,
    STANDARDIZED_COSINE,
    WORD_VECTORS,
)
from jobs.representations.sentence_encoder import ENCODED_WORD, SENTENCE_ENCODER
from jobs.representations.sentence_words import BAG_OF_WORDS, CONTEXT_WORDS
from jobs.sentences import MASKED
from jobs.similarity import EXPERTS
from storage.store.activation_files import BEFORE, CONTEXT, POOLINGS

STATISTIC_NAMES = {
    "spearman": "Spearman's rho",
    "kendall": "Kendall's tau-b",
    "pearson": "Pearson's r",
    "cka": "debiased CKA",
    "whitened": "whitened correlation",
    TRIPLETS: "odd-one-out accuracy",
}
INTERVAL_METHODS = {
    "jackknife": "jackknife over concepts",
    "concept-bootstrap": "bootstrap over concepts",
    "pair-bootstrap": "bootstrap over pairs, anticonservative",
}
SMALL_SAMPLE_COVERAGE = "91 to 98"
"""Actual coverage, in percent, of 95% CIs in simulated studies of few concepts."""

TREATMENTS = {COSINE: "", CENTRED_COSINE: "*", STANDARDIZED_COSINE: "**"}
"""Marks of vectors that are compared less their mean over concepts, and standardized over concepts."""

_HEADLINE_BASELINES = {
    BAG_OF_WORDS: "bag of words, same sentences",
    CONTEXT_WORDS: "mean word vector, same words",
    WORD_VECTORS: "",
    INPUT_EMBEDDING: "input embeddings",
}
"""Labels of the plain baselines; by default the model's name."""

_CONTROL_LABELS = {MASKED: "word masked"}
"""Labels of controls; by default the control's name."""

ALL_NEURONS = {AUROC: "all neurons, AUROC", AUROC_HALVES: "all neurons, AUROC, crossed halves"}
"""Measures of all neurons that are shown beside the one of experts, and their labels."""

_MODEL_FREE = (SAME_DOMAIN, WORD_VECTORS, BAG_OF_WORDS, CONTEXT_WORDS, SENTENCE_ENCODER, ENCODED_WORD)
"""Representations that no model of the sweep has."""

Row = dict[str, Any]
LabeledRow = tuple[str, Row]
"""A row of a result table and its display label."""


def group_rows(rows: Iterable[Row], *columns: str) -> dict[Any, list[Row]]:
    """Rows by the value of a column, or by the tuple of the values of several."""
    key = itemgetter(*columns)
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def format_estimate(
    value: float | None, low: float | None, high: float | None, sign: str = "", no_interval: str = "n/a"
) -> str:
    """A value with its interval in brackets, or `no_interval` if there are too few distinct values."""
    if value is None:
        return "constant"
    # z: 0.00 instead of -0.00
    interval = no_interval if low is None or high is None else f"{low:{sign}z.2f}, {high:{sign}z.2f}"
    return f"{value:{sign}z.2f} [{interval}]"


def describe_comparison(row: Row, threshold: float) -> str:
    """Statistic, number of pairs or triplets, and expert threshold of an `alignment` row."""
    items = TRIPLETS if row["agreement"] == TRIPLETS else "pairs"
    return (
        f"{STATISTIC_NAMES[row['agreement']]}, {row['n_pairs']} {items} of {row['n_concepts']} "
        f"concepts, AP > {threshold}"
    )


def uses_measure(row: Row, measure: str) -> bool:
    """Whether a row is a baseline, of experts compared by `measure`, or of all neurons of a model."""
    if not row["representation"].startswith(EXPERTS) or row["measure"] == measure:
        return True
    return row["measure"] in ALL_NEURONS and row["layer"] is None and row["site"] is None


def is_selected_maximum(label: str, row: Row) -> bool:
    """Whether a row is the best of several layers by the value that it shows, hence optimistic."""
    return row["layer"] is not None and label.removeprefix(_model_prefix(row)).startswith("best ")


def select_rows(rows: list[Row], threshold: float | None, value: str = "rho") -> list[LabeledRow]:
    """Select and label the rows that compare neurons with baselines, in display order.

    These are the experts of every model and pooling at one threshold, all neurons, controls, the best
    layer, baselines, the best and the median hidden states, and random weights. Best: the highest
    `value`.
    """
    experts = _experts_at(rows, threshold)
    experts.sort(key=lambda row: POOLINGS.index(row["pooling"] or POOLINGS[0]))
    neurons = [
        (f"{row['pooling']} pooling", row)
        for row in experts
        if row["layer"] is None and row["site"] is None
    ]
    selection = [
        (f"neurons, {text}", row) for text, row in neurons if not is_random_init(row["revision"])
    ]
    all_neurons = _all_neurons_rows(rows)
    selection += [labeled for labeled in all_neurons if not is_random_init(labeled[1]["revision"])]
    selection += _control_rows(rows, threshold)
    selection += _best_layer_rows(rows, threshold, value)
    selection += _baseline_rows(rows, value)
    selection += _label_seeds(
        [(f"random weights, {text}", row) for text, row in (*neurons, *all_neurons)]
    )
    models = {(row["model"], row["revision"]) for row in experts if not is_random_init(row["revision"])}
    if len(models) == 1:
        return selection
    return [(f"{_model_prefix(row)}{label}", row) for label, row in selection]


def headline_rows(rows: list[Row], threshold: float, value: str = "rho") -> list[tuple[str, Row, str]]:
    """The few rows that a sweep is about, with a remark: neurons of every trained model by the first
    pooling and of the tokens beside the word, the plain baselines, the best hidden state and random
    weights."""
    experts = [
        row for row in _experts_at(rows, threshold) if row["layer"] is None and row["site"] is None
    ]
    trained = [row for row in experts if not is_random_init(row["revision"])]
    first = _of_first_pooling(trained)
    selection = [(f"expert neurons (AP > {threshold})", row, "") for row in first]
    selection += [
        ("expert neurons, other tokens", row, "")
        for row in trained
        if row["pooling"] == CONTEXT and row not in first
    ]
    selection += [
        ("expert neurons, word masked", row, "")
        for row in rows
        if (row["representation"], row["threshold"]) == (f"{EXPERTS}, {MASKED}", threshold)
        and row["pooling"] in {row["pooling"] for row in first}
    ]
    poolings = {row["pooling"] for row in first}
    # Few neurons reach the threshold before the word.
    labels = {BEFORE: "all neurons, text before the word"}
    labels |= dict.fromkeys(poolings, "all neurons, no threshold")
    selection += [
        (labels[row["pooling"]], row, "")
        for _, row in _all_neurons_rows(rows)
        if row["measure"] == AUROC and row["pooling"] in labels and not is_random_init(row["revision"])
    ]
    for name, label in _HEADLINE_BASELINES.items():
        selection += [
            (label or row["model"], row, "")
            for row in rows
            if (row["representation"], row["measure"]) == (name, COSINE)
        ]
    hidden = [row for row in rows if row["representation"] == HIDDEN_STATE and row[value] is not None]
    for states in group_rows(hidden, "model", "revision").values():
        best = max(states, key=itemgetter(value))
        label = f"hidden states, best of {len(states)} (L{best['layer']})"
        selection.append((label, best, "best on these pairs"))
    auroc = [row for _, row in _all_neurons_rows(rows) if row["measure"] == AUROC]
    selection += [
        (*labeled, "")
        for labeled in average_seeds(
            [row for row in (*experts, *auroc) if row["pooling"] in poolings], value
        )
    ]
    models = {(row["model"], row["revision"]) for row in trained}
    if len(models) == 1:
        return selection
    return [(f"{_model_prefix(row)}{label}", row, remark) for label, row, remark in selection]


def average_seeds(rows: list[Row], value: str = "rho") -> list[LabeledRow]:
    """The rows of models with random weights, labeled: one for each model, pooling and measure, with the
    mean of `value` over the seeds and, as `seed_range`, its lowest and highest; without an interval.

    Seeds without a value do not count. The row of a single seed stays as it is.
    """
    random = [row for row in rows if is_random_init(row["revision"])]
    averages = []
    for seeds in group_rows(random, "model", "pooling", "measure").values():
        values = [row[value] for row in seeds if row[value] is not None]
        row = seeds[0]
        label = "random weights"
        if row["measure"] in ALL_NEURONS:
            label += ", no threshold"
        if len(seeds) > 1:
            is_partial = 0 < len(values) < len(seeds)
            label += f", {f'{len(values)} of ' if is_partial else ''}{len(seeds)} seeds"
        if len(seeds) > 1 and values:
            row = {**row, value: mean(values), "seed_range": (min(values), max(values))}
        averages.append((label, row))
    return averages


def single_layer_rows(rows: list[Row], threshold: float | None) -> list[list[Row]]:
    """Single-layer rows of every trained model, by the first pooling; one list per model."""
    experts = [row for row in _experts_at(rows, threshold) if not is_random_init(row["revision"])]
    layers = [row for row in _of_first_pooling(experts) if row["layer"] is not None]
    return list(group_rows(layers, "model", "revision").values())


def _experts_at(rows: list[Row], threshold: float | None) -> list[Row]:
    return [
        row
        for row in rows
        if (row["representation"], row["threshold"]) == (EXPERTS, threshold)
        and row["measure"] not in ALL_NEURONS
    ]


def _all_neurons_rows(rows: list[Row]) -> list[LabeledRow]:
    """Rows of all neurons of every model, by measure and pooling."""
    found = [row for row in rows if row["representation"] == EXPERTS and row["measure"] in ALL_NEURONS]
    order = list(ALL_NEURONS)
    found.sort(key=lambda row: (order.index(row["measure"]), POOLINGS.index(row["pooling"])))
    return [(f"{ALL_NEURONS[row['measure']]}, {row['pooling']}", row) for row in found]


def _of_first_pooling(rows: list[Row]) -> list[Row]:
    first = min((row["pooling"] for row in rows), key=POOLINGS.index, default=None)
    return [row for row in rows if row["pooling"] == first]


def _label_seeds(rows: list[LabeledRow]) -> list[LabeledRow]:
    """The rows with random weights, with the number of the seed where a model has several."""
    random = [(label, row) for label, row in rows if is_random_init(row["revision"])]
    seeds = group_rows([row for _, row in random], "model")
    is_single = {model: len({row["revision"] for row in group}) == 1 for model, group in seeds.items()}
    return [
        (
            label if is_single[row["model"]] else f"{label}, seed {random_init_number(row['revision'])}",
            row,
        )
        for label, row in random
    ]


def _control_rows(rows: list[Row], threshold: float | None) -> list[LabeledRow]:
    """Control experts, by the first pooling."""
    prefix = f"{EXPERTS}, "
    controls = [
        row for row in rows if row["representation"].startswith(prefix) and row["threshold"] == threshold
    ]
    return [
        (f"neurons, {row['pooling']}, {_CONTROL_LABELS.get(name, name)}", row)
        for row in _of_first_pooling(controls)
        for name in [row["representation"].removeprefix(prefix)]
    ]


def _best_layer_rows(rows: list[Row], threshold: float | None, value: str) -> list[LabeledRow]:
    """The layer of every trained model whose neurons have the highest `value`."""
    best = []
    for layers in single_layer_rows(rows, threshold):
        candidates = [row for row in layers if row[value] is not None]
        if candidates:
            row = max(candidates, key=lambda row: row[value])
            best.append((f"best layer of {len(layers)} (L{row['layer']}), {row['pooling']}", row))
    return best


def _baseline_rows(rows: list[Row], value: str) -> list[LabeledRow]:
    selection = []
    for row in sorted(rows, key=lambda row: row["representation"] != WORD_VECTORS):
        name, treatment = row["representation"], TREATMENTS.get(row["measure"], "")
        if name in (WORD_VECTORS, SENTENCE_ENCODER):
            selection.append((f"{row['model']} {name}{treatment}", row))
        elif name == SAME_DOMAIN:
            selection.append(("same domain, 1 or 0", row))
        elif name == ENCODED_WORD:
            selection.append((f"{row['model']}, word alone", row))
        elif name in (INPUT_EMBEDDING, BAG_OF_WORDS, CONTEXT_WORDS):
            selection.append((f"{name}{treatment}", row))
    hidden = [row for row in rows if row["representation"] == HIDDEN_STATE and row[value] is not None]
    for candidates in group_rows(hidden, "model", "revision", "pooling").values():
        ordered = sorted(candidates, key=lambda row: row[value])
        for name, row in (("best", ordered[-1]), ("median", ordered[len(ordered) // 2])):
            layer = f"L{row['layer']}{TREATMENTS[row['measure']]}"
            selection.append((f"{name} of {len(ordered)} {row['pooling']} states ({layer})", row))
    return selection


def _model_prefix(row: Row) -> str:
    """The model in front of a label; empty for representations that no model of the sweep has."""
    if row["representation"] in _MODEL_FREE:
        return ""
    return f"{row['model']}@{row['revision']}: "
