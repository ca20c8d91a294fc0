"""One value a unit and sentence from one a token: over which tokens, and how."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cluster.tokens import Batch
from storage.activation_files import MEAN


class Pooler:
    """Pools hidden values of one batch, on their device, in all the ways asked for at once."""

    def __init__(self, batch: Batch, poolings: Sequence[str], dtype: torch.dtype) -> None:
        self._fillers = {
            pooling: torch.zeros(batch.real.shape, dtype=dtype, device=batch.real.device)
            .masked_fill(~_tokens(batch, pooling), -torch.inf)
            .unsqueeze(-1)
            for pooling in poolings
            if pooling not in (MEAN, "last")
        }
        self._poolings = list(poolings)
        self._shape = batch.real.shape
        self._weights = (batch.real / batch.real.sum(dim=1, keepdim=True)).unsqueeze(1)
        positions = torch.arange(batch.real.shape[1], device=batch.real.device)
        self._last = (batch.real * positions).argmax(dim=1)

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pooled values, of shape (sentences, units) each, from (sentences, tokens, units)."""
        # some layers run their MLP on all tokens in one row
        shaped = hidden.reshape(*self._shape, hidden.shape[-1])
        return {pooling: self._pool(shaped, pooling) for pooling in self._poolings}

    def mean(self, hidden: torch.Tensor) -> torch.Tensor:
        """Mean over the real tokens, in float32."""
        return (self._weights @ hidden.float()).squeeze(1)

    def _pool(self, hidden: torch.Tensor, pooling: str) -> torch.Tensor:
        if pooling == MEAN:
            return self.mean(hidden)
        if pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), self._last]
        return (hidden + self._fillers[pooling]).amax(dim=1)


def _tokens(batch: Batch, pooling: str) -> torch.Tensor:
    """Mask of the tokens over which a pooling takes the maximum, of shape (sentences, tokens).

    A sentence that is about no concept has no word of its own: `concept` and `context` then look at
    all its real tokens.
    """
    if pooling == "max":
        return batch.real
    if pooling == "context":
        return batch.real & ~batch.concept
    of_none = ~batch.concept.any(dim=1, keepdim=True)
    return batch.real & (batch.concept | of_none)
