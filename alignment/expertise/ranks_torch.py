"""Ranks of a neuron's sentences by activation, in torch: one sort serves every labeling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad


class Ranks(NamedTuple):
    """Counts of a neuron's sentences by activation, of shape (neurons, sentences).

    `at_least` counts the sentences that are at or above each sentence, itself included, and `above`
    those above it, both in int32; `order` lists the sentences, highest first.
    """

    at_least: torch.Tensor
    above: torch.Tensor
    order: torch.Tensor

    def store_by_sentence(self) -> Ranks:
        """The same ranks with the neurons' values for one sentence side by side in memory."""
        at_least, above = (counts.T.contiguous().T for counts in (self.at_least, self.above))
        return Ranks(at_least, above, self.order)


def rank_sentences(values: torch.Tensor, with_triton: bool = False) -> Ranks:
    """The ranks of `values`, of shape (neurons, sentences); equal values, also zeros of either sign,
    have equal ranks.

    Raises:
        ValueError: if a value is not finite.
    """
    negated = values.neg().contiguous()
    ordered, order = negated.sort(dim=1)
    # a NaN is sorted before or after all numbers
    ends = torch.stack((ordered[:, 0], ordered[:, -1]))
    if not bool(torch.isfinite(ends).all()):
        raise ValueError("values are not finite")
    if with_triton:
        from alignment.expertise.ranks_triton import rank_sorted

        return Ranks(*rank_sorted(ordered, order), order)
    at_least, above = (
        torch.searchsorted(ordered, negated, right=right, out_int32=True) for right in (True, False)
    )
    return Ranks(at_least, above, order)


class PoolCounts:
    """Counts the members of a pool among each neuron's first 0, 1, ... sentences; keeps the last result,
    because successive labelings often share a pool."""

    def __init__(self, ranks: Ranks) -> None:
        self._order = ranks.order
        self._pool: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None

    def of(self, pool: torch.Tensor | None) -> torch.Tensor | None:
        """Counts in int32, of shape (neurons, sentences + 1); `pool` has one bool per sentence, and None
        has no counts."""
        if pool is None:
            return None
        if pool is not self._pool:
            # free the memory of the previous counts first
            self._pool = self._counts = None
            self._counts = pad(pool[self._order].cumsum(1, dtype=torch.int32), (1, 0))
            self._pool = pool
        return self._counts
