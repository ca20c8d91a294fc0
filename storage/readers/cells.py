"""Cells of tables: text, numbers and what marks a missing value."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from numbers import Real
from typing import Any

from storage.errors import UserError, excerpt

_MISSING = frozenset(("", "NA", "N/A", "#N/A", "<NA>", "NaN", "NULL", "None"))
_MISSING_NUMBERS = frozenset(mark.lower() for mark in _MISSING)
_PYTHON_LITERAL = re.compile(r"""\[(['"]).*\1\]|b(['"]).*\2""", re.DOTALL)
_DECIMAL_COMMA = re.compile(r"[-+]?[\d.]*,\d+")


def cell_text(cell: Any, where: str, column: str) -> str:
    """The text of a cell, without white space around it; empty for null and NaN. Bytes are UTF-8.

    Raises:
        UserError: for lists, booleans, dates and other values that are neither text nor numbers, bytes
            that are not UTF-8, and text such as ['a', 'b'] or b'a', which Python wrote for such values.
    """
    # a shortcut, because published triplets have millions of cells
    if isinstance(cell, str) and cell.isalnum():
        return cell
    if isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: the bytes in {column!r} are not UTF-8 text: {error}") from error
    if isinstance(cell, str):
        text = cell.strip()
        if text.startswith(("[", "b")) and _PYTHON_LITERAL.fullmatch(text):
            raise UserError(f"{where}: {column!r} has {excerpt(text)}, a list or bytes; expected text")
        if "\0" in text or not (text.isascii() or _is_unicode(text)):
            raise UserError(f"{where}: {column!r} has {excerpt(text)}, which is not valid Unicode text")
        return text
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, Real | Decimal):
        raise UserError(
            f"{where}: {column!r} has {excerpt(str(cell))}, of type {type(cell).__name__}; expected "
            "text or a number"
        )
    return "" if math.isnan(cell) else str(cell)


def is_missing(text: str) -> bool:
    """Whether the text of a cell marks a missing value: empty, NA, NaN, NULL and so on.

    Case matters, because "none" and "null" are words.
    """
    return text in _MISSING


def is_missing_number(text: str) -> bool:
    """Whether the text of a cell marks a missing number, in any case."""
    return text.lower() in _MISSING_NUMBERS


def cell_number(text: str, where: str, what: str) -> float:
    """The number in a cell. Raises UserError for anything else and for non-finite numbers."""
    try:
        # Python reads 1_0 as 10
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        advice = " with a decimal point" if _DECIMAL_COMMA.fullmatch(text) else ""
        raise UserError(f"{where}: the {what} is {text!r}; expected a number{advice}")
    return value


def _is_unicode(text: str) -> bool:
    """Whether text has no lone surrogates, which JSON can contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
