"""Text from files and stores, made safe to print: a terminal obeys control characters."""

from __future__ import annotations

import re
import unicodedata

_CONTROLS = "Cc"
_REORDERING = re.compile("[\u2028-\u202e\u2066-\u2069]")
_SURROGATES = "Cs"
_USER_INFO = re.compile(r"(:/+)[^\s'\"]*@")
"""A URL up to its last @: a password may contain a slash, and a path library merges slashes."""

_PARAMETERS = re.compile(r"(:/+[^\s'\"?]*\?)[^\s'\"]+")


def printable(text: str, keep: str = "\n\t") -> str:
    """Text with control characters, reordering marks and lone surrogates as escapes such as \\x1b.

    The characters in `keep` are left as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character in keep or not _is_unsafe(character) else _escape(character)
        for character in text
    )


def hide_credentials(text: str) -> str:
    """Text with the user, the password and the parameters of every URL replaced by ***."""
    return _PARAMETERS.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))


def _is_unsafe(character: str) -> bool:
    category = unicodedata.category(character)
    return category in (_CONTROLS, _SURROGATES) or _REORDERING.match(character) is not None


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
