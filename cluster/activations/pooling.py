"""Pooling of token activations to one value per sentence and unit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import Protocol

import numba
import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import CONCEPT, CONTEXT, IGNORED, PaddedBatch, copy_to
from cluster.activations.max_pooling import POOLINGS, CompiledMaxPooler, TorchMaxPooler
from storage.errors import describe_error
from storage.store.activation_files import LAST, MEAN


class MaxPooler(Protocol):
    """Maxima of one batch by several poolings."""

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maxima by pooling, (sentences, units) each, from (sentences, tokens, units)."""

    def write(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Write the maxima to `out`, (poolings, units, sentences)."""


class Pooler:
    """Pools the hidden values of one batch, on their device, by several poolings at once.

    In a sentence without a concept word, `concept` and `context` pool all real tokens.
    """

    def __init__(self, batch: PaddedBatch) -> None:
        self._device, self._roles = batch.ids.device, batch.roles
        self._max_poolers: dict[tuple[str, ...], MaxPooler] = {}

    def __call__(self, hidden: torch.Tensor, poolings: Sequence[str]) -> dict[str, torch.Tensor]:
        """Pooled values, of shape (sentences, units) each, from (sentences, tokens, units)."""
        hidden = self._by_sentence(hidden)
        maxima = tuple(pooling for pooling in poolings if pooling in POOLINGS)
        pooled = self._max_pooler(maxima)(hidden) if maxima else {}
        if MEAN in poolings:
            pooled[MEAN] = self._mean(hidden)
        if LAST in poolings:
            pooled[LAST] = self._last(hidden)
        return {pooling: pooled[pooling] for pooling in poolings}

    def write(self, hidden: torch.Tensor, poolings: tuple[str, ...], out: torch.Tensor) -> None:
        """Write pooled values to `out`, (poolings, units, sentences). The poolings are maxima, or one
        other."""
        hidden = self._by_sentence(hidden)
        if poolings == (MEAN,):
            out[0].copy_(self._mean(hidden).T)
        elif poolings == (LAST,):
            out[0].copy_(self._last(hidden).T)
        else:
            self._max_pooler(poolings).write(hidden, out)

    def _by_sentence(self, hidden: torch.Tensor) -> torch.Tensor:
        # Some layers flatten sentences and tokens for their MLP.
        return hidden.reshape(*self._roles.shape, hidden.shape[-1])

    def _max_pooler(self, poolings: tuple[str, ...]) -> MaxPooler:
        if poolings not in self._max_poolers:
            self._max_poolers[poolings] = make_max_pooler(self._roles, poolings, self._device)
        return self._max_poolers[poolings]

    def _mean(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
            return mean_bfloat16(hidden, self._is_real)
        return (self._weights @ hidden.float()).squeeze(1)

    def _last(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[self._last_tokens]

    @property
    def _is_real(self) -> npt.NDArray[np.bool_]:
        is_real: npt.NDArray[np.bool_] = self._roles != IGNORED
        return is_real

    @cached_property
    def _weights(self) -> torch.Tensor:
        is_real = self._is_real
        weights = is_real / is_real.sum(axis=1, keepdims=True, dtype=np.float32)
        return copy_to(weights.astype(np.float32), self._device).unsqueeze(1)

    @cached_property
    def _last_tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The row of each sentence, and its last real token."""
        sentences, tokens = self._roles.shape
        last = np.where(self._is_real, np.arange(tokens), 0).argmax(axis=1)
        return copy_to(np.arange(sentences), self._device), copy_to(last, self._device)


def make_max_pooler(
    roles: npt.NDArray[np.int8], poolings: Sequence[str], device: torch.device
) -> MaxPooler:
    """The fastest pooler of maxima on a device: compiled for a CPU, in Triton, or else in torch."""
    if device.type == "cpu":
        return CompiledMaxPooler(roles, poolings)
    if find_triton_problem(device) is None:
        from cluster.activations.triton_max_pooling import TritonMaxPooler

        return TritonMaxPooler(roles, poolings, device)
    return TorchMaxPooler(roles, poolings, device)


@cache
def find_triton_problem(device: torch.device) -> str | None:
    """Why maxima are not pooled in Triton on a device, found by pooling two tokens; None if they are."""
    roles = np.array([[CONTEXT, CONCEPT]], np.int8)
    hidden = torch.tensor([1, 2], dtype=torch.bfloat16, device=device).repeat(64, 1).T[None].contiguous()
    out = torch.zeros(3, 64, 1, dtype=torch.float16, device=device)
    try:
        from cluster.activations.triton_max_pooling import TritonMaxPooler

        TritonMaxPooler(roles, POOLINGS, device).write(hidden, out)
    except torch.OutOfMemoryError:
        # It says nothing about Triton.
        raise
    except Exception as error:
        # It compiles its launcher with the machine's C compiler, which may be absent, among others.
        return describe_error(error)
    expected = torch.tensor([2, 1, 2], dtype=out.dtype, device=device)
    return None if bool((out[:, :, 0] == expected[:, None]).all()) else "it gives wrong maxima"


def mean_bfloat16(hidden: torch.Tensor, is_real: npt.NDArray[np.bool_]) -> torch.Tensor:
    """float32 means over the real tokens on a CPU, (sentences, units), from (sentences, tokens, units),
    without torch's conversion to float32. Summed in token order, whatever the padding; a sentence has at
    least one real token."""
    means = torch.zeros(hidden.shape[0], hidden.shape[2])
    _mean_kernel(hidden.contiguous().view(torch.int16).numpy(), is_real, means.numpy())
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
