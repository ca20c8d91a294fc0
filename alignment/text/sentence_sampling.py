"""Sampling the sentences of many concepts from much text, in one pass and in bounded memory.

Each sentence has a number that is a hash of its bytes and of the seed, and of each concept's
sentences those with the smallest numbers are kept. That is a uniform sample of the distinct
sentences: it depends neither on the order of the text nor on how it was cut.
"""

from __future__ import annotations

from zlib import crc32

import numba
import numpy as np
import numpy.typing as npt

from alignment.text.word_matching import WordFinder, spaced

SHORTEST, LONGEST = 20, 400
"""Sentences of fewer or more bytes are not looked at."""

_SPACE = 32
_ABBREVIATIONS = """
    al approx apr aug capt cf co col corp dec dept dr ed eds eg est etc feb fig figs gen gov hon ie inc
    jan jr jul jun lt ltd mar mr mrs ms no nov oct pp prof rep rev sen sep sept sgt sr st vol vs
"""

_Ids = npt.NDArray[np.int64]
_Hashes = npt.NDArray[np.uint64]


class Sampler:
    """Draws `candidates` sentences for each word of a finder, and `pool` sentences without any."""

    def __init__(self, finder: WordFinder, candidates: int, pool: int = 0, seed: int = 0) -> None:
        self._finder = finder
        self._seed = seed
        # the last sample is that of the sentences without any of the words
        self._samples = [_Smallest(candidates) for _ in finder.words] + [_Smallest(pool)]
        self._limits = np.array([sample.limit for sample in self._samples], np.uint64)

    def feed(self, text: bytes) -> None:
        """Take in UTF-8 text that holds whole paragraphs."""
        starts, ends = sentence_bounds(text)
        fit = (ends - starts >= SHORTEST) & (ends - starts <= LONGEST)
        words, places = self._finder.hits(text)
        sentences = np.searchsorted(starts, places, side="right") - 1
        pairs = np.unique(sentences * len(self._finder.words) + words)
        sentences, words = np.divmod(pairs, max(1, len(self._finder.words)))
        named = np.bincount(sentences, minlength=len(starts))
        # what names two concepts can stand for neither
        single = (named[sentences] == 1) & fit[sentences]
        none = np.flatnonzero((named == 0) & fit) if self._samples[-1].size else sentences[:0]
        self._take(text, starts, ends, sentences[single], words[single])
        self._take(text, starts, ends, none, np.full(len(none), len(self._samples) - 1))

    def of_word(self, number: int) -> list[str]:
        """The sentences drawn for a word, in the random order of their hashes."""
        return [sentence.decode() for _, sentence in self._samples[number].items()]

    def neutral(self) -> list[str]:
        """The sentences drawn in which no word stands, in the random order of their hashes."""
        return self.of_word(len(self._samples) - 1)

    def _take(self, text: bytes, starts: _Ids, ends: _Ids, sentences: _Ids, samples: _Ids) -> None:
        hashes = _hashes(text, starts[sentences], ends[sentences], self._seed)
        wanted = np.flatnonzero(hashes < self._limits[samples])
        _, first = np.unique(hashes[wanted], return_index=True)
        for row in wanted[first]:
            sentence, number = sentences[row], samples[row]
            sample = self._samples[number]
            sample.add(int(hashes[row]), text[starts[sentence] : ends[sentence]])
            self._limits[number] = sample.limit


class _Smallest:
    """The `size` sentences with the smallest hashes, each hash once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.limit = (1 << 64) - 1 if size else 0
        self._held: dict[int, bytes] = {}

    def add(self, key: int, sentence: bytes) -> None:
        if key < self.limit:
            self._held.setdefault(key, sentence)
            if len(self._held) >= 2 * self.size:
                self._held = dict(self.items())
                self.limit = max(self._held) + 1

    def items(self) -> list[tuple[int, bytes]]:
        return sorted(self._held.items())[: self.size]


def sentence_bounds(text: bytes) -> tuple[_Ids, _Ids]:
    """First and last byte (exclusive) of each sentence of a text, without the white space around it.

    A sentence ends at . ! or ?, perhaps with closing quotes or brackets, before white space that no
    small letter follows, and at an empty line. It does not end after an initial or one of some
    English abbreviations. A rule for sampling: what is drawn is split again with more care.
    """
    raw, plain = np.frombuffer(text, np.uint8), np.frombuffer(spaced(text), np.uint8)
    if not len(raw):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # between two ends there is a mark and a space, or two line breaks
    bounds = np.empty((2, len(raw) // 2 + 1), np.int64)
    count = _find_bounds(raw, plain, *bounds)
    return bounds[0, :count], bounds[1, :count]


@numba.njit(cache=True, nogil=True)
def _find_bounds(
    raw: npt.NDArray[np.uint8], plain: npt.NDArray[np.uint8], starts: _Ids, ends: _Ids
) -> int:
    """Fill in the bounds of a text's sentences, given also as words between spaces; their number."""
    size, count, at = len(raw), 0, 0
    while at < size and raw[at] <= _SPACE:
        at += 1
    starts[0] = at
    while at < size:
        if raw[at] > _SPACE:
            at += 1
            continue
        first, lines = at, 0
        while at < size and raw[at] <= _SPACE:
            lines += raw[at] == _NEW_LINE
            at += 1
        before = first - 1
        for _ in range(2):
            if _CLOSING[raw[before]] and before > 0:
                before -= 1
        following = raw[min(at, size - 1)]
        is_end = _ENDING[raw[before]] and not _SMALL_A <= following <= _SMALL_Z
        if is_end and raw[before] == _DOT:
            is_end = not _is_abbreviation(plain, before)
        if is_end or lines > 1:
            ends[count] = first
            count += 1
            starts[count] = at
    ends[count] = max(size, starts[count])
    return count + 1


@numba.njit(cache=True, nogil=True)
def _is_abbreviation(plain: npt.NDArray[np.uint8], dot: int) -> bool:
    """Whether the word before a full stop is a single letter or a known abbreviation."""
    key = np.uint64(0)
    for back in range(1, _LONGEST_ABBREVIATION + 2):
        letter = plain[dot - back] if back <= dot else _SPACE
        if letter == _SPACE:
            if back == 2 and plain[dot - 1] > _NINE:
                return True
            place = np.searchsorted(_KNOWN, key)
            return bool(back > 1 and place < len(_KNOWN) and _KNOWN[place] == key)
        key |= np.uint64(letter) << np.uint64(8 * (back - 1))
    return False


def _hashes(text: bytes, starts: _Ids, ends: _Ids, seed: int) -> _Hashes:
    """A number for each sentence that its bytes and the seed settle. Two sentences in four billion have
    the same by chance; the second is then taken for a repeat."""
    bounds = zip(starts.tolist(), ends.tolist(), strict=True)
    sums = np.fromiter((crc32(text[start:end]) for start, end in bounds), np.uint64, len(starts))
    return _mixed(sums ^ _mixed(np.array([seed], np.uint64)))


def _mixed(values: _Hashes) -> _Hashes:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _table(characters: str) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[list(characters.encode())] = True
    return table


_NEW_LINE, _DOT, _NINE, _SMALL_A, _SMALL_Z = b"\n.9az"
_LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS.split()))
_KNOWN = np.array(
    sorted(int.from_bytes(each.encode(), "big") for each in _ABBREVIATIONS.split()), np.uint64
)
"""The bytes of each abbreviation, the last byte lowest."""

_ENDING = _table(".!?")
_CLOSING = _table("\"')]")
