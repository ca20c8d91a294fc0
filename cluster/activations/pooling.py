"""Pooling of token activations to one value per sentence and unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import numba
import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import PaddedBatch, copy_to
from cluster.activations.max_pooling import CompiledMaxPooler, TorchMaxPooler
from cluster.models.token_roles import BEFORE, IGNORED, WORD_END
from storage.errors import describe_error
from storage.store.activation_files import LAST, MEAN


class MaxPooler(Protocol):
    """Maxima of one batch by several poolings."""

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maxima by pooling, (sentences, units) each, from (sentences, tokens, units)."""

    def write(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Write the maxima to `out`, (poolings, units, sentences)."""


@dataclass
class _MeanTokens:
    """The tokens of each sentence over which a mean is taken, (sentences, tokens)."""

    are_included: npt.NDArray[np.bool_]
    device: torch.device

    def mean(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 means, (sentences, units), from (sentences, tokens, units); 0 without tokens."""
        if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
            return mean_bfloat16(hidden, self.are_included)
        chosen = hidden if self._few_tokens is None else hidden[self._few_tokens]
        return (self._weights @ chosen.float()).squeeze(1)

    @cached_property
    def _few_columns(self) -> npt.NDArray[np.int64] | None:
        """Of each sentence, tokens with all that are included, (sentences, most); None if these are not
        few. Few are gathered, which takes less time than to convert all to float32."""
        most = self.are_included.sum(axis=1).max()
        is_few = 2 * most < self.are_included.shape[1]
        return np.argsort(~self.are_included, axis=1, kind="stable")[:, :most] if is_few else None

    @cached_property
    def _few_tokens(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rows and columns of these tokens."""
        if self._few_columns is None:
            return None
        rows = np.arange(len(self.are_included))[:, np.newaxis]
        return copy_to(rows, self.device), copy_to(self._few_columns, self.device)

    @cached_property
    def _weights(self) -> torch.Tensor:
        """The weight of each token in its sentence's mean, (sentences, 1, tokens), of all or of few."""
        n_tokens = self.are_included.sum(axis=1, keepdims=True, dtype=np.float32)
        weights = (self.are_included / np.maximum(n_tokens, 1)).astype(np.float32)
        if self._few_columns is not None:
            weights = np.take_along_axis(weights, self._few_columns, axis=1)
        return copy_to(weights, self.device).unsqueeze(1)


class Pooler:
    """Pools the hidden values of one batch, on their device, by several poolings at once."""

    def __init__(self, batch: PaddedBatch) -> None:
        self._device, self._roles = batch.ids.device, batch.roles
        self._max_poolers: dict[tuple[str, ...], MaxPooler] = {}

    def write(
        self, hidden: torch.Tensor, poolings: tuple[str, ...], out: torch.Tensor, *, are_states: bool
    ) -> None:
        """Write the pooled values of neurons, or of hidden states, to `out`, (poolings, units,
        sentences). The poolings are maxima of neurons, or one other."""
        # Some layers flatten sentences and tokens for their MLP.
        hidden = hidden.reshape(*self._roles.shape, hidden.shape[-1])
        if poolings == (MEAN,):
            tokens = self._state_tokens if are_states else self._real_tokens
            out[0].copy_(tokens.mean(hidden).T)
        elif poolings == (LAST,):
            out[0].copy_(self._last(hidden).T)
        elif are_states:
            out[0].copy_(self._word_ends.mean(hidden).T)
        else:
            self._max_pooler(poolings).write(hidden, out)

    def _max_pooler(self, poolings: tuple[str, ...]) -> MaxPooler:
        if poolings not in self._max_poolers:
            self._max_poolers[poolings] = make_max_pooler(self._roles, poolings, self._device)
        return self._max_poolers[poolings]

    def _last(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[self._last_tokens]

    @property
    def _is_real(self) -> npt.NDArray[np.bool_]:
        is_real: npt.NDArray[np.bool_] = self._roles != IGNORED
        return is_real

    @cached_property
    def _real_tokens(self) -> _MeanTokens:
        return _MeanTokens(self._is_real, self._device)

    @cached_property
    def _state_tokens(self) -> _MeanTokens:
        """All but the first position, unless it is the only one: in many models its hidden state is many
        times as large as all others, whatever the token is, and would decide the mean."""
        are_included = self._is_real
        are_included[:, 0] &= are_included.sum(axis=1) == 1
        return _MeanTokens(are_included, self._device)

    @cached_property
    def _word_ends(self) -> _MeanTokens:
        """The last tokens of the word's occurrences, but for the first position; see `_state_tokens`."""
        are_included = self._roles == WORD_END
        are_included[:, 0] = False
        return _MeanTokens(are_included, self._device)

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
    poolings = ("max", "concept", "before")
    roles = np.array([[BEFORE, WORD_END]], np.int8)
    hidden = torch.tensor([1, 2], dtype=torch.bfloat16, device=device).repeat(64, 1).T[None].contiguous()
    out = torch.zeros(3, 64, 1, dtype=torch.float16, device=device)
    try:
        from cluster.activations.triton_max_pooling import TritonMaxPooler

        TritonMaxPooler(roles, poolings, device).write(hidden, out)
    except torch.OutOfMemoryError:
        # It says nothing about Triton.
        raise
    except Exception as error:
        # It compiles its launcher with the machine's C compiler, which may be absent, among others.
        return describe_error(error)
    expected = torch.tensor([2, 2, 1], dtype=out.dtype, device=device)
    return None if bool((out[:, :, 0] == expected[:, None]).all()) else "it gives wrong maxima"


def mean_bfloat16(hidden: torch.Tensor, are_included: npt.NDArray[np.bool_]) -> torch.Tensor:
    """float32 means over some tokens on a CPU, (sentences, units), from (sentences, tokens, units),
    without torch's conversion to float32. Summed in token order, whatever the padding; 0 for a sentence
    without any of these tokens."""
    means = torch.zeros(hidden.shape[0], hidden.shape[2])
    _mean_kernel(hidden.contiguous().view(torch.int16).numpy(), are_included, means.numpy())
    return means


@numba.njit(cache=True, nogil=True)
def _mean_kernel(
    bits: npt.NDArray[np.int16], included: npt.NDArray[np.bool_], means: npt.NDArray[np.float32]
) -> None:
    for sentence in range(len(bits)):
        mean, tokens = means[sentence], np.flatnonzero(included[sentence])
        for token in tokens:
            row = bits[sentence, token]
            for unit in range(len(mean)):
                # a bfloat16 is the upper half of a float32
                mean[unit] += np.int32(np.int32(row[unit]) << np.int32(16)).view(np.float32)
        mean /= np.float32(max(1, len(tokens)))
