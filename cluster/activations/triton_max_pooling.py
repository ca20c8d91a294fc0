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

from cluster.activations.batching import CONCEPT, CONTEXT, copy_to

_SENTENCES, _UNITS = 32, 64
"""Values of one program: it reads rows of 64 and writes rows of 32; its maxima are in registers."""

_CONCEPT, _CONTEXT = tl.constexpr(CONCEPT), tl.constexpr(CONTEXT)
_KERNEL_POOLINGS = ("concept", "context", "max")


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
        rows = dict(zip(self._poolings, out, strict=True))
        _max_kernel[triton.cdiv(units, _UNITS), triton.cdiv(sentences, _SENTENCES)](
            hidden,
            self._roles,
            *(rows.get(pooling, out) for pooling in _KERNEL_POOLINGS),
            sentences,
            tokens,
            units,
            hidden.stride(0),
            hidden.stride(1),
            out.stride(1),
            *(pooling in rows for pooling in _KERNEL_POOLINGS),
            _SENTENCES,
            _UNITS,
        )


# A kernel is compiled for each combination of what it specializes on, so not for that of the batch.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["n_sentences", "n_tokens", "unit_stride"],
    do_not_specialize_on_alignment=["roles", "concept_out", "context_out", "max_out"],
)
def _max_kernel(  # type: ignore[no-untyped-def]
    hidden,
    roles,
    concept_out,
    context_out,
    max_out,
    n_sentences,
    n_tokens,
    n_units,
    sentence_stride,
    token_stride,
    unit_stride,
    with_concept: tl.constexpr,
    with_context: tl.constexpr,
    with_max: tl.constexpr,
    sentences_in_block: tl.constexpr,
    units_in_block: tl.constexpr,
) -> None:
    """Maxima of a block of sentences and units; a NaN exceeds any number."""
    sentences = tl.program_id(1) * sentences_in_block + tl.arange(0, sentences_in_block)
    units = tl.program_id(0) * units_in_block + tl.arange(0, units_in_block)
    is_sentence = (sentences < n_sentences)[:, None]
    is_value = is_sentence & (units < n_units)[None, :]
    first_values = hidden + sentences.to(tl.int64)[:, None] * sentence_stride + units[None, :]
    first_roles = roles + sentences.to(tl.int64)[:, None] * n_tokens
    word = tl.full((sentences_in_block, units_in_block), -float("inf"), tl.float32)
    context = tl.full((sentences_in_block, units_in_block), -float("inf"), tl.float32)
    word_tokens = tl.zeros((sentences_in_block, 1), tl.int32)
    for token in range(n_tokens):
        role = tl.load(first_roles + token, mask=is_sentence, other=-1)
        values = tl.load(first_values + token * token_stride, mask=is_value, other=0.0).to(tl.float32)
        is_word, is_context = role == _CONCEPT, role == _CONTEXT
        word_tokens += is_word.to(tl.int32)
        word = tl.maximum(word, tl.where(is_word, values, -float("inf")), tl.PropagateNan.ALL)
        context = tl.maximum(context, tl.where(is_context, values, -float("inf")), tl.PropagateNan.ALL)
    word = tl.where(word_tokens > 0, word, context)
    positions = units.to(tl.int64)[:, None] * unit_stride + sentences[None, :]
    is_value = tl.trans(is_value)
    dtype = concept_out.dtype.element_ty
    if with_concept:
        tl.store(concept_out + positions, tl.trans(word).to(dtype), mask=is_value)
    if with_context:
        tl.store(context_out + positions, tl.trans(context).to(dtype), mask=is_value)
    if with_max:
        tl.store(
            max_out + positions,
            tl.trans(tl.maximum(word, context, tl.PropagateNan.ALL)).to(dtype),
            mask=is_value,
        )
