"""What steering is asked: sequences of tokens, the neurons forced while they are read, and the tokens
whose probability is wanted.

Sequences of one length go together, so that nothing is ever padded. A word's probability needs the
prompt and all but the last of the word's tokens; words that begin alike share a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Ids = tuple[int, ...]
Where = tuple[int, str]
"""A layer and the name of a site in it."""


@dataclass(frozen=True)
class Values:
    """Units of one site, each once, and the value that each is forced to."""

    units: Integers
    values: npt.NDArray[np.float32]


Forced = Mapping[Where, Values]
"""The neurons that are forced in one sequence, by their place; none in most places."""

NOTHING: Forced = {}


@dataclass(frozen=True)
class Target:
    """A token whose log-probability is wanted after the token at a position of a sequence."""

    position: int
    token: int


@dataclass(frozen=True)
class Word:
    """A word after a prompt: the tokens before it and its own."""

    before: Ids
    tokens: Ids

    @property
    def sequence(self) -> Ids:
        """What is read to know the probabilities of all its tokens."""
        return self.before + self.tokens[:-1]

    @property
    def targets(self) -> list[Target]:
        first = len(self.before) - 1
        return [Target(first + at, token) for at, token in enumerate(self.tokens)]


@dataclass(frozen=True)
class Row:
    """A sequence that is read under a forcing, and what is wanted of it. Rows of one group are added up
    in attributions."""

    ids: Ids
    forced: Forced = field(default_factory=dict)
    targets: Sequence[Target] = ()
    group: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows whose sequences have one length, and where they stand among all rows."""

    rows: list[Row]
    numbers: list[int]

    @property
    def length(self) -> int:
        return len(self.rows[0].ids)

    @property
    def wanted(self) -> int:
        """How many of the last positions have a target."""
        positions = [target.position for row in self.rows for target in row.targets]
        return self.length - min(positions, default=self.length)


def cut(rows: Sequence[Row], budget: int) -> list[Batch]:
    """Batches of at most `budget` tokens (one row at least), each of sequences of one length."""
    of_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        of_length.setdefault(len(row.ids), []).append(number)
    batches = []
    for length, numbers in sorted(of_length.items()):
        size = max(1, budget // length)
        for first in range(0, len(numbers), size):
            some = numbers[first : first + size]
            batches.append(Batch([rows[number] for number in some], some))
    return batches


class Reading:
    """Words after prompts as the fewest sequences: those that begin another are read with it."""

    def __init__(self, words: Iterable[Word]) -> None:
        self.words = list(words)
        known: dict[Ids, Ids] = {}
        longest: list[Ids] = []
        for sequence in sorted({word.sequence for word in self.words}, key=len, reverse=True):
            if sequence not in known:
                longest.append(sequence)
                known |= {sequence[:end]: sequence for end in range(1, len(sequence) + 1)}
        number = {sequence: place for place, sequence in enumerate(longest)}
        self._targets: list[list[Target]] = [[] for _ in longest]
        self._sequences = longest
        self._places: list[tuple[int, slice]] = []
        for word in self.words:
            place = number[known[word.sequence]]
            first = len(self._targets[place])
            self._targets[place] += word.targets
            self._places.append((place, slice(first, first + len(word.tokens))))

    def rows(self, forced: Forced) -> Iterator[Row]:
        """What is to be read under a forcing."""
        for ids, targets in zip(self._sequences, self._targets, strict=True):
            yield Row(ids, forced, targets)

    def __len__(self) -> int:
        return len(self._sequences)

    def log_p(self, found: Sequence[Floats]) -> Floats:
        """log P of each word, of shape (words,), from the log-probabilities of the targets of each of
        the rows."""
        return np.array([found[place][part].sum() for place, part in self._places])
