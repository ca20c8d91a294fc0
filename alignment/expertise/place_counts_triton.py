"""Counts of each concept's sentences among a neuron's first 0, 1, ... sentences, in Triton.

Every 32 places have one count and 32 bits per concept, so that a count is read in two steps.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

from alignment.expertise.labels_torch import Groups

BITS = 32
"""Places, or concepts, in a word."""


def place_bytes(n_sentences: int, n_concepts: int) -> int:
    """Size of the counts and bits of one neuron."""
    return int(2 * 4 * (n_sentences // BITS + 1) * triton.cdiv(n_concepts, BITS) * BITS)


def count_places(order: torch.Tensor, groups: Groups, n_concepts: int) -> torch.Tensor:
    """Counts before each word of places and the bits of its places, of shape (2, neurons, words,
    concepts), in int32; `order` has the sentences of each neuron, highest first."""
    n_neurons, n_sentences = order.shape
    n_groups, n_words = triton.cdiv(n_concepts, BITS), n_sentences // BITS + 1
    concepts = (groups.keys // (n_sentences + 1)).long()
    places = concepts // BITS * n_sentences + groups.sentences
    # bit c of a sentence: it is of concept c of the group
    bits = (1 << concepts % BITS).int()
    masks = torch.zeros(n_groups * n_sentences, dtype=torch.int32, device=order.device)
    masks.index_add_(0, places, bits)
    shape = (2, n_neurons, n_words, n_groups * BITS)
    counts = torch.empty(shape, dtype=torch.int32, device=order.device)
    _count_kernel[(n_neurons * n_groups,)](
        *counts, order, masks, n_sentences, n_words, n_groups, BITS, num_warps=1
    )
    return counts


@triton.jit  # type: ignore[untyped-decorator]
def read_count(counts, bits, cells, places, is_pair, word_stride, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """The number of a concept's sentences among the first `places`; `cells` are those of the concept in
    the neurons' first words."""
    cells += (places // size).to(tl.int64) * word_stride
    word = tl.load(bits + cells, mask=is_pair, other=0) & ((1 << places % size) - 1)
    # the number of its bits: of every 2, 4 and 8, then of all
    word -= (word >> 1) & 0x55555555
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return tl.load(counts + cells, mask=is_pair, other=0) + ((word * 0x01010101) >> 24)


@triton.jit  # type: ignore[untyped-decorator]
def _count_kernel(  # type: ignore[no-untyped-def]
    counts, bits, order, masks, n_sentences, n_words, n_groups, size: tl.constexpr
) -> None:
    """Counts and bits of one neuron for a group of concepts."""
    neuron, group = tl.program_id(0) // n_groups, tl.program_id(0) % n_groups
    row = order + neuron.to(tl.int64) * n_sentences
    index = tl.arange(0, size)
    out = neuron.to(tl.int64) * n_words * n_groups * size + group * size + index
    count = tl.zeros((size,), tl.int32)
    for number in range(n_words):
        places = number * size + index
        is_place = places < n_sentences
        sentences = tl.load(row + places, mask=is_place, other=0)
        mask = tl.load(masks + group * n_sentences + sentences, mask=is_place, other=0)
        # of a place and a concept
        is_member = (mask[:, None] >> index[None, :]) & 1
        tl.store(counts + out, count)
        tl.store(bits + out, tl.sum(is_member << index[:, None], axis=0))
        count += tl.sum(is_member, axis=0)
        out += n_groups * size
