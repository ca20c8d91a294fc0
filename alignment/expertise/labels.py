"""Which sentences are positives and negatives of which concepts, in each of the ways that negatives are
had."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from alignment.expertise.ap_kernel import Ids, Integers, Unsigned

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

    @cached_property
    def positives(self) -> list[Integers]:
        """Sentences that are positives, for each concept."""
        return _by_concept(self.positive_starts, self.positive_concepts, self.n_concepts)

    @cached_property
    def listed_negatives(self) -> list[Integers]:
        """Sentences that are listed as negatives, for each concept."""
        return _by_concept(self.negative_starts, self.negative_concepts, self.n_concepts)

    @property
    def negatives(self) -> list[Integers]:
        """Sentences that are negatives, for each concept."""
        marked = np.flatnonzero(self.shared)
        return [
            np.union1d(np.setdiff1d(marked, own), extra)
            for own, extra in zip(self.positives, self.listed_negatives, strict=True)
        ]

    def of(self, sentences: Integers | Ids) -> Labels:
        """The labels with those of sentence `sentences[s]` given to each sentence s."""
        positive_starts, positive_concepts = _taken(
            self.positive_starts, self.positive_concepts, sentences
        )
        negative_starts, negative_concepts = _taken(
            self.negative_starts, self.negative_concepts, sentences
        )
        return Labels(
            self.n_concepts,
            positive_starts,
            positive_concepts,
            self.shared[sentences],
            negative_starts,
            negative_concepts,
        )

    @cached_property
    def n_positive(self) -> Integers:
        """How many positives each concept has."""
        return np.bincount(self.positive_concepts, minlength=self.n_concepts)

    @cached_property
    def n_negative(self) -> Integers:
        """How many negatives each concept has."""
        listed = np.bincount(self.negative_concepts, minlength=self.n_concepts)
        counts: Integers = self.shared.sum() - self._n_marked + listed
        return counts

    @cached_property
    def _n_marked(self) -> Integers:
        marked = np.repeat(self.shared, np.diff(self.positive_starts))
        return np.bincount(self.positive_concepts[marked], minlength=self.n_concepts)

    @cached_property
    def kinds(self) -> Kinds:
        """The kinds of sentences that the labels tell apart.

        Raises ValueError for a concept of which some positives are marked and others are not.
        """
        own = self._n_marked > 0
        if (self._n_marked[own] != self.n_positive[own]).any():
            raise ValueError("some positives of a concept are shared negatives and others are not")
        n_positive = np.diff(self.positive_starts)
        n_listed = np.diff(self.negative_starts)
        first = np.full(self.n_sentences, self.n_concepts)
        first[n_positive > 0] = self.positive_concepts[self.positive_starts[:-1][n_positive > 0]]
        code = 2 * first + self.shared
        rows: dict[tuple[bytes, bytes, bool], int] = {}
        for sentence in np.flatnonzero((n_positive > 1) | (n_listed > 0)):
            row = (
                self.positive_concepts[slice(*self.positive_starts[sentence : sentence + 2])].tobytes(),
                self.negative_concepts[slice(*self.negative_starts[sentence : sentence + 2])].tobytes(),
                bool(self.shared[sentence]),
            )
            code[sentence] = 2 * (self.n_concepts + 1) + rows.setdefault(row, len(rows))
        _, example, of = np.unique(code, return_index=True, return_inverse=True)
        starts, members = _taken(self.positive_starts, self.positive_concepts, example)
        has_one = np.diff(starts) > 0
        later = np.ones(len(members), np.bool_)
        later[starts[:-1][has_one]] = False
        more_starts = np.concatenate([[0], np.cumsum(later)])[starts]
        listed_starts, listed = _taken(self.negative_starts, self.negative_concepts, example)
        return Kinds(
            of=of.astype(np.uint16 if len(example) <= 1 << 16 else np.uint32),
            first=first[example].astype(np.uint32),
            mark=self.shared[example].astype(np.int64),
            more_starts=more_starts,
            more=members[later].astype(np.uint32),
            listed_starts=listed_starts,
            listed=listed.astype(np.uint32),
            own=np.append(own, False).astype(np.int64),
        )


@dataclass(frozen=True)
class Kinds:
    """Sentences with the very same labels are of one kind: all that a score can tell of them.

    `of` has the kind of each sentence. A kind has a first positive concept (`n_concepts` for none) and
    further ones, compressed rows; it is marked (1) where its sentences are shared negatives; and it has
    the concepts of which its sentences are listed negatives. `own` is 1 for each concept whose
    positives are marked, and has one number more, for none.
    """

    of: Unsigned
    first: Ids
    mark: Integers
    more_starts: Integers
    more: Ids
    listed_starts: Integers
    listed: Ids
    own: Integers

    def __len__(self) -> int:
        return len(self.first)

    @property
    def plain(self) -> bool:
        """Whether the first concept is all there is to tell of a kind."""
        return not len(self.more) and not len(self.listed) and bool(self.mark.all())


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
    pairs = zip(labels.positives, labels.negatives, strict=True)
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


def _taken(starts: Integers, members: Integers, rows: Integers | Ids) -> tuple[Integers, Integers]:
    """Some of the rows of compressed rows, in the order given."""
    sizes = np.diff(starts)[rows]
    taken = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(sizes, out=taken[1:])
    within = np.arange(taken[-1]) - np.repeat(taken[:-1], sizes)
    return taken, members[np.repeat(starts[:-1][rows], sizes) + within]
