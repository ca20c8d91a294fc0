"""Sentences sorted by activation, highest first, as packed integers, in chunks if there are many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np

from alignment.arrays import AnyFloats, Ints, UInts
from alignment.expertise.ap_kernel import COUNT, COUNT_LISTED, FULL, SCORE

MAX_CHUNK_SENTENCES = 4 << 20
"""Sentences of a neuron that are sorted at once."""

_BINS = 1 << 16

FLOAT_FORMATS: dict[np.dtype[Any], tuple[type[np.unsignedinteger[Any]], int, int]] = {
    np.dtype(np.float16): (np.uint16, 0x8000, 0x7C00),
    np.dtype(np.float32): (np.uint32, 0x80000000, 0x7F800000),
}
"""Per dtype: unsigned type of the same width, sign bit, and exponent of non-finite values."""


class SortedChunk(NamedTuple):
    """Part of the sort order: `order`, of shape (neurons, sentences), holds (key << shift | id).

    All sentences with one key are in one chunk unless they exceed its size: then they come in several,
    once for each `phase` of the pass. `is_last` marks the neuron's last chunk.
    """

    order: UInts
    shift: int
    phase: int
    is_last: bool


def sorted_chunks(values: AnyFloats, ids: UInts | None) -> Iterator[SortedChunk]:
    """Yield the sentences of `values`, of shape (neurons, sentences), sorted by activation.

    `ids` has one number per sentence, by default its index. More than MAX_CHUNK_SENTENCES sentences come
    in several chunks; `values` must then hold one neuron. The next chunk overwrites the previous one.

    Raises:
        ValueError: if a value is not finite.
    """
    bits_type, sign, exponent = FLOAT_FORMATS[values.dtype]
    bits = values.view(bits_type)
    n_sentences = values.shape[1]
    max_id = n_sentences - 1 if ids is None else ids.max(initial=0)
    # 32 bits hold a float16 and one of 65,536 ids
    is_narrow = bits_type is np.uint16 and max_id < 1 << 16
    shift = 16 if is_narrow else 32
    packed_type = np.uint32 if is_narrow else np.uint64
    if n_sentences <= MAX_CHUNK_SENTENCES:
        order = np.empty(values.shape, packed_type)
        sentence_ids = np.arange(n_sentences, dtype=np.uint32) if ids is None else ids
        if not _pack(bits, sign, exponent, sentence_ids, shift, order):
            raise ValueError("values are not finite")
        # numpy sorts integers with SIMD instructions
        order.sort(axis=1)
        yield SortedChunk(order, shift, FULL, is_last=True)
        return
    (row,) = bits
    if not _all_finite(row, exponent):
        raise ValueError("values are not finite")
    buffer = np.empty((1, MAX_CHUNK_SENTENCES), packed_type)
    sentence_ids = np.empty(0, np.uint16) if ids is None else ids
    for low, high, n_in_range in _key_ranges(row, sign, 0, 2 * sign):
        for phase in (FULL,) if n_in_range <= MAX_CHUNK_SENTENCES else (COUNT, COUNT_LISTED, SCORE):
            start = 0
            while start < n_sentences:
                n_packed, start = _pack_range(
                    row, sign, low, high, sentence_ids, shift, start, buffer[0]
                )
                order = buffer[:, :n_packed]
                order.sort(axis=1)
                yield SortedChunk(order, shift, phase, is_last=False)
        yield SortedChunk(buffer[:, :0], shift, FULL, is_last=False)
    yield SortedChunk(buffer[:, :0], shift, FULL, is_last=True)


def _key_ranges(bits: UInts, sign: int, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Split the keys in [low, high) into ranges and yield (low, high, number of sentences): each range
    fits in a chunk, or is a single key."""
    width = -(-(high - low) // _BINS)
    bin_counts = np.zeros(_BINS, np.int64)
    _count_keys(bits, sign, low, high, width, bin_counts)
    first, total = 0, 0
    for index in np.flatnonzero(bin_counts):
        count = int(bin_counts[index])
        if total and total + count > MAX_CHUNK_SENTENCES:
            yield low + first * width, low + int(index) * width, total
            total = 0
        if not total:
            first = int(index)
        if count > MAX_CHUNK_SENTENCES and width > 1:
            yield from _key_ranges(bits, sign, low + first * width, low + (first + 1) * width)
        else:
            total += count
    if total:
        yield low + first * width, high, total


@numba.njit(inline="always")
def _sort_key(value: Any, sign: Any) -> Any:
    """A number that decreases as the float with these bits increases, so that an ascending integer sort
    puts the highest first. Negative zero equals zero."""
    below = sign - np.uint64(1)
    return value if value > sign else below - (value & below)


@numba.njit(cache=True, nogil=True)
def _pack(bits: UInts, sign: int, exponent: int, ids: UInts, shift: int, out: UInts) -> bool:
    """Fill `out`, (neurons, sentences), with (key << shift | id); return whether all are finite."""
    infinite = np.uint64(exponent)
    finite = True
    for row in range(bits.shape[0]):
        bad = 0
        for column in range(bits.shape[1]):
            value = np.uint64(bits[row, column])
            bad |= (value & infinite) == infinite
            key = _sort_key(value, np.uint64(sign))
            out[row, column] = (key << np.uint64(shift)) | np.uint64(ids[column])
        finite = finite and bad == 0
    return finite


@numba.njit(cache=True, nogil=True)
def _all_finite(bits: UInts, exponent: int) -> bool:
    infinite = np.uint64(exponent)
    bad = 0
    for index in range(len(bits)):
        bad |= (np.uint64(bits[index]) & infinite) == infinite
    return bad == 0


@numba.njit(cache=True, nogil=True)
def _count_keys(bits: UInts, sign: int, low: int, high: int, width: int, counts: Ints) -> None:
    """Count the keys in [low, high) in bins of `width`."""
    for index in range(len(bits)):
        key = np.int64(_sort_key(np.uint64(bits[index]), np.uint64(sign)))
        if low <= key < high:
            counts[(key - low) // width] += 1


@numba.njit(cache=True, nogil=True)
def _pack_range(
    bits: UInts, sign: int, low: int, high: int, ids: UInts, shift: int, start: int, out: UInts
) -> tuple[int, int]:
    """Pack the sentences from index `start` on whose keys are in [low, high) until `out` is full; return
    how many, and the index to resume from. Without `ids`, a sentence's id is its index."""
    n_packed = 0
    while start < len(bits) and n_packed < len(out):
        key = np.int64(_sort_key(np.uint64(bits[start]), np.uint64(sign)))
        if low <= key < high:
            sentence_id = np.uint64(ids[start]) if len(ids) else np.uint64(start)
            out[n_packed] = (np.uint64(key) << np.uint64(shift)) | sentence_id
            n_packed += 1
        start += 1
    return n_packed, start
