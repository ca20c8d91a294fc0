"""Sampling sentences of many concepts from a large corpus, in one pass and in bounded memory.

A sentence is hashed with the seed, and the sentences of a concept with the smallest hashes are kept
(bottom-k sampling). This is a uniform sample of the distinct sentences, independent of the order of the
text and of how it was cut into pieces.
"""

from __future__ import annotations

from zlib import crc32

import numba
import numpy as np
import numpy.typing as npt

from alignment.arrays import Bools, Ints
from alignment.text.word_matching import WordFinder, mask_non_words

MIN_BYTES, MAX_BYTES = 20, 400
"""Shorter and longer sentences are skipped."""

_SPACE = 32
_ABBREVIATIONS = b"""
    al approx apr aug capt cf co col corp dec dept dr ed eds eg est etc feb fig figs gen gov hon ie inc
    jan jr jul jun lt ltd mar mr mrs ms no nov oct pp prof rep rev sen sep sept sgt sr st vol vs
"""

_Bytes = npt.NDArray[np.uint8]
_Hashes = npt.NDArray[np.uint64]


class SentenceSampler:
    """Samples `candidates` sentences for each word of a finder, and `pool` sentences without any."""

    def __init__(self, finder: WordFinder, candidates: int, pool: int = 0, seed: int = 0) -> None:
        self._finder = finder
        self._seed = seed
        # the last sample is for sentences without any of the words
        self._samples = [_BottomKSketch(candidates) for _ in finder.words] + [_BottomKSketch(pool)]
        self._limits = np.array([sample.limit for sample in self._samples], np.uint64)

    def add_text(self, text: bytes) -> None:
        """Add UTF-8 text that consists of complete paragraphs."""
        starts, ends = sentence_bounds(text)
        fits = (ends - starts >= MIN_BYTES) & (ends - starts <= MAX_BYTES)
        words, offsets = self._finder.find_in_bytes(text)
        sentences = np.searchsorted(starts, offsets, side="right") - 1
        pairs = np.unique(sentences * len(self._finder.words) + words)
        sentences, words = np.divmod(pairs, max(1, len(self._finder.words)))
        n_words = np.bincount(sentences, minlength=len(starts))
        # a sentence with two concepts can represent neither
        is_single = (n_words[sentences] == 1) & fits[sentences]
        neutral = np.flatnonzero((n_words == 0) & fits) if self._samples[-1].size else sentences[:0]
        self._add(text, starts, ends, sentences[is_single], words[is_single])
        self._add(text, starts, ends, neutral, np.full(len(neutral), len(self._samples) - 1))

    def sentences_of_word(self, word_index: int) -> list[str]:
        """The sampled sentences of a word, in the random order of their hashes."""
        return [sentence.decode() for _, sentence in self._samples[word_index].items()]

    def neutral_sentences(self) -> list[str]:
        """The sampled sentences without any of the words, in the random order of their hashes."""
        return self.sentences_of_word(len(self._samples) - 1)

    def _add(self, text: bytes, starts: Ints, ends: Ints, sentences: Ints, samples: Ints) -> None:
        hashes = _hash_sentences(text, starts[sentences], ends[sentences], self._seed)
        below_limit = np.flatnonzero(hashes < self._limits[samples])
        _, first = np.unique(hashes[below_limit], return_index=True)
        for row in below_limit[first]:
            sentence, number = sentences[row], samples[row]
            sample = self._samples[number]
            sample.add(int(hashes[row]), text[starts[sentence] : ends[sentence]])
            self._limits[number] = sample.limit


class _BottomKSketch:
    """The `size` sentences with the smallest distinct hashes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.limit = (1 << 64) - 1 if size else 0
        self._sentences: dict[int, bytes] = {}

    def add(self, key: int, sentence: bytes) -> None:
        if key < self.limit:
            self._sentences.setdefault(key, sentence)
            if len(self._sentences) >= 2 * self.size:
                self._sentences = dict(self.items())
                self.limit = max(self._sentences) + 1

    def items(self) -> list[tuple[int, bytes]]:
        return sorted(self._sentences.items())[: self.size]


def sentence_bounds(text: bytes) -> tuple[Ints, Ints]:
    """Start and end byte (exclusive) of each sentence of a text, without surrounding white space.

    A sentence ends at . ! or ?, optionally with closing quotes or brackets, followed by white space and
    not a lower-case letter, and at an empty line, but not after an initial or a common English
    abbreviation. Good enough for sampling; the sampled sentences are split again more carefully.
    """
    raw, plain = np.frombuffer(text, np.uint8), np.frombuffer(mask_non_words(text), np.uint8)
    if not len(raw):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # two ends are at least two bytes apart: a full stop and a space, or two line breaks
    bounds = np.empty((2, len(raw) // 2 + 1), np.int64)
    count = _find_bounds(raw, plain, *bounds)
    return bounds[0, :count], bounds[1, :count]


@numba.njit(cache=True, nogil=True)
def _find_bounds(raw: _Bytes, plain: _Bytes, starts: Ints, ends: Ints) -> int:
    """Fill in the bounds of the sentences and return their number; `plain` is the masked text."""
    size, count, index = len(raw), 0, 0
    while index < size and raw[index] <= _SPACE:
        index += 1
    starts[0] = index
    while index < size:
        if raw[index] > _SPACE:
            index += 1
            continue
        first, lines = index, 0
        while index < size and raw[index] <= _SPACE:
            lines += raw[index] == _NEW_LINE
            index += 1
        before = first - 1
        for _ in range(2):
            if _CLOSING[raw[before]] and before > 0:
                before -= 1
        following = raw[min(index, size - 1)]
        is_end = _ENDING[raw[before]] and not _LOWER_A <= following <= _LOWER_Z
        if is_end and raw[before] == _DOT:
            is_end = not _is_abbreviation(plain, before)
        if is_end or lines > 1:
            ends[count] = first
            count += 1
            starts[count] = index
    ends[count] = max(size, starts[count])
    return count + 1


@numba.njit(cache=True, nogil=True)
def _is_abbreviation(plain: _Bytes, dot: int) -> bool:
    """Whether the word before a full stop is a single letter or a known abbreviation."""
    key = np.uint64(0)
    for back in range(1, _MAX_ABBREVIATION_LENGTH + 2):
        letter = plain[dot - back] if back <= dot else _SPACE
        if letter == _SPACE:
            if back == 2 and plain[dot - 1] > _NINE:
                return True
            index = np.searchsorted(_KEYS, key)
            return bool(back > 1 and index < len(_KEYS) and _KEYS[index] == key)
        key |= np.uint64(letter) << np.uint64(8 * (back - 1))
    return False


def _hash_sentences(text: bytes, starts: Ints, ends: Ints, seed: int) -> _Hashes:
    """Hash each sentence with the seed. Two different sentences collide with a probability of one in
    four billion; the second then counts as a repeat."""
    bounds = zip(starts.tolist(), ends.tolist(), strict=True)
    checksums = np.fromiter((crc32(text[start:end]) for start, end in bounds), np.uint64, len(starts))
    return _splitmix64(checksums ^ _splitmix64(np.array([seed], np.uint64)))


def _splitmix64(values: _Hashes) -> _Hashes:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _byte_table(characters: str) -> Bools:
    table = np.zeros(256, np.bool_)
    table[list(characters.encode())] = True
    return table


_NEW_LINE, _DOT, _NINE, _LOWER_A, _LOWER_Z = b"\n.9az"
_MAX_ABBREVIATION_LENGTH = max(map(len, _ABBREVIATIONS.split()))
_KEYS = np.array(sorted(int.from_bytes(word, "big") for word in _ABBREVIATIONS.split()), np.uint64)
"""The abbreviations as big-endian integers."""

_ENDING = _byte_table(".!?")
_CLOSING = _byte_table("\"')]")
