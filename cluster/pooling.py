"""One value a unit and sentence from one a token: over which tokens, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cluster.tokens import Batch
from storage.activation_files import LAST, MEAN


class Pooler:
    """Pools hidden values of one batch, on their device, in all the ways asked for at once.

    A sentence that is about no concept has no word of its own: `concept` and `context` then look at
    all its real tokens.
    """

    def __init__(self, batch: Batch, poolings: Sequence[str], dtype: torch.dtype) -> None:
        self._poolings = list(poolings)
        self._shape = batch.real.shape
        self._weights = (batch.real / batch.real.sum(dim=1, keepdim=True)).unsqueeze(1)
        self._rows = torch.arange(len(batch.real), device=batch.real.device)
        positions = torch.arange(batch.real.shape[1], device=batch.real.device)
        self._last = (batch.real * positions).argmax(dim=1)
        self._filler = (
            torch.zeros(self._shape, dtype=dtype, device=batch.real.device)
            .masked_fill(~batch.real | batch.concept, -torch.inf)
            .unsqueeze(-1)
        )
        self._words = _positions(batch.real & batch.concept)
        self._of_none = ~(batch.real & batch.concept).any(dim=1, keepdim=True)

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pooled values, of shape (sentences, units) each, from (sentences, tokens, units)."""
        # some layers run their MLP on all tokens in one row
        shaped = hidden.reshape(*self._shape, hidden.shape[-1])
        pools: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            MEAN: self.mean,
            LAST: self.last,
        }
        pooled = {name: pools[name](shaped) for name in self._poolings if name in pools}
        if len(pooled) < len(self._poolings):
            pooled |= self._maxima(shaped)
        return {pooling: pooled[pooling] for pooling in self._poolings}

    def mean(self, hidden: torch.Tensor) -> torch.Tensor:
        """Mean over the real tokens, in float32."""
        return (self._weights @ hidden.float()).squeeze(1)

    def last(self, hidden: torch.Tensor) -> torch.Tensor:
        """The values at the last real token."""
        return hidden[self._rows, self._last]

    def _maxima(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """The maxima over a sentence's word, over its context and over both, in one pass over the
        tokens and one over the few of the words."""
        context = (hidden + self._filler).amax(dim=1)
        of_word = hidden[self._rows.unsqueeze(1), self._words].amax(dim=1)
        concept = torch.where(self._of_none, context, of_word)
        return {"concept": concept, "context": context, "max": torch.maximum(concept, context)}


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions of each row's true values, of shape (rows, most in a row); a row with fewer has its
    first again, and one with none has 0."""
    most = max(1, int(mask.sum(dim=1).max()))
    first_true_first = mask.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    there = mask.gather(1, first_true_first)
    return torch.where(there, first_true_first, first_true_first[:, :1])
