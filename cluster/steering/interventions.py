"""Interventions on neurons, and the sequences whose log-probabilities are measured under them.

Sequences of one length are batched, so nothing is padded. A word's probability needs the prompt and all
but the last of the word's tokens; words after the same prompt share its forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import numpy.typing as npt

from alignment.arrays import Floats, Ints

TokenIds = tuple[int, ...]
SiteKey = tuple[int, str]
"""A layer and the name of a site in it."""


@dataclass(frozen=True)
class ChangedUnits:
    """Distinct units of one site, whose activation x becomes scale * x + offset at every token."""

    units: Ints
    scales: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.float32]


def clamp_units(units: Ints, values: npt.NDArray[np.float32]) -> ChangedUnits:
    """Set units to values."""
    return ChangedUnits(units, np.zeros(len(units), np.float32), values)


Intervention = Mapping[SiteKey, ChangedUnits]
"""The neurons that are changed in one sequence, by site; most sites have none."""

NO_INTERVENTION: Intervention = {}


@dataclass(frozen=True)
class Target:
    """A token whose log-probability is measured, after the token at `position` of a sequence."""

    position: int
    token: int


@dataclass(frozen=True)
class PromptedWord:
    """A word after a prompt: the token ids of both."""

    prefix: TokenIds
    tokens: TokenIds

    @property
    def sequence(self) -> TokenIds:
        """Input that gives the probabilities of all the word's tokens."""
        return self.prefix + self.tokens[:-1]

    @property
    def targets(self) -> list[Target]:
        start = len(self.prefix) - 1
        return [Target(start + index, token) for index, token in enumerate(self.tokens)]


@dataclass(frozen=True)
class Branch:
    """One continuation of a sequence, independent of the others; target positions start at 0."""

    ids: TokenIds
    targets: Sequence[Target]


@dataclass(frozen=True)
class SteeredSequence:
    """A sequence to run under an intervention, with its targets and its branches, shortest first.
    Attributions are summed over the sequences of a group."""

    ids: TokenIds
    intervention: Intervention = field(default_factory=dict)
    targets: Sequence[Target] = ()
    group: int = 0
    branches: Sequence[Branch] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens to run, with those of the branches."""
        return len(self.ids) + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True)
class SteeringBatch:
    """Sequences of one length, and their indices among all sequences."""

    rows: list[SteeredSequence]
    indices: list[int]

    @property
    def length(self) -> int:
        return len(self.rows[0].ids)

    @property
    def n_scored_positions(self) -> int:
        """Number of last positions that include every target."""
        positions = [target.position for row in self.rows for target in row.targets]
        return self.length - min(positions, default=self.length)

    @cached_property
    def branches(self) -> list[SteeringBatch]:
        """The branches of all rows, batched by length, with the indices of their rows in this batch."""
        batches: dict[int, SteeringBatch] = {}
        for index, row in enumerate(self.rows):
            for branch in row.branches:
                batch = batches.setdefault(len(branch.ids), SteeringBatch([], []))
                batch.rows.append(SteeredSequence(branch.ids, row.intervention, branch.targets))
                batch.indices.append(index)
        return [batch for _, batch in sorted(batches.items())]

    def merge_branches(self, values: Sequence[Sequence[Floats]]) -> list[Floats]:
        """Values of each row's targets followed by those of its branches; `values` has one list for the
        batch and one for each of `branches`."""
        parts = [[row_values] for row_values in values[0]]
        for batch, branch_values in zip(self.branches, values[1:], strict=True):
            for index, row_values in zip(batch.indices, branch_values, strict=True):
                parts[index].append(row_values)
        return [np.concatenate(row_parts) for row_parts in parts]


def batch_sequences(sequences: Sequence[SteeredSequence], budget: int) -> list[SteeringBatch]:
    """Batches of sequences of one length, of at most `budget` tokens but at least one sequence."""

    def length(index: int) -> int:
        return len(sequences[index].ids)

    batches = []
    for _, indices in groupby(sorted(range(len(sequences)), key=length), key=length):
        room = 0
        for index in indices:
            room -= sequences[index].n_tokens
            if room < 0:
                batches.append(SteeringBatch([], []))
                room = budget - sequences[index].n_tokens
            batches[-1].rows.append(sequences[index])
            batches[-1].indices.append(index)
    return batches


class PrefixSharedWords:
    """Words after prompts, in as few tokens as possible: each prompt runs once, with its words (without
    their last tokens) as branches; a word that is a prefix of another shares its branch."""

    def __init__(self, words: Iterable[PromptedWord]) -> None:
        self.words = list(words)
        indices_by_prefix: dict[TokenIds, list[int]] = {}
        for index, word in enumerate(self.words):
            indices_by_prefix.setdefault(word.prefix, []).append(index)
        self._sequences: list[SteeredSequence] = []
        self._value_indices: list[tuple[int, list[int]]] = [(0, [])] * len(self.words)
        for prefix, indices in indices_by_prefix.items():
            sequence, value_indices = _share_prefix(prefix, [self.words[index] for index in indices])
            for index, word_values in zip(indices, value_indices, strict=True):
                self._value_indices[index] = (len(self._sequences), word_values)
            self._sequences.append(sequence)

    def sequences(self, intervention: Intervention) -> Iterator[SteeredSequence]:
        """The sequences to run under an intervention."""
        for sequence in self._sequences:
            yield replace(sequence, intervention=intervention)

    def __len__(self) -> int:
        return len(self._sequences)

    def log_p(self, target_log_p: Sequence[Floats]) -> Floats:
        """log P of each word, of shape (words,), from those of each sequence's targets and branches."""
        return np.array([target_log_p[row][indices].sum() for row, indices in self._value_indices])


def _share_prefix(
    prefix: TokenIds, words: Sequence[PromptedWord]
) -> tuple[SteeredSequence, list[list[int]]]:
    """One sequence for all words after a prompt, and the indices of each word's tokens in its values."""
    branch_of: dict[TokenIds, TokenIds] = {}
    words_of: dict[TokenIds, list[int]] = {}
    for tail in sorted({word.tokens[:-1] for word in words}, key=lambda tail: (-len(tail), tail)):
        if tail and tail not in branch_of:
            words_of[tail] = []
            branch_of |= {tail[:end]: tail for end in range(1, len(tail) + 1)}
    for index, word in enumerate(words):
        if len(word.tokens) > 1:
            words_of[branch_of[word.tokens[:-1]]].append(index)
    value_indices = [[first] for first in range(len(words))]
    n_values = len(words)
    branches = []
    # From the shortest branch to the longest.
    for ids, indices in reversed(words_of.items()):
        targets: list[Target] = []
        for index in indices:
            later_tokens = words[index].tokens[1:]
            targets += [Target(position, token) for position, token in enumerate(later_tokens)]
            value_indices[index].extend(range(n_values, n_values + len(later_tokens)))
            n_values += len(later_tokens)
        branches.append(Branch(ids, targets))
    first_targets = [word.targets[0] for word in words]
    return SteeredSequence(prefix, targets=first_targets, branches=branches), value_indices
