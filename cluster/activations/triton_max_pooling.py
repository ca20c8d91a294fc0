"""Maxima over a sentence's tokens in one Triton kernel, which reads each value once.

Triton comes with torch for NVIDIA GPUs and is no dependency of this project; only `pooling` imports this
module, if it can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from cluster.activations.batching import copy_to
from cluster.models.token_roles import role_bits

_SENTENCES, _UNITS = 32, 64
"""Values of one program: it reads rows of 64 and writes rows of 32; its maxima are in registers."""


class TritonMaxPooler:
    """Maxima of one batch on a GPU, whose tokens have `roles`, (sentences, tokens)."""

    def __init__(
        self, roles: npt.NDArray[np.int8], poolings: Sequence[str], device: torch.device
    ) -> None:
        self._poolings = poolings
        self._roles = copy_to(roles, device)

    def __call__(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maxima by pooling, (sentences, units) each, from (sentences, tokens, units)."""
        sentences, _, units = hidden.shape
        out = hidden.new_empty(len(self._poolings), units, sentences)
        self.write(hidden, out)
        return dict(zip(self._poolings, out.mT, strict=True))

    def write(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Write the maxima to `out`, (poolings, units, sentences), whose last stride is 1."""
        if hidden.stride(2) != 1:
            hidden = hidden.contiguous()
        sentences, tokens, units = hidden.shape
        _max_kernel[triton.cdiv(units, _UNITS), triton.cdiv(sentences, _SENTENCES)](
            hidden,
            self._roles,
            out,
            sentences,
            tokens,
            units,
            hidden.stride(0),
            hidden.stride(1),
            out.stride(0),
            out.stride(1),
            tuple(role_bits(pooling) for pooling in self._poolings),
            _SENTENCES,
            _UNITS,
        )


# A kernel is compiled for each combination of what it specializes on, so not for that of the batch.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["n_sentences", "n_tokens", "pooling_stride", "unit_stride"],
    do_not_specialize_on_alignment=["roles", "out"],
)
def _max_kernel(  # type: ignore[no-untyped-def]
    hidden,
    roles,
    out,
    n_sentences,
    n_tokens,
    n_units,
    sentence_stride,
    token_stride,
    pooling_stride,
    unit_stride,
    pooled_roles: tl.constexpr,
    sentences_in_block: tl.constexpr,
    units_in_block: tl.constexpr,
) -> None:
    """Maxima of a block of sentences and units; a NaN exceeds any number."""
    n_poolings: tl.constexpr = len(pooled_roles)
    sentences = tl.program_id(1) * sentences_in_block + tl.arange(0, sentences_in_block)
    units = tl.program_id(0) * units_in_block + tl.arange(0, units_in_block)
    is_sentence = (sentences < n_sentences)[:, None]
    is_value = is_sentence & (units < n_units)[None, :]
    first_values = hidden + sentences.to(tl.int64)[:, None] * sentence_stride + units[None, :]
    first_roles = roles + sentences.to(tl.int64)[:, None] * n_tokens
    no_maximum = tl.full((sentences_in_block, units_in_block), -float("inf"), tl.float32)
    maxima = ()
    found = tl.zeros((sentences_in_block, 1), tl.int32)
    for _ in tl.static_range(n_poolings):
        maxima += (no_maximum,)  # type: ignore[assignment]
    for token in range(n_tokens):
        role = tl.load(first_roles + token, mask=is_sentence, other=0).to(tl.int32)
        values = tl.load(first_values + token * token_stride, mask=is_value, other=0.0).to(tl.float32)
        found = found | (1 << role)
        new_maxima = ()
        for pooling in tl.static_range(n_poolings):
            pooled = tl.where(((pooled_roles[pooling] >> role) & 1) > 0, values, -float("inf"))
            pooled = tl.maximum(maxima[pooling], pooled, tl.PropagateNan.ALL)
            new_maxima += (pooled,)  # type: ignore[assignment]
        maxima = new_maxima
    positions = units.to(tl.int64)[:, None] * unit_stride + sentences[None, :]
    for pooling in tl.static_range(n_poolings):
        # 0 where a sentence has no token for the pooling
        pooled = tl.where((found & pooled_roles[pooling]) > 0, maxima[pooling], 0.0)
        tl.store(
            out + pooling * pooling_stride.to(tl.int64) + positions,
            tl.trans(pooled).to(out.dtype.element_ty),
            mask=tl.trans(is_value),
        )
