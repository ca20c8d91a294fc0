"""The sentences with the highest activations of single neurons."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from alignment.arrays import Ints

_BLOCK = 32
"""Sentences whose highest value is found with a few instructions."""

_LOWEST = np.int16(-(1 << 15))


def find_top_sentences(values: npt.NDArray[np.float16], units: Ints, count: int) -> Ints:
    """The sentences with the highest values of some neurons, highest first, ties by sentence: of shape
    (units, `count`), or fewer columns if there are fewer sentences.

    `values` has shape (neurons, sentences).
    """
    top = np.empty((len(units), min(count, values.shape[1])), np.int64)
    _find(values.view(np.int16), units, top)
    return top


@numba.njit(cache=True, nogil=True)
def _find(bits: Any, units: Ints, top: Ints) -> None:
    count, n_sentences = top.shape[1], bits.shape[1]
    n_blocks = -(-n_sentences // _BLOCK)
    highest, block_maxima = np.empty(count, np.int16), np.empty(n_blocks, np.int16)
    numbers = np.empty(n_sentences, np.int16)
    for row in range(len(units)):
        values = bits[units[row]]
        for sentence in range(n_sentences):
            value = values[sentence]
            # As integers in the order of the numbers; both zeros are 0.
            numbers[sentence] = value if value >= 0 else np.int16(-np.int16(value & 0x7FFF))
        for block in range(n_blocks):
            block_maximum = _LOWEST
            for sentence in range(block * _BLOCK, min((block + 1) * _BLOCK, n_sentences)):
                block_maximum = max(block_maximum, numbers[sentence])
            block_maxima[block] = block_maximum
        # The values of the blocks with the highest maxima are enough, and those that equal them.
        highest[:] = _LOWEST
        for block in range(n_blocks):
            _insert(block_maxima[block], highest)
        enough = highest[count - 1]
        highest[:] = _LOWEST
        for block in range(n_blocks):
            if block_maxima[block] < max(enough, highest[count - 1]):
                continue
            for sentence in range(block * _BLOCK, min((block + 1) * _BLOCK, n_sentences)):
                rank = _insert(numbers[sentence], highest)
                if rank < count:
                    for later in range(count - 1, rank, -1):
                        top[row, later] = top[row, later - 1]
                    top[row, rank] = sentence


@numba.njit(cache=True, nogil=True)
def _insert(number: Any, highest: Any) -> int:
    """Insert a number among the highest ones, behind equal ones; its rank, or their count if it is
    none of them."""
    count = len(highest)
    rank = count
    while rank > 0 and number > highest[rank - 1]:
        rank -= 1
    for later in range(count - 1, rank, -1):
        highest[later] = highest[later - 1]
    if rank < count:
        highest[rank] = number
    return rank
