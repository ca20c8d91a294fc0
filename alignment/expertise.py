"""How well each neuron detects each concept: average precision and AUROC of all concepts from one
sort per neuron.

A neuron's activations over all sentences are sorted once, highest first. One walk over that order
then updates, for each concept, the positives and negatives seen so far. Sentences with equal
activations form one threshold, as in scikit-learn's `average_precision_score` and `roc_auc_score`.

Expertise as average precision: Suau et al. 2022, arXiv 2110.02802, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.walk import Floats, Integers, walk

REFERENCE_PREVALENCE = 400 / 1400
"""Share of positives in the papers' data: 400 positive and 1,000 negative sentences a concept."""

_ROWS_AT_ONCE = 256
_LENGTHS = 10


@dataclass(frozen=True)
class Labels:
    """Which sentences are the positives and which the negatives of each concept.

    The positives are listed by sentence (compressed rows): sentence `s` is a positive of the
    concepts `positive_concepts[positive_starts[s]:positive_starts[s + 1]]`.

    The negatives are given in two ways that add up. A sentence that `shared` marks is a negative of
    every concept of which it is no positive; further negatives are listed just as the positives are.
    """

    n_concepts: int
    positive_starts: Integers
    positive_concepts: Integers
    shared: npt.NDArray[np.bool_]
    negative_starts: Integers
    negative_concepts: Integers

    @property
    def n_sentences(self) -> int:
        return len(self.positive_starts) - 1

    def positives(self) -> list[Integers]:
        """Sentences that are positives, for each concept."""
        return _by_concept(self.positive_starts, self.positive_concepts, self.n_concepts)

    def negatives(self) -> list[Integers]:
        """Sentences that are negatives, for each concept."""
        marked = np.flatnonzero(self.shared)
        listed = _by_concept(self.negative_starts, self.negative_concepts, self.n_concepts)
        return [
            np.union1d(np.setdiff1d(marked, own), extra)
            for own, extra in zip(self.positives(), listed, strict=True)
        ]


@dataclass(frozen=True)
class Scores:
    """Expertise of every (neuron, concept): three arrays of shape (neurons, concepts)."""

    ap: Floats
    ap_raw: Floats
    auroc: Floats


def labels_against_others(
    sentences: Integers,
    concepts: Integers,
    n_sentences: int,
    n_concepts: int,
    sampled: int | None = None,
    seed: int = 0,
) -> Labels:
    """Labels in which the negatives of a concept are the positives of all the others.

    `sentences[i]` is a positive of `concepts[i]`; a sentence may belong to several concepts, and is
    never a negative of its own. With `sampled`, each concept gets that many negatives, drawn without
    replacement and as evenly over the other concepts as their sizes allow.

    Raises ValueError for a concept without positives or without negatives, or with fewer negatives
    than asked for.
    """
    starts, members = _compress(sentences, concepts, n_sentences)
    positives = _by_concept(starts, members, n_concepts)
    labelled = np.diff(starts) > 0
    for concept, own in enumerate(positives):
        if not len(own):
            raise ValueError(f"concept {concept} has no positive sentence")
        if len(own) == labelled.sum():
            raise ValueError(f"concept {concept} has no negative sentence")
    if sampled is None:
        no_starts, nothing = np.zeros(n_sentences + 1, np.int64), np.zeros(0, np.int64)
        return Labels(n_concepts, starts, members, labelled, no_starts, nothing)
    drawn = [
        _draw_evenly(positives, concept, sampled, np.random.default_rng([seed, concept]))
        for concept in range(n_concepts)
    ]
    negative_starts, negative_members = _compress(
        np.concatenate(drawn), np.repeat(np.arange(n_concepts), sampled), n_sentences
    )
    unmarked = np.zeros(n_sentences, np.bool_)
    return Labels(n_concepts, starts, members, unmarked, negative_starts, negative_members)


def labels_of_own(
    sentences: Integers,
    concepts: Integers,
    negative_sentences: Integers,
    negative_concepts: Integers,
    n_sentences: int,
    n_concepts: int,
) -> Labels:
    """Labels in which each concept has negatives of its own: `negative_sentences[i]` is one of
    `negative_concepts[i]`. No other sentence is a negative.

    Raises ValueError for a concept without positives or without negatives, and for a sentence that is
    both of one concept.
    """
    starts, members = _compress(sentences, concepts, n_sentences)
    negative_starts, negatives = _compress(negative_sentences, negative_concepts, n_sentences)
    unmarked = np.zeros(n_sentences, np.bool_)
    labels = Labels(n_concepts, starts, members, unmarked, negative_starts, negatives)
    _check_own(labels)
    return labels


def labels_against_pool(
    sentences: Integers, concepts: Integers, pool: Integers, n_sentences: int, n_concepts: int
) -> Labels:
    """Labels in which the sentences of a pool are the negatives of every concept, and no others are.

    Raises ValueError for a concept without positives, an empty pool, and a positive in the pool.
    """
    starts, members = _compress(sentences, concepts, n_sentences)
    shared = np.zeros(n_sentences, np.bool_)
    shared[pool] = True
    if (shared & (np.diff(starts) > 0)).any():
        raise ValueError("a positive sentence is in the pool of negatives")
    no_starts, nothing = np.zeros(n_sentences + 1, np.int64), np.zeros(0, np.int64)
    labels = Labels(n_concepts, starts, members, shared, no_starts, nothing)
    _check_own(labels)
    return labels


def _check_own(labels: Labels) -> None:
    pairs = zip(labels.positives(), labels.negatives(), strict=True)
    for concept, (positives, negatives) in enumerate(pairs):
        if not len(positives):
            raise ValueError(f"concept {concept} has no positive sentence")
        if not len(negatives):
            raise ValueError(f"concept {concept} has no negative sentence")
        if np.intersect1d(positives, negatives).size:
            raise ValueError(f"a sentence is a positive and a negative of concept {concept}")


def labels_matched_in_length(
    sentences: Integers,
    concepts: Integers,
    lengths: Integers,
    n_concepts: int,
    seed: int = 0,
) -> Labels:
    """Labels in which each concept's negatives are as long as its positives.

    `sentences[i]` is a positive of `concepts[i]`; `lengths` has one number a sentence. Lengths are cut
    at their deciles; from each part as many sentences of other concepts are drawn, without replacement,
    as keep the shares that the parts have among the positives, and the most that do.

    Raises ValueError for a concept without positives, or for which no negative is long enough.
    """
    starts, members = _compress(sentences, concepts, len(lengths))
    labelled = np.flatnonzero(np.diff(starts) > 0)
    cuts = np.unique(np.quantile(lengths[labelled], np.arange(1, _LENGTHS) / _LENGTHS))
    part = np.searchsorted(cuts, lengths, side="left")
    drawn = []
    for concept, own in enumerate(_by_concept(starts, members, n_concepts)):
        if not len(own):
            raise ValueError(f"concept {concept} has no positive sentence")
        random = np.random.default_rng([seed, concept])
        others = random.permutation(np.setdiff1d(labelled, own))
        wanted = np.bincount(part[own], minlength=_LENGTHS)
        there = np.bincount(part[others], minlength=_LENGTHS)
        times = (there[wanted > 0] / wanted[wanted > 0]).min()
        counts = np.floor(wanted * times).astype(np.int64)
        if not counts.any():
            raise ValueError(f"concept {concept} has no negatives as long as its positives")
        kept = [others[part[others] == each][:count] for each, count in enumerate(counts)]
        drawn.append(np.concatenate(kept))
    sizes = [len(each) for each in drawn]
    negative_starts, negative_members = _compress(
        np.concatenate(drawn), np.repeat(np.arange(n_concepts), sizes), len(lengths)
    )
    unmarked = np.zeros(len(lengths), np.bool_)
    return Labels(n_concepts, starts, members, unmarked, negative_starts, negative_members)


def split_half(sentences: Integers, concepts: Integers, n_sentences: int, seed: int) -> Integers:
    """The half, 0 or 1, that each sentence falls into: half of each concept's sentences, by lot.

    `sentences[i]` is a positive of `concepts[i]`; a sentence of several concepts is dealt with the first
    of them.
    """
    random = np.random.default_rng(seed)
    first_of = np.full(n_sentences, -1)
    first_of[sentences[::-1]] = concepts[::-1]
    order = random.permutation(n_sentences)
    order = order[np.argsort(first_of[order], kind="stable")]
    # dealt in turn, each concept from where the one before stopped
    half: Integers = np.empty(n_sentences, np.int64)
    half[order] = np.arange(n_sentences) % 2
    return half


def expertise(
    values: npt.NDArray[np.floating[Any]],
    labels: Labels,
    prevalence: float = REFERENCE_PREVALENCE,
) -> Scores:
    """Average precision and AUROC of every neuron for every concept.

    `values` has shape (neurons, sentences), in float16 or float32. `ap` weighs the negatives so that
    the share of positives is `prevalence` for every concept: precision = tp / (tp + w fp) with
    w = (positives / negatives) (1 - prevalence) / prevalence; `ap_raw` counts each sentence once.
    They equal scikit-learn's `average_precision_score` with and without those sample weights.

    Raises ValueError for values that are not finite or do not fit the labels.
    """
    if values.ndim != 2 or values.shape[1] != labels.n_sentences:
        raise ValueError(
            f"values have shape {values.shape}; expected (neurons, {labels.n_sentences} sentences)"
        )
    if not 0 < prevalence < 1:
        raise ValueError(f"prevalence is {prevalence}; expected a number between 0 and 1")
    n_positive = np.bincount(labels.positive_concepts, minlength=labels.n_concepts)
    marked = np.repeat(labels.shared, np.diff(labels.positive_starts))
    marked_positive = np.bincount(labels.positive_concepts[marked], minlength=labels.n_concepts)
    listed = np.bincount(labels.negative_concepts, minlength=labels.n_concepts)
    n_negative = labels.shared.sum() - marked_positive + listed
    weight = n_positive / n_negative * (1 - prevalence) / prevalence

    shape = (len(values), labels.n_concepts)
    scores = Scores(np.empty(shape), np.empty(shape), np.empty(shape))
    for first in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        order, shift = _sorted_keys(values[rows])
        walk(
            order,
            np.uint64(shift),
            labels.positive_starts,
            labels.positive_concepts,
            labels.shared,
            labels.negative_starts,
            labels.negative_concepts,
            n_positive,
            n_negative,
            weight,
            scores.ap[rows],
            scores.ap_raw[rows],
            scores.auroc[rows],
        )
    return scores


def on_and_off(
    values: npt.NDArray[np.floating[Any]], positives: Integers, negatives: Integers
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Median and 90th percentile on the positives, and mean on the negatives, of each neuron.

    `values` has shape (neurons, sentences). The median is the value that steering forces a neuron to
    (Suau et al. 2022, section 4).
    """
    on = values[:, positives].astype(np.float32)
    p50, p90 = np.quantile(on, [0.5, 0.9], axis=1)
    off = values[:, negatives].mean(axis=1, dtype=np.float64)
    return p50.astype(np.float32), p90.astype(np.float32), off.astype(np.float32)


def _sorted_keys(
    values: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.unsignedinteger[Any]], int]:
    """Each row's sentences, highest value first, as (key << shift | sentence), and the shift.

    The key keeps the order of the floats reversed, so an ordinary integer sort, which numpy
    vectorises, puts the highest first.
    """
    formats: dict[np.dtype[Any], tuple[type[np.unsignedinteger[Any]], int, int]] = {
        np.dtype(np.float16): (np.uint16, 0x8000, 0x7C00),
        np.dtype(np.float32): (np.uint32, 0x80000000, 0x7F800000),
    }
    if values.dtype not in formats:
        raise ValueError(f"values are {values.dtype}; expected float16 or float32")
    kind, sign, exponent = formats[values.dtype]
    bits = values.view(kind)
    if ((bits & kind(exponent)) == exponent).any():
        raise ValueError("values are not finite")
    # negative zero equals zero, so both get the key of zero
    key = np.where(bits > sign, bits, ~bits & kind(sign - 1))
    n_sentences = values.shape[1]
    narrow = kind is np.uint16 and n_sentences <= 1 << 16
    packed_type: type[np.unsignedinteger[Any]] = np.uint32 if narrow else np.uint64
    shift = 16 if narrow else 32
    packed: npt.NDArray[Any] = key.astype(packed_type) << packed_type(shift)
    packed |= np.arange(n_sentences, dtype=packed_type)
    packed.sort(axis=1)
    return packed, shift


def _compress(sentences: Integers, concepts: Integers, n_sentences: int) -> tuple[Integers, Integers]:
    """Pairs of (sentence, concept) as compressed rows over the sentences."""
    order = np.lexsort((concepts, sentences))
    starts = np.zeros(n_sentences + 1, np.int64)
    np.cumsum(np.bincount(sentences, minlength=n_sentences), out=starts[1:])
    return starts, np.asarray(concepts, np.int64)[order]


def _by_concept(starts: Integers, members: Integers, n_concepts: int) -> list[Integers]:
    sentences = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.argsort(members, kind="stable")
    cuts = np.cumsum(np.bincount(members, minlength=n_concepts))[:-1]
    return np.split(sentences[order], cuts)


def _draw_evenly(
    positives: list[Integers], concept: int, wanted: int, random: np.random.Generator
) -> Integers:
    """`wanted` sentences of the other concepts, one of each concept in turn while they last."""
    own = positives[concept]
    queues = [
        random.permutation(np.setdiff1d(sentences, own))
        for other, sentences in enumerate(positives)
        if other != concept
    ]
    turn = np.concatenate([np.arange(len(queue)) for queue in queues])
    tie = random.random(len(turn))
    candidates = np.concatenate(queues)[np.lexsort((tie, turn))]
    _, first_seen = np.unique(candidates, return_index=True)
    distinct: Integers = candidates[np.sort(first_seen)]
    if len(distinct) < wanted:
        raise ValueError(
            f"concept {concept} has {len(distinct)} possible negatives; {wanted} were asked for"
        )
    return distinct[:wanted]
