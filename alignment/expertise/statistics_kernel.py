"""Compiled kernels of `scoring.activation_statistics`. They let other threads run."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from alignment.arrays import Bools, Floats, Ints, UInts

Float32s = npt.NDArray[np.float32]


_MAX_INSERTED = 64
"""The most numbers that are sorted by insertion, which is faster for few."""

_BIAS_RATIO = np.float32(2.0**112)
"""2 to the difference of the exponent biases of float32 and float16, 127 - 15."""


@numba.njit(cache=True, nogil=True)
def widen_rows(bits: UInts, rows: Ints, out: Float32s) -> None:
    """Convert rows of finite float16 numbers to float32, several at once: from `bits`, (neurons,
    sentences), to `out`, (rows, sentences)."""
    for index in range(len(rows)):
        row, widened = bits[rows[index]], out[index]
        for sentence in range(len(row)):
            number = np.uint32(row[sentence])
            magnitude = np.uint32((number & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32)
            scaled = np.float32(magnitude * _BIAS_RATIO)
            widened[sentence] = scaled if number < np.uint32(0x8000) else -scaled


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def sum_pool(values: Float32s, is_in_pool: Bools) -> Floats:
    """The sum of each row of `values`, (neurons, sentences), over the sentences of the pool."""
    sums = np.zeros(len(values))
    for row in range(len(values)):
        total = 0.0
        for sentence in range(values.shape[1]):
            if is_in_pool[sentence]:
                total += values[row, sentence]
        sums[row] = total
    return sums


@numba.njit(cache=True, nogil=True)
def fill_statistics(
    values: Float32s,
    pairs: Ints,
    rows: Ints,
    concepts: Ints,
    positives: Ints,
    positive_starts: Ints,
    listed: Ints,
    listed_starts: Ints,
    pool_sums: Floats,
    positives_in_pool: Ints,
    n_negative: Ints,
    on: Float32s,
    out: Float32s,
) -> None:
    """Median and 90th percentile on a concept's positives, and mean on its negatives: rows `pairs` of
    `out`, (pairs, 3), for `concepts[pair]`.

    A neuron's activations are in one of the `rows` of `values`, parallel to `pairs`. A concept's
    negatives are the pool, without its own positives where `positives_in_pool` is 1, and those listed;
    `positives` and `listed` are `SentenceGroups`. `on` is working memory for a concept's positives.
    """
    for index in range(len(pairs)):
        concept, row = concepts[pairs[index]], values[rows[index]]
        first, end = positive_starts[concept], positive_starts[concept + 1]
        ordered = on[: end - first]
        own = 0.0
        for entry in range(first, end):
            ordered[entry - first] = row[positives[entry]]
            own += row[positives[entry]]
        total = pool_sums[rows[index]] - positives_in_pool[concept] * own
        for entry in range(listed_starts[concept], listed_starts[concept + 1]):
            total += row[listed[entry]]
        _sort(ordered)
        statistics = out[pairs[index]]
        statistics[0], statistics[1] = _quantile(ordered, 0.5), _quantile(ordered, 0.9)
        statistics[2] = total / n_negative[concept]


@numba.njit(cache=True, nogil=True)
def _sort(numbers: Float32s) -> None:
    if len(numbers) > _MAX_INSERTED:
        numbers.sort()
        return
    for end in range(1, len(numbers)):
        number, index = numbers[end], end
        while index > 0 and numbers[index - 1] > number:
            numbers[index] = numbers[index - 1]
            index -= 1
        numbers[index] = number


@numba.njit(cache=True, nogil=True)
def _quantile(ordered: Float32s, quantile: float) -> float:
    """A quantile of sorted values, interpolated as by numpy."""
    position = (len(ordered) - 1) * quantile
    below = int(position)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    weight, difference = position - below, high - low
    if weight < 0.5:
        return float(low + difference * weight)
    return float(high - difference * (1 - weight))
