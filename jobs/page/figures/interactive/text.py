"""Literal text in Plotly, and symbols for groups and lines."""

from __future__ import annotations

import html

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
MAX_TICKS = 5


def escape_label(text: str) -> str:
    """Escaped text: Plotly renders some HTML in names and labels."""
    return html.escape(text, quote=False)


def escape_for_template(text: str) -> str:
    """Escaped text in a hover template, where a percent sign starts a variable."""
    return escape_label(text).replace("%", "&#37;")
