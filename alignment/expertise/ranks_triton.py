"""Ranks of sorted sentences in one Triton kernel; see `ranks_torch`, which does the same by searching.

Triton comes with torch for NVIDIA GPUs and is not a dependency of this project.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]

TILE, _WARPS = 4096, 16
"""Sentences of a program at a time, and its warps: so few programs run at once that the rows that they
write to, in any order, stay in the cache."""


def rank_sorted(ordered: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`at_least` and `above` of `Ranks`, from each neuron's sorted values and their sentences."""
    at_least, above = (torch.empty_like(order, dtype=torch.int32) for _ in range(2))
    n_neurons, n_sentences = order.shape
    tile = min(TILE, triton.next_power_of_2(n_sentences))
    _rank_kernel[(n_neurons,)](at_least, above, ordered, order, n_sentences, tile, num_warps=_WARPS)
    return at_least, above


@triton.jit  # type: ignore[untyped-decorator]
def _rank_kernel(  # type: ignore[no-untyped-def]
    at_least, above, ordered, order, n_sentences, tile: tl.constexpr
) -> None:
    """Ranks of one neuron's sentences."""
    row = tl.program_id(0).to(tl.int64) * n_sentences
    n_tiles = tl.cdiv(n_sentences, tile)
    begin = 0
    for number in range(n_tiles):
        places = number * tile + tl.arange(0, tile)
        is_place = places < n_sentences
        is_same = _equal_neighbors(ordered + row, places - 1, n_sentences)
        # the place of the first of equal values
        begins = tl.associative_scan(tl.where(is_same, 0, places), 0, _maximum)
        begins = tl.maximum(begins, begin)
        begin = tl.max(tl.where(is_place, begins, 0))
        sentences = tl.load(order + row + places, mask=is_place, other=0)
        tl.store(above + row + sentences, begins, mask=is_place)
    end = n_sentences
    for number in range(n_tiles):
        places = (n_tiles - 1 - number) * tile + tl.arange(0, tile)
        is_place = places < n_sentences
        is_same = _equal_neighbors(ordered + row, places, n_sentences)
        # the place after the last of equal values
        ends = tl.where(is_same, n_sentences, tl.minimum(places + 1, n_sentences))
        ends = tl.minimum(tl.associative_scan(ends, 0, _minimum, reverse=True), end)
        end = tl.min(ends)
        sentences = tl.load(order + row + places, mask=is_place, other=0)
        tl.store(at_least + row + sentences, ends, mask=is_place)


@triton.jit
def _equal_neighbors(ordered, places, n_sentences):  # type: ignore[no-untyped-def]
    """Whether the value at each place and the next one exist and are equal."""
    is_pair = (places >= 0) & (places + 1 < n_sentences)
    value = tl.load(ordered + places, mask=is_pair, other=0)
    return is_pair & (value == tl.load(ordered + places + 1, mask=is_pair, other=0))


@triton.jit
def _maximum(a, b):  # type: ignore[no-untyped-def]
    return tl.maximum(a, b)


@triton.jit
def _minimum(a, b):  # type: ignore[no-untyped-def]
    return tl.minimum(a, b)
