"""The sentences with the highest activations of single neurons."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from alignment.arrays import Ints

_LOWEST = -(1 << 16)


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
    count = top.shape[1]
    highest = np.empty(count, np.int64)
    for row in range(len(units)):
        highest[:] = _LOWEST
        for sentence in range(bits.shape[1]):
            number = np.int64(bits[units[row], sentence])
            if number < 0:
                # As integers in the order of the numbers; both zeros are 0.
                number = -(number & 0x7FFF)
            place = count
            while place > 0 and number > highest[place - 1]:
                place -= 1
            for later in range(count - 1, place, -1):
                highest[later] = highest[later - 1]
                top[row, later] = top[row, later - 1]
            if place < count:
                highest[place] = number
                top[row, place] = sentence
