"""The exceptions of neuralign, in one tree.

NeuralignError              anything that is reported without a traceback
├── UserError        exit 2 the input is wrong: one line says what, where and what to do
│   └── StoreError   exit 2 the store cannot be used as it is
└── WorkFailed       exit 1 some of the work failed: a list says which and why

Anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_LONGEST_EXCERPT = 80


class NeuralignError(Exception):
    """Base of everything that neuralign reports to its user."""

    exit_code = 1


class UserError(NeuralignError):
    """What the user gave cannot be used; nothing was computed from it."""

    exit_code = 2


class StoreError(UserError):
    """The store is missing, was made by another version, or is damaged."""


class WorkFailed(NeuralignError):
    """Some units of work failed for good; the others are committed."""

    def __init__(self, summary: str, failures: Sequence[str]) -> None:
        super().__init__(summary, list(failures))
        self.summary = summary
        self.failures = list(failures)

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"  {failure}" for failure in self.failures)])


def excerpt(text: str) -> str:
    """A user's text as errors and notes show it: in quotes, and not whole where it is long."""
    return repr(textwrap.shorten(text, _LONGEST_EXCERPT, placeholder=" ..."))
