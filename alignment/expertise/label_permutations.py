"""Labels that mean nothing: those that there are, dealt anew among the sentences by lot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from alignment.expertise.ap_kernel import Ids, Integers, Unsigned
from alignment.expertise.labels import Kinds, Labels
from alignment.expertise.sorted_chunks import Room

_HELD_BYTES = 128 << 20
"""What shuffled labels may take at once, unless a single shuffle is more."""

_DRAWN_AT_ONCE = 1 << 18
_DEALT_AT_ONCE = 4 << 20


class Given(NamedTuple):
    """What sentences are given in some of the shuffles: arrays of shape (sentences, shuffles).

    `places` has the first concept, or the number of concepts for none, beside those of other shuffles:
    plus the shuffle times one more than there are concepts. `kinds` has the kind of the labels, or
    nothing where labels are plain.
    """

    shuffles: slice
    places: Unsigned
    kinds: Unsigned


@dataclass
class Shuffles:
    """Ways to deal the labels anew: each, of shape (sentences,), has whose labels each sentence gets.

    They are drawn when asked for, the same every time. `kinds` are those of the labels. `group` numbers
    the sentences that trade labels with each other, and `order` has the sentences group by group: those
    of group g are `order[starts[g]:starts[g + 1]]`. Those without labels are in one group more.
    """

    count: int
    seed: int
    kinds: Kinds
    group: Ids
    order: Ids
    starts: Integers
    _held: Given | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Ids]:
        for number in range(self.count):
            dealt = np.empty(len(self.group), np.uint32)
            for sentences, givers in self._dealt(number):
                dealt[sentences] = givers
            yield dealt

    def given(self, room: Room = np.empty) -> Iterator[Given]:
        """What sentences are given, some shuffles at a time. It is kept for the next time if it is
        little; otherwise what was given is no longer good when the next is drawn."""
        if self._held is not None:
            yield self._held
            return
        width, n_sentences = len(self.kinds.own), len(self.group)
        place = np.dtype(np.uint16 if self.count * width <= 1 << 16 else np.uint32)
        with_kinds = 0 if self.kinds.plain else n_sentences
        size = n_sentences * place.itemsize + with_kinds * self.kinds.of.itemsize
        at_once = min(self.count, max(1, _HELD_BYTES // max(1, size)))
        # one room for all of them, so that no two are there at once
        places = room(n_sentences * at_once, place)
        kinds = room(with_kinds * at_once, self.kinds.of.dtype)
        for first in range(0, self.count, at_once):
            part = slice(first, min(first + at_once, self.count))
            of_part = part.stop - part.start
            given = Given(
                part,
                places[: n_sentences * of_part].reshape(-1, of_part),
                kinds[: with_kinds * of_part].reshape(-1, of_part),
            )
            for shuffle in range(of_part):
                for sentences, givers in self._dealt(first + shuffle):
                    of = self.kinds.of[givers]
                    given.places[sentences, shuffle] = self.kinds.first[of] + shuffle * width
                    if with_kinds:
                        given.kinds[sentences, shuffle] = of
            if size * self.count <= _HELD_BYTES:
                self._held = given
            yield given

    def _dealt(self, number: int) -> Iterator[tuple[Ids, Ids]]:
        """Sentences, and those whose labels they get, some at a time: each sentence draws a lot, and the
        labels of a group go to its sentences in the order of the lots."""
        begins = np.append(self.starts[:-1], np.inf)
        sizes = np.append(np.diff(self.starts), 0)
        n_labelled = self.starts[-1]
        done = 0
        for low in range(0, n_labelled, _DEALT_AT_ONCE):
            high = low + _DEALT_AT_ONCE if low + _DEALT_AT_ONCE < n_labelled else np.inf
            random = np.random.default_rng([self.seed, number])
            found, lots = [], []
            for first in range(0, len(self.group), _DRAWN_AT_ONCE):
                group = self.group[first : first + _DRAWN_AT_ONCE]
                lot = random.random(len(group))
                # about the place that the lot has in the order: exact ones never go the other way round
                place = begins[group] + lot * sizes[group]
                inside = np.flatnonzero((low <= place) & (place < high))
                found.append((first + inside).astype(np.uint32))
                lots.append(lot[inside])
            givers = np.concatenate(found)
            givers = givers[np.lexsort((np.concatenate(lots), self.group[givers]))]
            yield self.order[done : done + len(givers)], givers
            done += len(givers)
        for first in range(n_labelled, len(self.order), _DEALT_AT_ONCE):
            rest = self.order[first : first + _DEALT_AT_ONCE]
            yield rest, rest


def shuffles(labels: Labels, count: int, seed: int) -> Shuffles:
    """So many ways to deal the labels anew.

    Labels go together, so that sentences of several concepts stay such, and only among sentences that
    concepts link: two that are positives or negatives of one concept are linked, and so are those that
    a third links. With shared negatives these are all sentences; concepts with positives and negatives
    that nobody else has are shuffled each by itself. A sentence without a label keeps none.
    """
    n_groups, group = _linked(labels)
    order = np.argsort(group, kind="stable").astype(np.uint32)
    starts = np.zeros(n_groups + 1, np.int64)
    np.cumsum(np.bincount(group, minlength=n_groups + 1)[:-1], out=starts[1:])
    return Shuffles(count, seed, labels.kinds, group, order, starts)


def _linked(labels: Labels) -> tuple[int, Ids]:
    """How many groups of sentences concepts link, and the group of each sentence; those without labels
    are in one more."""
    positive, negative = np.diff(labels.positive_starts), np.diff(labels.negative_starts)
    labelled = (positive > 0) | (negative > 0) | labels.shared
    if labels.shared.any():
        # a shared negative is one of all concepts
        return 1, np.where(labelled, 0, 1).astype(np.uint32)
    # slow to import, and what only plans a sweep needs none of it
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sentence = np.arange(labels.n_sentences)
    rows = np.concatenate([np.repeat(sentence, positive), np.repeat(sentence, negative)])
    places = labels.n_sentences + np.concatenate([labels.positive_concepts, labels.negative_concepts])
    size = labels.n_sentences + labels.n_concepts
    links = coo_array((np.ones(len(rows), np.bool_), (rows, places)), shape=(size, size))
    linked = connected_components(links, directed=False)[1][: labels.n_sentences]
    groups, of = np.unique(linked[labelled], return_inverse=True)
    group = np.full(labels.n_sentences, len(groups), np.uint32)
    group[labelled] = of
    return len(groups), group
