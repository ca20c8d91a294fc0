"""Permuted labels, the chance baseline of expertise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from alignment.arrays import Allocator, Ints, UInt32s, UInts
from alignment.expertise.labels import LabelPatterns, Labels

_MAX_CACHED_BYTES = 128 << 20
"""Maximum size of the permuted labels in memory, unless a single permutation is larger."""

_DRAWN_AT_ONCE = 1 << 18
_PERMUTED_AT_ONCE = 4 << 20


class PermutedLabels(NamedTuple):
    """Labels of all sentences in a batch of permutations: arrays of shape (sentences, permutations).

    `slots` has the first concept (the number of concepts for none) plus the permutation's offset in a
    `PermutedScanState`. `patterns` has the label pattern, or is empty if `slots` determines it.
    """

    permutations: slice
    slots: UInts
    patterns: UInts


@dataclass
class LabelPermutations:
    """Random permutations of labels, of shape (sentences,): the sentence whose labels each one receives.

    They are drawn on demand, deterministically. `group` numbers the sentences that exchange labels, and
    `order` lists the sentences by group: `order[starts[g]:starts[g + 1]]`. The last group is unlabeled.
    """

    count: int
    seed: int
    patterns: LabelPatterns
    group: UInt32s
    order: UInt32s
    starts: Ints
    _cache: PermutedLabels | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[UInt32s]:
        for number in range(self.count):
            permutation = np.empty(len(self.group), np.uint32)
            for sentences, sources in self._permute(number):
                permutation[sentences] = sources
            yield permutation

    def permuted_labels(self, allocate: Allocator = np.empty) -> Iterator[PermutedLabels]:
        """Yield the permuted labels in batches of permutations. A small result is cached; otherwise the
        next batch overwrites the previous one."""
        if self._cache is not None:
            yield self._cache
            return
        width, n_sentences = len(self.patterns.positives_in_pool), len(self.group)
        slot_type = np.dtype(np.uint16 if self.count * width <= 1 << 16 else np.uint32)
        n_patterns = 0 if self.patterns.is_single_label else n_sentences
        size = n_sentences * slot_type.itemsize + n_patterns * self.patterns.pattern.itemsize
        max_batch = min(self.count, max(1, _MAX_CACHED_BYTES // max(1, size)))
        # one buffer for all batches, so that two never coexist
        slots = allocate(n_sentences * max_batch, slot_type)
        patterns = allocate(n_patterns * max_batch, self.patterns.pattern.dtype)
        for first in range(0, self.count, max_batch):
            n_batch = min(max_batch, self.count - first)
            batch = PermutedLabels(
                slice(first, first + n_batch),
                slots[: n_sentences * n_batch].reshape(-1, n_batch),
                patterns[: n_patterns * n_batch].reshape(-1, n_batch),
            )
            for index in range(n_batch):
                for sentences, sources in self._permute(first + index):
                    pattern = self.patterns.pattern[sources]
                    batch.slots[sentences, index] = self.patterns.first_concept[pattern] + index * width
                    if n_patterns:
                        batch.patterns[sentences, index] = pattern
            if size * self.count <= _MAX_CACHED_BYTES:
                self._cache = batch
            yield batch

    def _permute(self, number: int) -> Iterator[tuple[UInt32s, UInt32s]]:
        """Yield sentences and the sentences whose labels they receive, in batches: every sentence draws
        a random sort key, and the labels of a group go to its sentences in the order of the keys."""
        group_starts = np.append(self.starts[:-1], np.inf)
        sizes = np.append(np.diff(self.starts), 0)
        n_labeled = self.starts[-1]
        n_done = 0
        for low in range(0, n_labeled, _PERMUTED_AT_ONCE):
            high = low + _PERMUTED_AT_ONCE if low + _PERMUTED_AT_ONCE < n_labeled else np.inf
            rng = np.random.default_rng([self.seed, number])
            batch_sources, batch_keys = [], []
            for first in range(0, len(self.group), _DRAWN_AT_ONCE):
                group = self.group[first : first + _DRAWN_AT_ONCE]
                sort_keys = rng.random(len(group))
                # approximate, but monotone in the exact ranks
                rank = group_starts[group] + sort_keys * sizes[group]
                in_batch = np.flatnonzero((low <= rank) & (rank < high))
                batch_sources.append((first + in_batch).astype(np.uint32))
                batch_keys.append(sort_keys[in_batch])
            sources = np.concatenate(batch_sources)
            sources = sources[np.lexsort((np.concatenate(batch_keys), self.group[sources]))]
            yield self.order[n_done : n_done + len(sources)], sources
            n_done += len(sources)
        for first in range(n_labeled, len(self.order), _PERMUTED_AT_ONCE):
            unlabeled = self.order[first : first + _PERMUTED_AT_ONCE]
            yield unlabeled, unlabeled


def permute_labels(labels: Labels, count: int, seed: int) -> LabelPermutations:
    """Draw `count` random permutations of the labels.

    A sentence's labels move together, so that sentences of several concepts remain such, and only among
    sentences connected through concepts: two sentences with a concept in common, as positives or
    negatives, are connected. With shared negatives all sentences are; concepts whose positives and
    negatives belong to no other concept are permuted separately. Unlabeled sentences remain unlabeled.
    """
    n_groups, group = _connected_groups(labels)
    order = np.argsort(group, kind="stable").astype(np.uint32)
    starts = np.append(0, np.cumsum(np.bincount(group, minlength=n_groups + 1)[:-1]))
    return LabelPermutations(count, seed, labels.patterns, group, order, starts)


def _connected_groups(labels: Labels) -> tuple[int, UInt32s]:
    """The number of groups of sentences connected through concepts, and the group of each sentence;
    unlabeled sentences get the next number."""
    n_positive, n_negative = np.diff(labels.positive_starts), np.diff(labels.negative_starts)
    is_labeled = (n_positive > 0) | (n_negative > 0) | labels.in_shared_pool
    if labels.in_shared_pool.any():
        # a shared negative is a negative of all concepts
        return 1, np.where(is_labeled, 0, 1).astype(np.uint32)
    # slow to import, and not needed to plan a sweep
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sentences = np.arange(labels.n_sentences)
    rows = np.concatenate([np.repeat(sentences, n_positive), np.repeat(sentences, n_negative)])
    columns = labels.n_sentences + np.concatenate([labels.positive_concepts, labels.negative_concepts])
    size = labels.n_sentences + labels.n_concepts
    graph = coo_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=(size, size))
    component = connected_components(graph, directed=False)[1][: labels.n_sentences]
    components, labeled_group = np.unique(component[is_labeled], return_inverse=True)
    group = np.full(labels.n_sentences, len(components), np.uint32)
    group[is_labeled] = labeled_group
    return len(components), group
