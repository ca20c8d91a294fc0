"""One value a unit and sentence from one a token: over which tokens, and how."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cluster.activations.max_pooling import POOLINGS, maxima
from cluster.activations.mean_pooling import bfloat16_means
from cluster.activations.tokens import Batch
from storage.store.activation_files import LAST, MEAN


class Pooler:
    """Pools hidden values of one batch, on their device, in all the ways asked for at once.

    A sentence that is about no concept has no word of its own: `concept` and `context` then look at
    all its real tokens.
    """

    def __init__(self, batch: Batch, poolings: Sequence[str]) -> None:
        self._poolings = list(poolings)
        self._by_maxima = any(pooling in POOLINGS for pooling in poolings)
        self._real = batch.real
        self._weights = (batch.real / batch.real.sum(dim=1, keepdim=True)).unsqueeze(1)
        sentences, tokens = batch.real.shape
        starts = torch.arange(0, sentences * tokens, tokens, device=batch.real.device)
        positions = torch.arange(tokens, device=batch.real.device)
        self._last = starts + (batch.real * positions).argmax(dim=1)
        self._maxima = maxima(batch.real, batch.concept)

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pooled values, of shape (sentences, units) each, from (sentences, tokens, units)."""
        # some layers run their MLP on all tokens in one row
        shaped = hidden.reshape(*self._real.shape, hidden.shape[-1])
        found = self._maxima(shaped) if self._by_maxima else {}
        if MEAN in self._poolings:
            found[MEAN] = self.mean(shaped)
        if LAST in self._poolings:
            found[LAST] = self.last(shaped)
        return {pooling: found[pooling] for pooling in self._poolings}

    def mean(self, hidden: torch.Tensor) -> torch.Tensor:
        """Mean over the real tokens, in float32."""
        if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
            return bfloat16_means(hidden, self._real)
        return (self._weights @ hidden.float()).squeeze(1)

    def last(self, hidden: torch.Tensor) -> torch.Tensor:
        """The values at the last real token."""
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._last)
