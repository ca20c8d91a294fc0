"""Labels that mean nothing: those that there are, dealt anew among the sentences by lot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from alignment.labels import Labels
from alignment.walk import Ids, Integers, Unsigned

_HELD_BYTES = 128 << 20
"""What shuffled labels may take at once, unless a single shuffle is more."""

_DRAWN_AT_ONCE = 1 << 18
_DEALT_AT_ONCE = 4 << 20


@dataclass
class Shuffles:
    """Ways to deal the labels anew: the k-th, of shape (sentences,), has the sentence whose labels each
    gets.

    None is kept; each is drawn when it is asked for, the same every time. `kinds` are those of the
    labels. `group` numbers the sentences that trade labels with each other, and `order` has the
    sentences with labels, group by group: those of group g are `order[starts[g]:starts[g + 1]]`. Those
    without labels are in one group more.
    """

    count: int
    seed: int
    kinds: Unsigned
    group: Ids
    order: Ids
    starts: Integers
    _held: Unsigned | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Ids]:
        for number in range(self.count):
            dealt = np.arange(len(self.group), dtype=np.uint32)
            for sentences, givers in self._dealt(number):
                dealt[sentences] = givers
            yield dealt

    def given(self) -> Iterator[tuple[slice, Unsigned]]:
        """The kinds that sentences are given, of shape (sentences, shuffles), some shuffles at a time, and
        which these are. All of them are kept for the next time if they are few bytes."""
        if self._held is not None:
            yield slice(0, self.count), self._held
            return
        size = len(self.kinds) * self.kinds.itemsize
        at_once = min(self.count, max(1, _HELD_BYTES // max(1, size)))
        # one room for all of them, so that no two are there at once
        room = np.empty(len(self.kinds) * at_once, self.kinds.dtype)
        for first in range(0, self.count, at_once):
            part = slice(first, min(first + at_once, self.count))
            width = part.stop - part.start
            given = room[: len(self.kinds) * width].reshape(-1, width)
            given[:] = self.kinds[:, None]
            for number in range(part.start, part.stop):
                for sentences, givers in self._dealt(number):
                    given[sentences, number - first] = self.kinds[givers]
            if size * self.count <= _HELD_BYTES:
                self._held = given
            yield part, given

    def _dealt(self, number: int) -> Iterator[tuple[Ids, Ids]]:
        """Sentences with labels, and those whose labels they get, some at a time: each sentence draws a
        lot, and the labels of a group go to its sentences in the order of the lots."""
        begins = np.append(self.starts[:-1], np.inf)
        sizes = np.append(np.diff(self.starts), 0)
        done = 0
        for low in range(0, len(self.order), _DEALT_AT_ONCE):
            high = low + _DEALT_AT_ONCE if low + _DEALT_AT_ONCE < len(self.order) else np.inf
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


def shuffles(labels: Labels, count: int, seed: int) -> Shuffles:
    """So many ways to deal the labels anew.

    Labels go together, so that sentences of several concepts stay such, and only among sentences that
    concepts link: two that are positives or negatives of one concept are linked, and so are those that
    a third links. With shared negatives these are all sentences; concepts with positives and negatives
    that nobody else has are shuffled each by itself. A sentence without a label keeps none.
    """
    n_groups, group = _linked(labels)
    order = np.argsort(group, kind="stable")
    starts = np.zeros(n_groups + 1, np.int64)
    np.cumsum(np.bincount(group, minlength=n_groups + 1)[:-1], out=starts[1:])
    order = order[: starts[-1]].astype(np.uint32)
    return Shuffles(count, seed, labels.kinds.of, group, order, starts)


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
