"""What steering is asked: sequences of tokens, the neurons forced while they are read, and the tokens
whose probability is wanted.

Sequences of one length go together, so that nothing is ever padded. A word's probability needs the
prompt and all but the last of the word's tokens; all words share the reading of their prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

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
class Branch:
    """Tokens that follow a sequence, each branch as if it were alone, and what is wanted of them, at
    positions that count from the first of them."""

    ids: Ids
    targets: Sequence[Target]


@dataclass(frozen=True)
class Row:
    """A sequence that is read under a forcing, what is wanted of it, and its branches, the shortest
    first. Rows of one group are added up in attributions."""

    ids: Ids
    forced: Forced = field(default_factory=dict)
    targets: Sequence[Target] = ()
    group: int = 0
    branches: Sequence[Branch] = ()

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return len(self.ids) + sum(len(branch.ids) for branch in self.branches)


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

    @cached_property
    def branches(self) -> list[Batch]:
        """The branches of all rows, those of one length together; their numbers are those of the rows of
        this batch that they follow."""
        of_length: dict[int, Batch] = {}
        for number, row in enumerate(self.rows):
            for branch in row.branches:
                batch = of_length.setdefault(len(branch.ids), Batch([], []))
                batch.rows.append(Row(branch.ids, row.forced, branch.targets))
                batch.numbers.append(number)
        return [batch for _, batch in sorted(of_length.items())]

    def joined(self, found: Sequence[Sequence[Floats]]) -> list[Floats]:
        """What was found of each row's own targets, then of those of its branches: `found` has a list
        for the batch and for each of `branches`."""
        parts = [[own] for own in found[0]]
        for batch, of_branches in zip(self.branches, found[1:], strict=True):
            for number, values in zip(batch.numbers, of_branches, strict=True):
                parts[number].append(values)
        return [np.concatenate(some) for some in parts]


def cut(rows: Sequence[Row], budget: int) -> list[Batch]:
    """Batches of at most `budget` tokens (one row at least), each of sequences of one length."""
    of_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        of_length.setdefault(len(row.ids), []).append(number)
    batches = []
    for _, numbers in sorted(of_length.items()):
        room = 0
        for number in numbers:
            room -= rows[number].tokens
            if room < 0:
                batches.append(Batch([], []))
                room = budget - rows[number].tokens
            batches[-1].rows.append(rows[number])
            batches[-1].numbers.append(number)
    return batches


class Reading:
    """Words after prompts as the fewest tokens: each prompt is read once and followed by its words, all
    but their last token, as branches; words that begin another are read with it."""

    def __init__(self, words: Iterable[Word]) -> None:
        self.words = list(words)
        after: dict[Ids, list[int]] = {}
        for number, word in enumerate(self.words):
            after.setdefault(word.before, []).append(number)
        self._rows: list[Row] = []
        self._places: list[tuple[int, list[int]]] = [(0, [])] * len(self.words)
        for before, numbers in after.items():
            row, places = _follow(before, [self.words[number] for number in numbers])
            for number, place in zip(numbers, places, strict=True):
                self._places[number] = (len(self._rows), place)
            self._rows.append(row)

    def rows(self, forced: Forced) -> Iterator[Row]:
        """What is to be read under a forcing."""
        for row in self._rows:
            yield replace(row, forced=forced)

    def __len__(self) -> int:
        return len(self._rows)

    def log_p(self, found: Sequence[Floats]) -> Floats:
        """log P of each word, of shape (words,), from the log-probabilities of the targets of each of
        the rows and its branches."""
        return np.array([found[row][places].sum() for row, places in self._places])


def _follow(before: Ids, words: Sequence[Word]) -> tuple[Row, list[list[int]]]:
    """The words after one prompt as a row, and which of its values are those of each word's tokens."""
    branch_of: dict[Ids, Ids] = {}
    branches: dict[Ids, list[Target]] = {}
    for tail in sorted({word.tokens[:-1] for word in words}, key=lambda tail: (-len(tail), tail)):
        if tail and tail not in branch_of:
            branches[tail] = []
            branch_of |= {tail[:end]: tail for end in range(1, len(tail) + 1)}
    own: list[Target] = []
    later: list[tuple[Ids, slice]] = []
    for word in words:
        own.append(Target(len(before) - 1, word.tokens[0]))
        branch = branch_of.get(word.tokens[:-1], ())
        asked = branches.get(branch, [])
        later.append((branch, slice(len(asked), len(asked) + len(word.tokens) - 1)))
        asked += [Target(at, token) for at, token in enumerate(word.tokens[1:])]
    shortest_first = list(reversed(branches))
    values_of: dict[Ids, list[int]] = {(): []}
    at = len(own)
    for branch in shortest_first:
        values_of[branch] = list(range(at, at + len(branches[branch])))
        at += len(branches[branch])
    places = [[first, *values_of[branch][part]] for first, (branch, part) in enumerate(later)]
    followed = [Branch(branch, branches[branch]) for branch in shortest_first]
    return Row(before, targets=own, branches=followed), places
