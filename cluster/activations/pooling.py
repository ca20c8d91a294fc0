"""Pooling of token activations to one value per sentence and unit."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import PaddedBatch
from cluster.activations.max_pooling import POOLINGS, CompiledMaxPooler, TorchMaxPooler
from storage.store.activation_files import LAST, MEAN


class Pooler:
    """Pools the hidden values of one batch, on their device, by several poolings at once.

    In a sentence without a concept word, `concept` and `context` pool all real tokens.
    """

    def __init__(self, batch: PaddedBatch) -> None:
        self._real = batch.real
        self._weights = (batch.real / batch.real.sum(dim=1, keepdim=True)).unsqueeze(1)
        sentences, tokens = batch.real.shape
        self._rows = torch.arange(sentences, device=batch.real.device)
        self._last = (batch.real * torch.arange(tokens, device=batch.real.device)).argmax(dim=1)
        max_pooler = CompiledMaxPooler if batch.real.device.type == "cpu" else TorchMaxPooler
        self._pool_max = max_pooler(batch.real, batch.concept)

    def __call__(self, hidden: torch.Tensor, poolings: Sequence[str]) -> dict[str, torch.Tensor]:
        """Pooled values, of shape (sentences, units) each, from (sentences, tokens, units)."""
        # Some layers flatten sentences and tokens for their MLP.
        hidden = hidden.reshape(*self._real.shape, hidden.shape[-1])
        pooled = self._pool_max(hidden) if not set(POOLINGS).isdisjoint(poolings) else {}
        if MEAN in poolings:
            pooled[MEAN] = self._mean(hidden)
        if LAST in poolings:
            pooled[LAST] = hidden[self._rows, self._last]
        return {pooling: pooled[pooling] for pooling in poolings}

    def _mean(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
            return mean_bfloat16(hidden, self._real)
        return (self._weights @ hidden.float()).squeeze(1)


def mean_bfloat16(hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """float32 means over the real tokens on a CPU, (sentences, units), from (sentences, tokens, units),
    without torch's conversion to float32. Summed in token order, whatever the padding; a sentence has at
    least one real token."""
    means = torch.zeros(hidden.shape[0], hidden.shape[2])
    _mean_kernel(hidden.contiguous().view(torch.int16).numpy(), real.numpy(), means.numpy())
    return means


@numba.njit(cache=True, nogil=True)
def _mean_kernel(
    bits: npt.NDArray[np.int16], real: npt.NDArray[np.bool_], means: npt.NDArray[np.float32]
) -> None:
    for sentence in range(len(bits)):
        mean, tokens = means[sentence], np.flatnonzero(real[sentence])
        for token in tokens:
            row = bits[sentence, token]
            for unit in range(len(mean)):
                # a bfloat16 is the upper half of a float32
                mean[unit] += np.int32(np.int32(row[unit]) << np.int32(16)).view(np.float32)
        mean /= np.float32(len(tokens))
