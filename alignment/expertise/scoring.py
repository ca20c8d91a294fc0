"""How well each neuron detects each concept: average precision and AUROC of all concepts from one
sort per neuron, and how well neurons do by chance.

A neuron's activations over all sentences are sorted once, highest first. One walk over that order
then updates, for each concept, the positives and negatives seen so far. Sentences with equal
activations form one threshold, as in scikit-learn's `average_precision_score` and `roc_auc_score`.

Expertise as average precision: Suau et al. 2022, arXiv 2110.02802, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.expertise.ap_kernel import (
    STEPS,
    Floats,
    Integers,
    nothing_seen,
    nothing_seen_shuffled,
    relabel,
    walk,
    walk_shuffled,
)
from alignment.expertise.label_permutations import Shuffles
from alignment.expertise.labels import Labels
from alignment.expertise.sorted_chunks import FORMATS, SORTED_AT_ONCE, Room, Values, pieces

REFERENCE_PREVALENCE = 400 / 1400
"""Share of positives in the papers' data: 400 positive and 1,000 negative sentences a concept."""

_SORTED_BYTES = 4 << 20
"""What is sorted and walked at once, unless a single neuron is more: little enough for the caches."""


@dataclass(frozen=True)
class Scores:
    """Expertise of every (neuron, concept): three arrays of shape (neurons, concepts)."""

    ap: Floats
    ap_raw: Floats
    auroc: Floats


@dataclass(frozen=True)
class Tally:
    """Neurons counted by their AP, under the labels as they are (row 0) and under shuffled ones.

    `best`, of shape (1 + shuffles, concepts), is the highest AP; `above`, of shape (1 + shuffles,
    concepts, STEPS), the number of neurons with an AP strictly above 0, 1/STEPS, 2/STEPS, ...
    """

    best: Floats
    above: Integers

    def with_more(self, other: Tally) -> Tally:
        """The tally of these neurons and of others."""
        return Tally(np.maximum(self.best, other.best), self.above + other.above)


def expertise(values: Values, labels: Labels, prevalence: float = REFERENCE_PREVALENCE) -> Scores:
    """Average precision and AUROC of every neuron for every concept.

    `values` has shape (neurons, sentences), in float16 or float32. `ap` weighs the negatives so that
    the share of positives is `prevalence` for every concept: precision = tp / (tp + w fp) with
    w = (positives / negatives) (1 - prevalence) / prevalence; `ap_raw` counts each sentence once.
    They equal scikit-learn's `average_precision_score` with and without those sample weights.

    Raises ValueError for values that are not finite or do not fit the labels.
    """
    return _scores(values, labels, prevalence, None, np.empty)[0]


def expertise_and_chance(
    values: Values,
    labels: Labels,
    shuffles: Shuffles,
    prevalence: float = REFERENCE_PREVALENCE,
    room: Room = np.empty,
) -> tuple[Scores, Tally]:
    """Expertise, and how many neurons are how good under labels that mean nothing.

    One sort serves all shuffles, or as many as are held at once. `room` gives the arrays that grow with
    the sentences.
    """
    return _scores(values, labels, prevalence, shuffles, room)


def check(values: Values, labels: Labels, prevalence: float) -> None:
    """Raise ValueError for what `expertise` cannot take, but for values that are not finite."""
    if values.ndim != 2 or values.shape[1] != labels.n_sentences:
        raise ValueError(
            f"values have shape {values.shape}; expected (neurons, {labels.n_sentences} sentences)"
        )
    if values.dtype not in FORMATS:
        raise ValueError(f"values are {values.dtype}; expected float16 or float32")
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence is {prevalence}; expected a number between 0 and 1")


def weight_of_negatives(labels: Labels, prevalence: float) -> Floats:
    """What a negative of each concept weighs, so that the share of positives is `prevalence`."""
    weight: Floats = labels.n_positive / labels.n_negative * (1 - prevalence) / prevalence
    return weight


def tally(ap: Floats) -> Tally:
    """The tally of APs of shape (neurons, concepts), without shuffles."""
    counts = np.zeros((1, ap.shape[1], STEPS), np.int64)
    step = np.searchsorted(np.arange(STEPS) / STEPS, ap, side="left") - 1
    np.add.at(counts[0], (np.broadcast_to(np.arange(ap.shape[1]), ap.shape), step), 1)
    return Tally(ap.max(axis=0, initial=0.0, keepdims=True), _above(counts))


def joined(tallies: Sequence[Tally]) -> Tally:
    """Tallies of the same neurons under one labelling after the other, as one."""
    best = np.concatenate([each.best for each in tallies])
    return Tally(best, np.concatenate([each.above for each in tallies]))


def on_and_off(
    values: Values, labels: Labels, neurons: Integers, concepts: Integers, room: Room = np.empty
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Median and 90th percentile on the positives, and mean on the negatives, of some neurons for some
    concepts: of the neuron `neurons[i]` for `concepts[i]`.

    `values` has shape (neurons, sentences); `room` gives the arrays that grow with them. The median is
    the value that steering forces a neuron to (Suau et al. 2022, section 4).
    """
    p50, p90, off = (np.empty(len(neurons), np.float32) for _ in range(3))
    shared = values.sum(axis=1, dtype=np.float64, where=labels.shared)
    by_concept = np.argsort(concepts, kind="stable")
    cuts = np.searchsorted(concepts[by_concept], np.arange(labels.n_concepts + 1))
    positives, listed = labels.positives, labels.listed_negatives
    own = labels.kinds.own
    for concept in np.unique(concepts):
        pairs = by_concept[cuts[concept] : cuts[concept + 1]]
        rows = neurons[pairs]
        on = room((len(rows), len(positives[concept])), np.float32)
        for some in _some(positives[concept]):
            on[:, some] = values[np.ix_(rows, positives[concept][some])]
        total = shared[rows]
        for some in _some(listed[concept]):
            total += values[np.ix_(rows, listed[concept][some])].sum(axis=1, dtype=np.float64)
        # its own positives are no negatives, though they are marked as everybody's
        total -= own[concept] * on.sum(axis=1, dtype=np.float64)
        off[pairs] = total / labels.n_negative[concept]
        p50[pairs], p90[pairs] = np.quantile(on, [0.5, 0.9], axis=1, overwrite_input=True)
    return p50, p90, off


def _some(sentences: Integers) -> list[slice]:
    """Parts of a list of sentences that are gathered at once."""
    return [slice(first, first + SORTED_AT_ONCE) for first in range(0, len(sentences), SORTED_AT_ONCE)]


def _scores(
    values: Values, labels: Labels, prevalence: float, shuffles: Shuffles | None, room: Room
) -> tuple[Scores, Tally]:
    check(values, labels, prevalence)
    kinds, n_concepts = labels.kinds, labels.n_concepts
    weight = np.append(weight_of_negatives(labels, prevalence), 0.0)
    tables = (kinds.first, kinds.mark, kinds.more_starts, kinds.more, kinds.listed_starts, kinds.listed)
    known = (*tables, kinds.own, weight)
    shape = (len(values), n_concepts)
    ap, ap_raw, above = np.empty(shape), np.empty(shape), np.empty(shape, np.int64)
    seen = nothing_seen(n_concepts)
    n_shuffles = len(shuffles) if shuffles else 0
    best = np.zeros((n_shuffles, n_concepts))
    counts = np.zeros((n_shuffles, n_concepts, STEPS), np.int64)
    at_once = max(1, _SORTED_BYTES // (8 * max(1, labels.n_sentences)))
    for given in shuffles.given(room) if shuffles else [None]:
        if given is not None:
            part = given.shuffles
            seen_shuffled = nothing_seen_shuffled(part.stop - part.start, n_concepts)
        for first in range(0, len(values), at_once):
            rows = slice(first, first + at_once)
            # without shuffles the sort may forget which sentence is which: only its kind matters
            for order, shift, *step in pieces(values[rows], kinds.of if given is None else None):
                if given is not None:
                    walk_shuffled(
                        order, shift, *step, given.places, given.kinds, *known[1:], labels.n_positive,
                        seen_shuffled, best[part], counts[part],
                    )  # fmt: skip
                    if part.start:
                        # the labels as they are went with the first shuffles
                        continue
                    relabel(order, shift, kinds.of)
                walk(order, shift, *step, *known, seen, ap[rows], ap_raw[rows], above[rows])
    ap /= labels.n_positive
    ap_raw /= labels.n_positive
    auroc = 1 - above / (2 * labels.n_positive * labels.n_negative)
    return Scores(ap, ap_raw, auroc), joined([tally(ap), Tally(best, _above(counts))])


def _above(counts: Integers) -> Integers:
    """From how many lie in each step to how many lie above its lower end."""
    return np.flip(np.cumsum(np.flip(counts, axis=-1), axis=-1), axis=-1)
