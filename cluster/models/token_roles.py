"""Roles of a sentence's tokens relative to its concept's word, and the roles that each maximum takes in.

The concepts' words of a sentence may occur several times in it; each time is an occurrence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

IGNORED, BEFORE, AFTER, WORD, WORD_END, NO_WORD = range(6)
"""Padding or not pooled; before the first occurrence; after that and of no occurrence; of an occurrence,
but not its last token; the last token of an occurrence; of a sentence without an occurrence."""

N_ROLES = 6

POOLED_ROLES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "max": (BEFORE, AFTER, WORD, WORD_END, NO_WORD),
        "concept": (WORD_END, NO_WORD),
        "concept-max": (WORD, WORD_END, NO_WORD),
        "context": (BEFORE, AFTER, NO_WORD),
        "before": (BEFORE, NO_WORD),
    }
)
"""The roles of the tokens over which each pooling takes the maximum."""


def role_bits(pooling: str) -> int:
    """The roles of a pooling as an integer, in which bit r stands for role r."""
    return sum(1 << role for role in POOLED_ROLES[pooling])


def has_state_at_word(roles: Sequence[int]) -> bool:
    """Whether a sentence has a hidden state at its concept's word: of the last token of an occurrence
    that is not in the first position, whose state many models give to any token."""
    return WORD_END in roles[1:]


def find_roles(is_real: Sequence[bool], occurrences: Sequence[Sequence[int]]) -> list[int]:
    """Roles of a sentence's tokens: whether each is pooled, and the tokens of each occurrence."""
    words = {index for occurrence in occurrences for index in occurrence}
    real = [[index for index in occurrence if is_real[index]] for occurrence in occurrences]
    ends = {occurrence[-1] for occurrence in real if occurrence}
    first = min(words, default=0)

    def find_role(index: int) -> int:
        if not is_real[index]:
            return IGNORED
        if index in words:
            return WORD_END if index in ends else WORD
        if not words:
            return NO_WORD
        return BEFORE if index < first else AFTER

    return [find_role(index) for index in range(len(is_real))]
