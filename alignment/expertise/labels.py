"""Which sentences are positives and negatives of which concepts, for each way to choose negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from alignment.arrays import Bools, Ints, UInt32s, UInts

_N_LENGTH_BINS = 10


class SentenceGroups(NamedTuple):
    """Sentences by concept: `sentences[starts[c]:starts[c + 1]]` are those of concept c."""

    sentences: Ints
    starts: Ints

    def split(self) -> list[Ints]:
        """The sentences of each concept."""
        return np.split(self.sentences, self.starts[1:-1])


@dataclass(frozen=True)
class Labels:
    """The positives and negatives of each concept.

    Positives are in compressed sparse rows (CSR): sentence `s` is a positive of the concepts
    `positive_concepts[positive_starts[s]:positive_starts[s + 1]]`.

    Negatives are the union of two sets. A sentence `in_shared_pool` is a negative of every concept of
    which it is not a positive; further negatives are listed in CSR, as positives are.
    """

    n_concepts: int
    positive_starts: Ints
    positive_concepts: Ints
    in_shared_pool: Bools
    negative_starts: Ints
    negative_concepts: Ints

    @property
    def n_sentences(self) -> int:
        return len(self.positive_starts) - 1

    @cached_property
    def grouped_positives(self) -> SentenceGroups:
        """The positive sentences, by concept."""
        return _group_by_concept(self.positive_starts, self.positive_concepts, self.n_concepts)

    @cached_property
    def grouped_negatives(self) -> SentenceGroups:
        """The sentences listed as negatives, by concept."""
        return _group_by_concept(self.negative_starts, self.negative_concepts, self.n_concepts)

    @property
    def positives(self) -> list[Ints]:
        """The positive sentences of each concept."""
        return self.grouped_positives.split()

    @property
    def listed_negatives(self) -> list[Ints]:
        """The sentences listed as negatives of each concept."""
        return self.grouped_negatives.split()

    @property
    def negatives(self) -> list[Ints]:
        """All negative sentences of each concept."""
        pool = np.flatnonzero(self.in_shared_pool)
        return [
            np.union1d(np.setdiff1d(pool, positives), listed)
            for positives, listed in zip(self.positives, self.listed_negatives, strict=True)
        ]

    def take(self, sentences: Ints | UInt32s) -> Labels:
        """Labels in which sentence s has the labels of sentence `sentences[s]`."""
        return Labels(
            self.n_concepts,
            *_select_rows(self.positive_starts, self.positive_concepts, sentences),
            self.in_shared_pool[sentences],
            *_select_rows(self.negative_starts, self.negative_concepts, sentences),
        )

    def spread(self, sentences: Ints, n_sentences: int) -> Labels:
        """Labels of `n_sentences` sentences: sentence `sentences[s]` has the labels of sentence s, and
        all others are unlabeled."""
        unlabeled = self.n_sentences
        extended = Labels(
            self.n_concepts,
            np.append(self.positive_starts, self.positive_starts[-1]),
            self.positive_concepts,
            np.append(self.in_shared_pool, False),
            np.append(self.negative_starts, self.negative_starts[-1]),
            self.negative_concepts,
        )
        sources = np.full(n_sentences, unlabeled)
        sources[sentences] = np.arange(unlabeled)
        return extended.take(sources)

    @cached_property
    def n_positive(self) -> Ints:
        """The number of positives of each concept."""
        return np.bincount(self.positive_concepts, minlength=self.n_concepts)

    @cached_property
    def n_negative(self) -> Ints:
        """The number of negatives of each concept."""
        listed = np.bincount(self.negative_concepts, minlength=self.n_concepts)
        return np.asarray(self.in_shared_pool.sum() - self._n_positive_in_pool + listed, np.int64)

    @cached_property
    def _n_positive_in_pool(self) -> Ints:
        in_pool = np.repeat(self.in_shared_pool, np.diff(self.positive_starts))
        return np.bincount(self.positive_concepts[in_pool], minlength=self.n_concepts)

    @cached_property
    def patterns(self) -> LabelPatterns:
        """The distinct label patterns of the sentences.

        Raises:
            ValueError: if some but not all positives of a concept are in the shared pool.
        """
        in_pool = self._n_positive_in_pool > 0
        if (self._n_positive_in_pool[in_pool] != self.n_positive[in_pool]).any():
            raise ValueError("some positives of a concept are shared negatives and others are not")
        n_positive = np.diff(self.positive_starts)
        n_listed = np.diff(self.negative_starts)
        first = np.full(self.n_sentences, self.n_concepts)
        first[n_positive > 0] = self.positive_concepts[self.positive_starts[:-1][n_positive > 0]]
        code = 2 * first + self.in_shared_pool
        rows: dict[tuple[bytes, bytes, bool], int] = {}
        for sentence in np.flatnonzero((n_positive > 1) | (n_listed > 0)):
            row = (
                self.positive_concepts[slice(*self.positive_starts[sentence : sentence + 2])].tobytes(),
                self.negative_concepts[slice(*self.negative_starts[sentence : sentence + 2])].tobytes(),
                bool(self.in_shared_pool[sentence]),
            )
            code[sentence] = 2 * (self.n_concepts + 1) + rows.setdefault(row, len(rows))
        _, example, pattern = np.unique(code, return_index=True, return_inverse=True)
        starts, concepts = _select_rows(self.positive_starts, self.positive_concepts, example)
        has_positive = np.diff(starts) > 0
        is_further = np.ones(len(concepts), np.bool_)
        is_further[starts[:-1][has_positive]] = False
        listed_starts, listed = _select_rows(self.negative_starts, self.negative_concepts, example)
        return LabelPatterns(
            pattern=pattern.astype(np.uint16 if len(example) <= 1 << 16 else np.uint32),
            first_concept=first[example].astype(np.uint32),
            in_shared_pool=self.in_shared_pool[example].astype(np.int64),
            more_starts=np.append(0, np.cumsum(is_further))[starts],
            more_concepts=concepts[is_further].astype(np.uint32),
            listed_starts=listed_starts,
            listed_concepts=listed.astype(np.uint32),
            positives_in_pool=np.append(in_pool, False).astype(np.int64),
        )


@dataclass(frozen=True)
class LabelPatterns:
    """The distinct label patterns: sentences with the same labels are interchangeable in a score.

    `pattern` has the pattern of each sentence. A pattern has a first positive concept (`n_concepts` for
    none), further ones in CSR, and the concepts of which its sentences are listed negatives, in CSR; its
    `in_shared_pool` is 1 if they are shared negatives. `positives_in_pool` is 1 for concepts whose
    positives are in the shared pool, with a last entry for "none".
    """

    pattern: UInts
    first_concept: UInt32s
    in_shared_pool: Ints
    more_starts: Ints
    more_concepts: UInt32s
    listed_starts: Ints
    listed_concepts: UInt32s
    positives_in_pool: Ints

    @property
    def is_single_label(self) -> bool:
        """Whether the first concept determines the pattern."""
        has_lists = len(self.more_concepts) or len(self.listed_concepts)
        return not has_lists and bool(self.in_shared_pool.all())


def labels_against_others(
    sentences: Ints,
    concepts: Ints,
    n_sentences: int,
    n_concepts: int,
    sampled: int | None = None,
    seed: int = 0,
) -> Labels:
    """Labels in which the negatives of a concept are the positives of all others.

    `sentences[i]` is a positive of `concepts[i]`; a sentence may belong to several concepts, and is
    never a negative of any of them. With `sampled`, each concept gets that many negatives, drawn without
    replacement and as evenly over the other concepts as their sizes allow.

    Raises:
        ValueError: if a concept has no positives, no negatives, or fewer than `sampled` negatives.
    """
    starts, members = _to_csr(sentences, concepts, n_sentences)
    labels = _with_shared_pool(n_concepts, starts, members, np.diff(starts) > 0)
    if sampled is None:
        return labels
    positives = labels.positives
    draws = [
        _sample_evenly(positives, concept, sampled, np.random.default_rng([seed, concept]))
        for concept in range(n_concepts)
    ]
    return _with_listed_negatives(starts, members, draws)


def labels_from_own_negatives(
    sentences: Ints,
    concepts: Ints,
    negative_sentences: Ints,
    negative_concepts: Ints,
    n_sentences: int,
    n_concepts: int,
) -> Labels:
    """Labels in which each concept has its own negatives.

    `negative_sentences[i]` is a negative of `negative_concepts[i]`; no other sentence is a negative.

    Raises:
        ValueError: if a concept has no positives or no negatives, or a sentence is both for one concept.
    """
    csr = _to_csr(sentences, concepts, n_sentences)
    negative_csr = _to_csr(negative_sentences, negative_concepts, n_sentences)
    return _validated(Labels(n_concepts, *csr, np.zeros(n_sentences, np.bool_), *negative_csr))


def labels_against_pool(
    sentences: Ints, concepts: Ints, pool: Ints, n_sentences: int, n_concepts: int
) -> Labels:
    """Labels in which the negatives of every concept are the sentences of a pool.

    Raises:
        ValueError: if a concept has no positives, the pool is empty, or a positive is in the pool.
    """
    starts, members = _to_csr(sentences, concepts, n_sentences)
    in_pool = np.zeros(n_sentences, np.bool_)
    in_pool[pool] = True
    if (in_pool & (np.diff(starts) > 0)).any():
        raise ValueError("a positive sentence is in the pool of negatives")
    return _with_shared_pool(n_concepts, starts, members, in_pool)


def labels_against_rest(sentences: Ints, concepts: Ints, n_sentences: int, n_concepts: int) -> Labels:
    """Labels in which the negatives of a concept are all sentences that are not its positives.

    `sentences[i]` is a positive of `concepts[i]`; a sentence may belong to several concepts, or to none.

    Raises:
        ValueError: if a concept has no positives or no negatives.
    """
    starts, members = _to_csr(sentences, concepts, n_sentences)
    return _with_shared_pool(n_concepts, starts, members, np.ones(n_sentences, np.bool_))


def draw_positives(sentences: Ints, concepts: Ints, counts: Sequence[int], seed: int) -> Bools:
    """Which positives remain if each concept c keeps `counts[c]` of them, drawn at random.

    `sentences[i]` is a positive of `concepts[i]`. A sentence of several concepts remains, so that no
    concept loses one for another's sake.

    Raises:
        ValueError: if a concept has fewer positives, or more in common with others.
    """
    is_kept = np.ones(len(sentences), np.bool_)
    is_alone = np.bincount(sentences)[sentences] == 1
    for concept, count in enumerate(counts):
        own = concepts == concept
        surplus, alone = own.sum() - count, np.flatnonzero(own & is_alone)
        if not 0 <= surplus <= len(alone):
            raise ValueError(f"concept {concept} cannot be reduced to {count} positive sentences")
        is_kept[np.random.default_rng([seed, concept]).choice(alone, surplus, replace=False)] = False
    return is_kept


def _validated(labels: Labels) -> Labels:
    groups = zip(labels.positives, labels.listed_negatives, strict=True)
    for concept, (positives, listed) in enumerate(groups):
        if not len(positives):
            raise ValueError(f"concept {concept} has no positive sentence")
        if not labels.n_negative[concept]:
            raise ValueError(f"concept {concept} has no negative sentence")
        if np.intersect1d(positives, listed).size:
            raise ValueError(f"a sentence is both a positive and a negative of concept {concept}")
    return labels


def labels_matched_by_length(
    sentences: Ints, concepts: Ints, lengths: Ints, n_concepts: int, seed: int = 0
) -> Labels:
    """Labels in which each concept's negatives match its positives in length.

    `sentences[i]` is a positive of `concepts[i]`; `lengths` has one entry per sentence. Lengths are
    binned at their deciles; from each bin, sentences of other concepts are drawn without replacement in
    proportion to the positives in that bin, as many as this allows.

    Raises:
        ValueError: if a concept has no positives, or no negatives of matching length.
    """
    starts, members = _to_csr(sentences, concepts, len(lengths))
    labeled = np.flatnonzero(np.diff(starts) > 0)
    edges = np.unique(np.quantile(lengths[labeled], np.arange(1, _N_LENGTH_BINS) / _N_LENGTH_BINS))
    bins = np.searchsorted(edges, lengths, side="left")
    draws = []
    for concept, own in enumerate(_group_by_concept(starts, members, n_concepts).split()):
        if not len(own):
            raise ValueError(f"concept {concept} has no positive sentence")
        rng = np.random.default_rng([seed, concept])
        others = rng.permutation(np.setdiff1d(labeled, own))
        target = np.bincount(bins[own], minlength=_N_LENGTH_BINS)
        available = np.bincount(bins[others], minlength=_N_LENGTH_BINS)
        ratio = (available[target > 0] / target[target > 0]).min()
        counts = np.floor(target * ratio).astype(np.int64)
        if not counts.any():
            raise ValueError(f"concept {concept} has no negatives as long as its positives")
        matches = [others[bins[others] == number][:count] for number, count in enumerate(counts)]
        draws.append(np.concatenate(matches))
    return _with_listed_negatives(starts, members, draws)


def split_half(sentences: Ints, concepts: Ints, n_sentences: int, seed: int) -> Ints:
    """Assign each sentence to half 0 or 1, so that each concept's sentences are halved at random.

    `sentences[i]` is a positive of `concepts[i]`; a sentence of several concepts counts for the first.
    """
    rng = np.random.default_rng(seed)
    first_concept = np.full(n_sentences, -1)
    first_concept[sentences[::-1]] = concepts[::-1]
    order = rng.permutation(n_sentences)
    order = order[np.argsort(first_concept[order], kind="stable")]
    # alternating across concepts too, so that the halves differ by at most one sentence in total
    half = np.empty(n_sentences, np.int64)
    half[order] = np.arange(n_sentences) % 2
    return half


def _to_csr(sentences: Ints, concepts: Ints, n_sentences: int) -> tuple[Ints, Ints]:
    """(sentence, concept) pairs as (starts, concepts) in CSR, one row per sentence."""
    order = np.lexsort((concepts, sentences))
    starts = np.append(0, np.cumsum(np.bincount(sentences, minlength=n_sentences)))
    return starts, np.asarray(concepts, np.int64)[order]


def _with_shared_pool(n_concepts: int, starts: Ints, members: Ints, in_pool: Bools) -> Labels:
    no_listed = np.zeros(len(starts), np.int64), np.zeros(0, np.int64)
    return _validated(Labels(n_concepts, starts, members, in_pool, *no_listed))


def _with_listed_negatives(starts: Ints, members: Ints, negatives: Sequence[Ints]) -> Labels:
    """Labels from positives in CSR and the negatives of each concept."""
    n_concepts, n_sentences = len(negatives), len(starts) - 1
    concepts = np.repeat(np.arange(n_concepts), [len(sentences) for sentences in negatives])
    negative_csr = _to_csr(np.concatenate(negatives), concepts, n_sentences)
    return Labels(n_concepts, starts, members, np.zeros(n_sentences, np.bool_), *negative_csr)


def _group_by_concept(starts: Ints, members: Ints, n_concepts: int) -> SentenceGroups:
    sentences = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.argsort(members, kind="stable")
    sizes = np.bincount(members, minlength=n_concepts)
    return SentenceGroups(sentences[order], np.append(0, np.cumsum(sizes)))


def _sample_evenly(positives: list[Ints], concept: int, count: int, rng: np.random.Generator) -> Ints:
    """`count` sentences of the other concepts, one per concept in turn while they last."""
    # the concept's own queue is empty
    queues = [rng.permutation(np.setdiff1d(queue, positives[concept])) for queue in positives]
    turn = np.concatenate([np.arange(len(queue)) for queue in queues])
    tie_breaker = rng.random(len(turn))
    candidates = np.concatenate(queues)[np.lexsort((tie_breaker, turn))]
    _, first_index = np.unique(candidates, return_index=True)
    distinct: Ints = candidates[np.sort(first_index)]
    if len(distinct) < count:
        raise ValueError(
            f"concept {concept} has {len(distinct)} possible negatives; {count} were requested"
        )
    return distinct[:count]


def _select_rows(starts: Ints, members: Ints, rows: Ints | UInt32s) -> tuple[Ints, Ints]:
    """The selected rows of a CSR structure, in that order."""
    sizes = np.diff(starts)[rows]
    new_starts = np.append(0, np.cumsum(sizes))
    within = np.arange(new_starts[-1]) - np.repeat(new_starts[:-1], sizes)
    return new_starts, members[np.repeat(starts[:-1][rows], sizes) + within]
