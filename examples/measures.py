"""Rho with MEN of similarities by the AUROCs of all neurons: how the measure `auroc-halves` was chosen.

    python examples/measures.py STORE

STORE has kept activations of one model with trained weights, such as that of men-core.yaml. Scoring all
neurons takes some minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import numpy as np

import storage
from alignment.arrays import Floats, Ints
from alignment.expertise.labels import labels_against_others, split_half
from alignment.expertise.scoring import score_neurons
from alignment.statistics.rank_correlation import weighted_correlation
from alignment.statistics.score_vectors import (
    cosine_from_products,
    crossed_products,
    dot_products,
    subtract_neuron_means,
)
from jobs.sources.human_judgments import load_judgments
from storage.readers.human import builtin_human_set
from storage.store.activation_files import POOLINGS

_SEED = 0


@dataclass
class Auroc:
    """AUROC less 0.5, d, of every neuron for every concept, (neurons, concepts): on all sentences, and
    on either half. `error` is the standard error of d, by concept, of a neuron that tells nothing."""

    d: Floats
    halves: tuple[Floats, Floats]
    error: Floats

    @property
    def z(self) -> Floats:
        """d in standard errors."""
        return self.d / self.error

    @property
    def reliability(self) -> Floats:
        """Correlation over concepts of each neuron's d in both halves, at least 0: (neurons, 1)."""
        x, y = map(subtract_neuron_means, self.halves)
        norms = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
        product = (x * y).sum(axis=1)
        return np.divide(product, norms, out=np.zeros(len(x)), where=norms > 0).clip(0)[:, None]


def _cosine(vectors: Floats) -> Floats:
    return cosine_from_products(dot_products(vectors))


def _soft(auroc: Auroc, k: int) -> Floats:
    return np.asarray(np.sign(auroc.z) * np.maximum(np.abs(auroc.z) - k, 0))


def _empirical_bayes(auroc: Auroc) -> Floats:
    """d less the neuron's mean, times the share of its variance over concepts that is not noise."""
    centered = subtract_neuron_means(auroc.d)
    variance = centered.var(axis=1, keepdims=True)
    signal = np.maximum(variance - np.mean(auroc.error**2), 0)
    return centered * np.divide(signal, variance, out=np.zeros_like(variance), where=variance > 0)


MEASURES: dict[str, Callable[[Auroc], Floats]] = {
    "cosine of d (auroc)": lambda a: _cosine(a.d),
    "d less each neuron's mean": lambda a: _cosine(subtract_neuron_means(a.d)),
    "sign(d) d^2": lambda a: _cosine(a.d * np.abs(a.d)),
    "d^3": lambda a: _cosine(a.d**3),
    "d shrunk by 1 - 1/z^2": lambda a: _cosine(a.d * np.maximum(0, 1 - 1 / np.maximum(a.z**2, 1e-9))),
    **{
        f"d, soft threshold at {k} SE": lambda a, k=k: _cosine(_soft(a, k))  # type: ignore[misc]
        for k in (1, 2, 3, 4)
    },
    **{
        f"d, hard threshold at {k} SE": lambda a, k=k: _cosine(  # type: ignore[misc]
            np.where(np.abs(a.z) > k, a.d, 0)
        )
        for k in (1, 2, 3, 4)
    },
    "empirical Bayes weights": lambda a: _cosine(_empirical_bayes(a)),
    "reliability weights": lambda a: _cosine(subtract_neuron_means(a.d) * a.reliability),
    "crossed halves of d": lambda a: cosine_from_products(_cross(*a.halves)),
    "crossed halves of sign(d) d^2 (auroc-halves)": lambda a: cosine_from_products(
        crossed_products(*a.halves)
    ),
}


def _cross(first: Floats, second: Floats) -> Floats:
    products = first.T @ second
    return np.asarray((products + products.T) / 2)


def read_auroc(store: duckdb.DuckDBPyConnection, pooling: str, members: tuple[Ints, Ints]) -> Auroc:
    """The AUROCs of a pooling; `members` are parallel arrays of sentences and their concepts."""
    ids, concepts = members
    n_sentences, n_concepts = int(ids.max()) + 1, int(concepts.max()) + 1
    half = split_half(ids, concepts, n_sentences, _SEED)
    parts = [np.arange(n_sentences), *(np.flatnonzero(half == number) for number in (0, 1))]
    labels = []
    for part in parts:
        is_in = np.isin(ids, part)
        of_part = np.searchsorted(part, ids[is_in])
        labels.append(labels_against_others(of_part, concepts[is_in], len(part), n_concepts))
    found: list[list[Floats]] = [[], [], []]
    layers = store.sql(
        "SELECT DISTINCT layer FROM activation_files WHERE site = 'mlp.hidden' ORDER BY ALL"
    )
    for (layer,) in layers.fetchall():
        of_layer = store.view("activations").filter(
            f"pooling = '{pooling}' AND layer = {layer} AND site = 'mlp.hidden' "
            "AND revision NOT LIKE 'random-init%'"
        )
        flat = of_layer.order("unit, sentence_id").project("value").fetchnumpy()["value"]
        values = flat.reshape(-1, n_sentences).astype(np.float16)
        for scores, part, of_part in zip(found, parts, labels, strict=True):
            scores.append(score_neurons(np.ascontiguousarray(values[:, part]), of_part).auroc - 0.5)
    d, first, second = map(np.concatenate, found)
    n_positive = np.bincount(concepts)
    error = np.sqrt((n_sentences + 1) / (12 * n_positive * (n_sentences - n_positive)))
    return Auroc(d, (first, second), error)


def main() -> None:
    """Print a table of the measures by pooling."""
    with storage.open(sys.argv[1]) as store:
        rows = store.sql(
            "SELECT concept, sentence_id FROM memberships WHERE role = 'positive'"
        ).fetchall()
        names = sorted({name for name, _ in rows})
        ids = np.array([number for _, number in rows])
        concepts = np.array([names.index(name) for name, _ in rows])
        human = load_judgments(builtin_human_set("men"), names).scores
        first, second = np.array([[names.index(name) for name in pair] for pair in human]).T
        scores = np.array(list(human.values()))
        query = "SELECT DISTINCT pooling FROM activation_files WHERE layer = 0 AND site = 'mlp.hidden'"
        poolings = sorted((pooling for (pooling,) in store.sql(query).fetchall()), key=POOLINGS.index)
        aurocs = [read_auroc(store, pooling, (ids, concepts)) for pooling in poolings]
    print(f"{len(human)} pairs of {len(names)} concepts")
    print(f"{'':46}" + "".join(f"{pooling:>13}" for pooling in poolings))
    for name, measure in MEASURES.items():
        line = ""
        for auroc in aurocs:
            similar = np.nan_to_num(measure(auroc)[first, second])
            rho = weighted_correlation("spearman", similar, scores, np.ones((1, len(scores))))[0]
            line += f"{rho:13.3f}"
        print(f"{name:46}{line}")


if __name__ == "__main__":
    main()
