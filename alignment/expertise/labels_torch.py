"""`alignment.expertise.labels.Labels` as torch tensors, for scoring on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alignment.arrays import Ints, UInt32s
from alignment.expertise.labels import Labels
from alignment.expertise.scoring import negative_weights


@dataclass(frozen=True)
class Groups:
    """Sentences by concept: `sentences[starts[c]:starts[c + 1]]` are those of concept c, in int32.

    `keys` has, per entry, the concept times (number of sentences + 1): with a rank added, they sort by
    concept, then rank. `largest` is the size of the largest group.
    """

    sentences: torch.Tensor
    starts: torch.Tensor
    keys: torch.Tensor
    largest: int

    @classmethod
    def of(cls, groups: Sequence[Ints], n_sentences: int, device: str) -> Groups:
        """The groups of all concepts."""
        sizes = np.array([len(sentences) for sentences in groups])
        concepts = np.repeat(np.arange(len(sizes)), sizes)
        keys = (concepts * (n_sentences + 1)).astype(_key_type(len(sizes), n_sentences))
        starts = np.append(0, np.cumsum(sizes)).astype(np.int32)
        return cls(
            torch.tensor(np.concatenate(groups).astype(np.int32), device=device),
            torch.tensor(starts, device=device),
            torch.tensor(keys, device=device),
            int(sizes.max()),
        )

    def __len__(self) -> int:
        return len(self.sentences)


@dataclass(frozen=True)
class LabelTensors:
    """The labels of a neuron's sentences, on a device.

    `pool` has one bool per sentence, true for shared negatives; it is None if all sentences are
    (`all_in_pool`) or none. Per concept: whether its positives are in the pool (`own_in_pool`, int32;
    `has_own_in_pool`: of any), the numbers of its positives and negatives, the weight of a negative, the
    number of its positives squared if they are in the pool (`own_pairs`), and twice that of its
    (positive, negative) pairs.

    `entries` are the sentences of the positives and, if there are any, of the listed negatives and of
    `pool`; with a rank added, `entry_keys` sort them by kind, concept and rank.

    Per entry of `positives`, the value of its concept: `positive_in_pool`, `positive_weights` and, for
    each kind of entry, what turns its key into the key of such an entry with its rank (`offsets`), and
    the first of these entries (`starts`, flat).
    """

    positives: Groups
    negatives: Groups
    pool: torch.Tensor | None
    all_in_pool: bool
    has_own_in_pool: bool
    own_in_pool: torch.Tensor
    n_positive: torch.Tensor
    n_negative: torch.Tensor
    weight: torch.Tensor
    own_pairs: torch.Tensor
    pairs_x2: torch.Tensor
    positive_in_pool: torch.Tensor
    positive_weights: torch.Tensor
    entries: torch.Tensor
    entry_keys: torch.Tensor
    offsets: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def of(cls, labels: Labels, prevalence: float, device: str) -> LabelTensors:
        """The labels, with negatives weighted for a share of positives of `prevalence`."""
        in_shared_pool = labels.in_shared_pool
        is_partial = bool(in_shared_pool.any() and not in_shared_pool.all())
        own_in_pool = labels.patterns.positives_in_pool[:-1]
        arrays = (
            own_in_pool.astype(np.int32),
            labels.n_positive,
            labels.n_negative,
            negative_weights(labels, prevalence),
            (own_in_pool * labels.n_positive**2).astype(np.float64),
            (2 * labels.n_positive * labels.n_negative).astype(np.float64),
        )
        own, n_positive, n_negative, weight, own_pairs, pairs_x2 = (
            torch.tensor(array, device=device) for array in arrays
        )
        concepts = torch.repeat_interleave(n_positive)
        return cls(
            Groups.of(labels.positives, labels.n_sentences, device),
            Groups.of(labels.listed_negatives, labels.n_sentences, device),
            torch.tensor(in_shared_pool, device=device) if is_partial else None,
            bool(in_shared_pool.all()),
            bool(own_in_pool.any()),
            own,
            n_positive,
            n_negative,
            weight,
            own_pairs,
            pairs_x2,
            own[concepts],
            weight[concepts],
            *(torch.tensor(array, device=device) for array in _make_entries(labels, is_partial)),
        )

    def permute(self, sources: UInt32s) -> LabelTensors:
        """Labels in which sentence s has the labels of sentence `sources[s]`."""
        device = self.weight.device
        receivers = np.empty(len(sources), np.int32)
        receivers[sources] = np.arange(len(sources))
        receiver = torch.tensor(receivers, device=device)
        positives, negatives = (
            replace(groups, sentences=receiver[groups.sentences])
            for groups in (self.positives, self.negatives)
        )
        pool = self.pool
        if pool is not None:
            permuted = pool[torch.tensor(sources.astype(np.int64), device=device)]
            # the same object if nothing changes, so that it is counted once
            pool = pool if torch.equal(permuted, pool) else permuted
        entries = receiver[self.entries]
        return replace(self, positives=positives, negatives=negatives, pool=pool, entries=entries)


def _make_entries(labels: Labels, with_pool: bool) -> tuple[npt.NDArray[Any], ...]:
    """`entries`, `entry_keys`, `offsets` and `starts` of `LabelTensors`."""
    positives, negatives = labels.grouped_positives, labels.grouped_negatives
    concepts = np.repeat(np.arange(labels.n_concepts), labels.n_positive)
    sentences, groups = [positives.sentences], [concepts]
    own_groups, starts = [concepts], [positives.starts[concepts]]
    n_entries, n_groups = len(concepts), labels.n_concepts
    if len(negatives.sentences):
        sentences.append(negatives.sentences)
        listed = np.repeat(np.arange(labels.n_concepts), np.diff(negatives.starts))
        groups.append(n_groups + listed)
        own_groups.append(n_groups + concepts)
        starts.append(n_entries + negatives.starts[concepts])
        n_entries, n_groups = n_entries + len(listed), n_groups + labels.n_concepts
    if with_pool:
        pool = np.flatnonzero(labels.in_shared_pool)
        sentences.append(pool)
        groups.append(np.full(len(pool), n_groups))
        own_groups.append(np.full(len(concepts), n_groups))
        starts.append(np.full(len(concepts), n_entries))
        n_groups += 1
    width = labels.n_sentences + 1
    key_type = _key_type(n_groups, labels.n_sentences)
    return (
        np.concatenate(sentences).astype(np.int32),
        (np.concatenate(groups) * width).astype(key_type),
        ((np.stack(own_groups) - concepts) * width).astype(key_type),
        np.concatenate(starts).astype(np.int32),
    )


def _key_type(n_groups: int, n_sentences: int) -> type[np.signedinteger[Any]]:
    """The type of keys that sort by group, then rank."""
    return np.int32 if n_groups * (n_sentences + 1) <= np.iinfo(np.int32).max else np.int64
