"""The console of all commands, which prints no control characters of data."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from storage.printable import printable


class DataConsole(Console):
    """A console for texts that contain data: names and sentences can neither format nor control it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)
