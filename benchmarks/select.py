"""Scoring against the sort that it needs and against scikit-learn, on one thread."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from alignment.expertise.labels import labels_against_others
from alignment.expertise.scoring import score_neurons
from benchmarks.measure import record, side_by_side

_SENTENCES, _CONCEPTS, _NEURONS = 10_000, 100, 256


def _data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    values = random.standard_normal((_NEURONS, _SENTENCES)).astype(np.float16)
    return values, np.arange(_SENTENCES) % _CONCEPTS


def select_sort() -> None:
    """Against `np.sort` of the packed keys alone: seconds per neuron."""
    values, concepts = _data()
    labels = labels_against_others(np.arange(_SENTENCES), concepts, _SENTENCES, _CONCEPTS)
    keys = values.view(np.uint16).astype(np.uint32) << 16 | np.arange(_SENTENCES, dtype=np.uint32)
    ours, theirs = side_by_side(lambda: score_neurons(values, labels), lambda: np.sort(keys, axis=1))
    record("select_sort", ours / _NEURONS, theirs / _NEURONS, "s", "ratio at most 2.5")


def select_concepts() -> None:
    """1,000 concepts against 10, over the same sentences: seconds per neuron."""
    values, _ = _data()
    sentences = np.arange(_SENTENCES)
    many, few = (
        labels_against_others(sentences, sentences % count, _SENTENCES, count) for count in (1000, 10)
    )
    ours, theirs = side_by_side(lambda: score_neurons(values, many), lambda: score_neurons(values, few))
    record("select_concepts", ours / _NEURONS, theirs / _NEURONS, "s", "ratio at most 1.5")


def select_neurons() -> None:
    """2,048 neurons against 256: seconds per neuron, equal if cost is linear."""
    few, concepts = _data()
    labels = labels_against_others(np.arange(_SENTENCES), concepts, _SENTENCES, _CONCEPTS)
    many = np.tile(few, (8, 1))
    ours, theirs = side_by_side(lambda: score_neurons(many, labels), lambda: score_neurons(few, labels))
    record("select_neurons", ours / len(many), theirs / _NEURONS, "s", "ratio at most 1.1")


def select_sklearn() -> None:
    """Against scikit-learn's AP and AUROC: seconds per (neuron, concept)."""
    values, concepts = _data()
    labels = labels_against_others(np.arange(_SENTENCES), concepts, _SENTENCES, _CONCEPTS)

    def theirs() -> None:
        for concept in range(5):
            average_precision_score(concepts == concept, values[0])
            roc_auc_score(concepts == concept, values[0])

    ours_seconds, theirs_seconds = side_by_side(lambda: score_neurons(values, labels), theirs)
    pairs = _NEURONS * _CONCEPTS
    record("select_sklearn", ours_seconds / pairs, theirs_seconds / 5, "s", "ratio at most 0.001")
