"""The rows of files of word vectors, in text (GloVe, word2vec, fastText's .vec) or binary (word2vec)."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import BinaryIO

import numpy as np

from alignment.arrays import AnyFloats
from storage.readers.cells import cell_number

VectorRows = Iterator[tuple[bytes, AnyFloats]]
"""Words and their vectors in float32. The words are bytes: word2vec may cut one inside a character."""

_BLOCK_BYTES = 1 << 20
_MAX_WIDTH = 1 << 16
_MAX_WORD_BYTES = 1 << 16


def read_text_rows(
    file: BinaryIO, name: str, size: tuple[int, int] | None, wanted: Container[bytes]
) -> VectorRows:
    """The rows of wanted words in text; without `size`, each row has as many numbers as the first.

    `file` is read from its start, `name` is its name in errors, and `size` the number of rows and of
    numbers per row that its first line lists.

    Raises:
        ValueError: if the rows have other sizes.
        UserError: for a wanted row with a value that is no number.
    """
    n_rows, width = 0, None
    if size is not None:
        width = size[1]
        file.readline()
    for line, row in enumerate(file, 1 if size is None else 2):
        # word2vec ends rows with a space
        word, _, numbers = row.rstrip().partition(b" ")
        if not word and not numbers:
            continue
        n_rows += 1
        n_numbers = numbers.count(b" ") + bool(numbers)
        width = n_numbers if width is None else width
        if n_numbers != width:
            raise ValueError(f"line {line} has {n_numbers} numbers, expected {width}")
        if word in wanted:
            yield word, _parse_numbers(numbers, f"{name}: line {line}")
    if size is not None and n_rows != size[0]:
        raise ValueError(f"it has {n_rows:,} words, but its first line says {size[0]:,}")


def read_binary_rows(file: BinaryIO, size: tuple[int, int], wanted: Container[bytes]) -> VectorRows:
    """The rows of wanted words in binary: a word, a space, float32; arguments as `read_text_rows`.

    Raises:
        ValueError: if the file ends before or after the last row.
    """
    n_rows, width = size
    if not 1 <= width <= _MAX_WIDTH:
        raise ValueError(f"its vectors have {width:,} numbers, expected 1 to {_MAX_WIDTH:,}")
    file.readline()
    n_bytes = 4 * width
    content, position = b"", 0
    for number in range(1, n_rows + 1):
        while (space := content.find(b" ", position)) < 0 or len(content) - space <= n_bytes:
            block = file.read(_BLOCK_BYTES)
            if not block or (space < 0 and len(content) - position > _MAX_WORD_BYTES):
                raise ValueError(f"row {number:,} of {n_rows:,} is incomplete")
            content, position = content[position:] + block, 0
        # some writers end rows with a line break
        word = content[position:space].lstrip(b"\n")
        position = space + 1 + n_bytes
        if word in wanted:
            yield word, np.frombuffer(content[space + 1 : position], "<f4")
    if (content[position:] + file.read(_BLOCK_BYTES)).strip(b"\n"):
        raise ValueError(f"it has more than the {n_rows:,} words that its first line says")


def _parse_numbers(numbers: bytes, where: str) -> AnyFloats:
    values = [cell_number(text, where, "value") for text in numbers.decode(errors="replace").split(" ")]
    # a number beyond float32 becomes infinite
    with np.errstate(over="ignore"):
        return np.array(values).astype(np.float32)
