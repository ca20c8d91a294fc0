"""Text as Plotly shows it to the letter, and the marks that groups and lines share."""

from __future__ import annotations

import html

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
MOST_TICKS = 5


def plain(text: str) -> str:
    """Text that is shown as it is: Plotly takes some HTML in names and labels for markup."""
    return html.escape(text, quote=False)


def in_template(text: str) -> str:
    """Text within a hover template, where a percent sign starts a variable."""
    return plain(text).replace("%", "&#37;")
