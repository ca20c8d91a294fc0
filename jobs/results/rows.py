"""Row selection: which rows of a result table the console and the report show, in order and labeled."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import Any

from cluster.models.weights import RANDOM_INIT
from jobs.alignment import TRIPLETS
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
from jobs.similarity import EXPERTS
from storage.store.activation_files import CONTEXT, POOLINGS

STATISTIC_NAMES = {
    "spearman": "Spearman's rho",
    "kendall": "Kendall's tau-b",
    "pearson": "Pearson's r",
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
    WORD_VECTORS: "",
    INPUT_EMBEDDING: "input embeddings",
}
"""Labels of the plain baselines; by default the model's name."""

_MODEL_FREE = (WORD_VECTORS, BAG_OF_WORDS, CONTEXT_WORDS, SENTENCE_ENCODER, ENCODED_WORD)
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
    interval = no_interval if low is None or high is None else f"{low:{sign}.2f}, {high:{sign}.2f}"
    return f"{value:{sign}.2f} [{interval}]"


def describe_comparison(row: Row, threshold: float) -> str:
    """Statistic, number of pairs or triplets, and expert threshold of an `alignment` row."""
    items = TRIPLETS if row["agreement"] == TRIPLETS else "pairs"
    return (
        f"{STATISTIC_NAMES[row['agreement']]}, {row['n_pairs']} {items} of {row['n_concepts']} "
        f"concepts, AP > {threshold}"
    )


def uses_measure(row: Row, measure: str) -> bool:
    """Whether a row is a baseline, or of experts compared by `measure`."""
    return not row["representation"].startswith(EXPERTS) or row["measure"] == measure


def is_selected_maximum(label: str, row: Row) -> bool:
    """Whether a row is the best of several layers by the value that it shows, hence optimistic."""
    return row["layer"] is not None and label.removeprefix(_model_prefix(row)).startswith("best ")


def select_rows(rows: list[Row], threshold: float | None, value: str = "rho") -> list[LabeledRow]:
    """Select and label the rows that compare neurons with baselines, in display order.

    These are the experts of every model and pooling at one threshold, controls, the best layer,
    baselines, the best and the median hidden states, and random weights. Best: the highest `value`.
    """
    experts = _experts_at(rows, threshold)
    experts.sort(key=lambda row: POOLINGS.index(row["pooling"] or POOLINGS[0]))
    neurons = [
        (f"{row['pooling']} pooling", row)
        for row in sorted(experts, key=lambda row: row["revision"] == RANDOM_INIT)
        if row["layer"] is None and row["site"] is None
    ]
    selection = [(f"neurons, {text}", row) for text, row in neurons if row["revision"] != RANDOM_INIT]
    selection += _control_rows(rows, threshold)
    selection += _best_layer_rows(rows, threshold, value)
    selection += _baseline_rows(rows, value)
    selection += [
        (f"random weights, {text}", row) for text, row in neurons if row["revision"] == RANDOM_INIT
    ]
    models = {(row["model"], row["revision"]) for row in experts if row["revision"] != RANDOM_INIT}
    if len(models) == 1:
        return selection
    return [(f"{_model_prefix(row)}{label}", row) for label, row in selection]


def headline_rows(rows: list[Row], threshold: float, value: str = "rho") -> list[tuple[str, Row, str]]:
    """The few rows that a sweep is about, with a remark: neurons of every trained model by the first
    pooling and without the word, the plain baselines, the best hidden state and random weights."""
    experts = [
        row for row in _experts_at(rows, threshold) if row["layer"] is None and row["site"] is None
    ]
    trained = [row for row in experts if row["revision"] != RANDOM_INIT]
    first = _of_first_pooling(trained)
    selection = [(f"expert neurons (AP > {threshold})", row, "") for row in first]
    selection += [
        ("expert neurons, word left out", row, "")
        for row in trained
        if row["pooling"] == CONTEXT and row not in first
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
        selection.append((label, best, "selected on these pairs"))
    selection += [
        ("random weights", row, "")
        for row in experts
        if row["revision"] == RANDOM_INIT and row["pooling"] in {row["pooling"] for row in first}
    ]
    models = {(row["model"], row["revision"]) for row in trained}
    if len(models) == 1:
        return selection
    return [(f"{_model_prefix(row)}{label}", row, remark) for label, row, remark in selection]


def single_layer_rows(rows: list[Row], threshold: float | None) -> list[list[Row]]:
    """Single-layer rows of every trained model, by the first pooling; one list per model."""
    experts = [row for row in _experts_at(rows, threshold) if row["revision"] != RANDOM_INIT]
    layers = [row for row in _of_first_pooling(experts) if row["layer"] is not None]
    return list(group_rows(layers, "model", "revision").values())


def _experts_at(rows: list[Row], threshold: float | None) -> list[Row]:
    return [row for row in rows if (row["representation"], row["threshold"]) == (EXPERTS, threshold)]


def _of_first_pooling(rows: list[Row]) -> list[Row]:
    first = min((row["pooling"] for row in rows), key=POOLINGS.index, default=None)
    return [row for row in rows if row["pooling"] == first]


def _control_rows(rows: list[Row], threshold: float | None) -> list[LabeledRow]:
    """Control experts, by the first pooling."""
    prefix = f"{EXPERTS}, "
    controls = [
        row for row in rows if row["representation"].startswith(prefix) and row["threshold"] == threshold
    ]
    return [
        (f"neurons, {row['pooling']}, {row['representation'].removeprefix(prefix)}", row)
        for row in _of_first_pooling(controls)
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
