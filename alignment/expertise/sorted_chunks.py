"""A neuron's sentences in the order of their activations, highest first: packed with their numbers for a
fast sort, and where they are many, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from alignment.expertise.ap_kernel import COUNT, LIST, SCORE, WHOLE, Integers, Unsigned

Values = npt.NDArray[np.floating[Any]]

Room = Callable[[int | tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]
"""What gives an array of a shape and a type, as `np.empty` does; large ones may lie elsewhere than in
memory."""

SORTED_AT_ONCE = 4 << 20
"""Sentences of a neuron that are sorted at once."""

_BINS = 1 << 16

FORMATS: dict[np.dtype[Any], tuple[type[np.unsignedinteger[Any]], int, int]] = {
    np.dtype(np.float16): (np.uint16, 0x8000, 0x7C00),
    np.dtype(np.float32): (np.uint32, 0x80000000, 0x7F800000),
}
"""Of each kind of float: that of its bits, its sign, and the exponent of what is not finite."""


class Piece(NamedTuple):
    """A part of the order of some neurons: `order`, of shape (neurons, sentences), has (key << shift |
    id), and sentences of one key are in one piece.

    Only where so many sentences share a key that a piece cannot hold them do they come in several, and
    once for each `phase` that is a part of a walk. `ends` tells the last piece.
    """

    order: Unsigned
    shift: int
    phase: int
    ends: bool


def pieces(values: Values, ids: Unsigned | None) -> Iterator[Piece]:
    """The sentences of some neurons in the order of their activations, of shape (neurons, sentences).

    `ids` has a number for each sentence, by default its own. More sentences than are sorted at once come
    in several pieces; then `values` must be of one neuron. A piece is good until the next one is made.

    Raises ValueError for a value that is not finite.
    """
    kind, sign, exponent = FORMATS[values.dtype]
    bits = values.view(kind)
    n_sentences = values.shape[1]
    highest = n_sentences - 1 if ids is None else ids.max(initial=0)
    # in 32 bits there is room for a float16 and 65,536 ids
    narrow = kind is np.uint16 and highest < 1 << 16
    shift = 16 if narrow else 32
    size = np.uint32 if narrow else np.uint64
    if n_sentences <= SORTED_AT_ONCE:
        order = np.empty(values.shape, size)
        numbers = np.arange(n_sentences, dtype=np.uint32) if ids is None else ids
        if not _pack(bits, sign, exponent, numbers, shift, order):
            raise ValueError("values are not finite")
        # numpy sorts integers by vector instructions
        order.sort(axis=1)
        yield Piece(order, shift, WHOLE, ends=True)
        return
    (row,) = bits
    if not _finite(row, exponent):
        raise ValueError("values are not finite")
    room = np.empty((1, SORTED_AT_ONCE), size)
    numbers = np.empty(0, np.uint16) if ids is None else ids
    for low, high, inside in _ranges(row, sign, 0, 2 * sign):
        for phase in (WHOLE,) if inside <= SORTED_AT_ONCE else (COUNT, LIST, SCORE):
            place = 0
            while place < n_sentences:
                filled, place = _pack_between(row, sign, low, high, numbers, shift, place, room[0])
                order = room[:, :filled]
                order.sort(axis=1)
                yield Piece(order, shift, phase, ends=False)
        yield Piece(room[:, :0], shift, WHOLE, ends=False)
    yield Piece(room[:, :0], shift, WHOLE, ends=True)


def _ranges(bits: Unsigned, sign: int, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of keys from `low` on and below `high`, and how many sentences are in each: as many as are
    sorted at once, or a single key with more."""
    width = -(-(high - low) // _BINS)
    inside = np.zeros(_BINS, np.int64)
    _count_keys(bits, sign, low, high, width, inside)
    first, held = 0, 0
    for each in np.flatnonzero(inside):
        count = int(inside[each])
        if held and held + count > SORTED_AT_ONCE:
            yield low + first * width, low + int(each) * width, held
            held = 0
        if not held:
            first = int(each)
        if count > SORTED_AT_ONCE and width > 1:
            yield from _ranges(bits, sign, low + first * width, low + (first + 1) * width)
        else:
            held += count
    if held:
        yield low + first * width, high, held


@numba.njit(inline="always")
def _key(value: Any, sign: Any) -> Any:
    """A number that falls as the float of these bits rises: an integer sort puts the highest first.
    Negative zero equals zero."""
    below = sign - np.uint64(1)
    return value if value > sign else below - (value & below)


@numba.njit(cache=True, nogil=True)
def _pack(bits: Unsigned, sign: int, exponent: int, ids: Unsigned, shift: int, out: Unsigned) -> bool:
    """Fill `out`, of shape (neurons, sentences), with (key << shift | id) of each sentence; False when a
    value is not finite."""
    infinite = np.uint64(exponent)
    finite = True
    for row in range(bits.shape[0]):
        bad = 0
        for place in range(bits.shape[1]):
            value = np.uint64(bits[row, place])
            bad |= (value & infinite) == infinite
            out[row, place] = (_key(value, np.uint64(sign)) << np.uint64(shift)) | np.uint64(ids[place])
        finite = finite and bad == 0
    return finite


@numba.njit(cache=True, nogil=True)
def _finite(bits: Unsigned, exponent: int) -> bool:
    infinite = np.uint64(exponent)
    bad = 0
    for place in range(len(bits)):
        bad |= (np.uint64(bits[place]) & infinite) == infinite
    return bad == 0


@numba.njit(cache=True, nogil=True)
def _count_keys(bits: Unsigned, sign: int, low: int, high: int, width: int, inside: Integers) -> None:
    """Count the keys from `low` on and below `high`, `width` of them a bin."""
    for place in range(len(bits)):
        key = np.int64(_key(np.uint64(bits[place]), np.uint64(sign)))
        if low <= key < high:
            inside[(key - low) // width] += 1


@numba.njit(cache=True, nogil=True)
def _pack_between(
    bits: Unsigned, sign: int, low: int, high: int, ids: Unsigned, shift: int, place: int, out: Unsigned
) -> tuple[int, int]:
    """Pack the sentences from `place` on that have keys from `low` on and below `high`, until `out` is
    full: how many these are, and the place after them. Without `ids` a sentence's is its own place."""
    filled = 0
    while place < len(bits) and filled < len(out):
        key = np.int64(_key(np.uint64(bits[place]), np.uint64(sign)))
        if low <= key < high:
            number = np.uint64(ids[place]) if len(ids) else np.uint64(place)
            out[filled] = (np.uint64(key) << np.uint64(shift)) | number
            filled += 1
        place += 1
    return filled, place
