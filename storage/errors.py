"""The exceptions of neuralign.

NeuralignError              reported without a traceback
├── UserError        exit 2 invalid input: one line with what, where and what to do
│   └── StoreError   exit 2 the store is unusable
│       └── SpoolError   hidden states on disk cannot be read; a pass computes them again
├── SessionLost      exit 1 Ray on this machine ended; a supervised command is started again
└── WorkFailed       exit 1 some of the work failed: a list of failures and causes

Any other exception is a bug and is shown with its traceback.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from storage.printable import hide_credentials, printable

_MAX_EXCERPT = 80
_MAX_LINE = 1000


class NeuralignError(Exception):
    """Base class of the errors reported to users; each argument is a line of the message.

    Arguments may contain messages of libraries, of any length and number of lines.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(one_line(str(argument)) for argument in self.args)


class UserError(NeuralignError):
    """Invalid input; nothing was computed from it."""

    exit_code = 2


class StoreError(UserError):
    """The store is missing, damaged, or of another version."""


class SpoolError(StoreError):
    """Hidden states that a pass left on disk are missing or damaged; they can be computed again."""


class SessionLost(NeuralignError):
    """The private Ray session on this machine has ended, because one of its processes died."""


class WorkFailed(NeuralignError):
    """Some work units failed permanently; the others are committed."""

    def __init__(self, summary: str, failures: Sequence[str]) -> None:
        super().__init__(summary, list(failures))
        self.summary = summary
        self.failures = list(failures)

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"  {one_line(failure)}" for failure in self.failures)])


def one_line(text: str) -> str:
    """A message without line breaks, control characters and, if it is very long, its middle.

    The credentials of URLs in it are replaced by ***.
    """
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    line = hide_credentials(printable(line, keep=""))
    half = _MAX_LINE // 2
    return line if len(line) <= _MAX_LINE else f"{line[:half]} ... {line[-half:]}"


def describe_error(error: BaseException) -> str:
    """The type of an unexpected error and the first line of its message, which has the essence."""
    lines = (line.strip() for line in str(error).splitlines())
    return one_line(f"{type(error).__name__}: {next(filter(None, lines), 'no message')}")


def excerpt(text: str) -> str:
    """A user's text for errors and notes: quoted, and truncated if it is long."""
    return repr(textwrap.shorten(text, _MAX_EXCERPT, placeholder=" ..."))
