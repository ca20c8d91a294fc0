"""The command `neuralign version`."""

from __future__ import annotations

from storage.version import __version__


def version() -> None:
    """Print the version."""
    print(__version__)
