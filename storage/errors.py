"""The exceptions of neuralign.

NeuralignError              reported without a traceback
├── UserError        exit 2 invalid input: one line with what, where and what to do
│   └── StoreError   exit 2 the store is unusable
└── WorkFailed       exit 1 some of the work failed: a list of failures and causes

Any other exception is a bug and is shown with its traceback.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_MAX_EXCERPT = 80


class NeuralignError(Exception):
    """Base class of the errors reported to users."""

    exit_code = 1


class UserError(NeuralignError):
    """Invalid input; nothing was computed from it."""

    exit_code = 2


class StoreError(UserError):
    """The store is missing, damaged, or of another version."""


class WorkFailed(NeuralignError):
    """Some work units failed permanently; the others are committed."""

    def __init__(self, summary: str, failures: Sequence[str]) -> None:
        super().__init__(summary, list(failures))
        self.summary = summary
        self.failures = list(failures)

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"  {failure}" for failure in self.failures)])


def excerpt(text: str) -> str:
    """A user's text for errors and notes: quoted, and truncated if it is long."""
    return repr(textwrap.shorten(text, _MAX_EXCERPT, placeholder=" ..."))
