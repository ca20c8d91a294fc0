"""Static word vectors: GloVe from a package, and files in the common formats."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from alignment.arrays import AnyFloats
from storage.assets import ASSETS
from storage.errors import UserError
from storage.readers.file_format import FORMAT_NAMES, find_signature, is_compressed

Vectors = dict[str, AnyFloats]

_FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")
"""First bytes of a fastText model."""
_HEADER_BYTES = 1 << 16


def read_glove(words: list[str]) -> Vectors:
    """GloVe 6B vectors (50-d) of the words that have one; case is ignored."""
    index = pq.read_table(ASSETS["glove-50-index"].path()).column("index").to_pylist()
    lower_words = {word.lower() for word in words}
    rows = {word: row for row, word in enumerate(index) if word in lower_words}
    matrix = np.load(ASSETS["glove-50"].path(), mmap_mode="r", allow_pickle=False)
    return {word: np.array(matrix[rows[word.lower()]]) for word in words if word.lower() in rows}


def read_vectors(path: Path, words: list[str]) -> Vectors:
    """The words' vectors from a file, read by gensim; words without a vector are left out.

    The format is word2vec (text or binary), GloVe or fastText (.vec, or .bin, which composes vectors of
    unseen words from subwords), optionally compressed (.gz, .bz2). Words are looked up as given and in
    lower case, with a space, `_` or `-` between their parts.

    Raises:
        UserError: if the file is missing or in another format.
    """
    if (found := find_signature(path)) is not None:
        raise UserError(f"{path}: is {FORMAT_NAMES[found]}; expected word vectors")
    if is_compressed(path) and path.suffix not in (".gz", ".bz2"):
        raise UserError(f"{path}: is compressed; its name must end in .gz or .bz2")
    try:
        vectors = _load(path)
    # gensim raises errors of any kind for files in other formats
    except Exception as error:
        raise UserError(
            f"{path}: is not a file of word vectors (word2vec, GloVe or fastText): "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    result = {}
    for word in words:
        forms = _forms(word)
        # seen forms take precedence over those that fastText can compose
        matches = [form for form in forms if form in vectors.key_to_index] or [
            form for form in forms if form in vectors
        ]
        if matches:
            result[word] = np.array(vectors[matches[0]])
    return result


def _forms(word: str) -> list[str]:
    joined = [word, *(separator.join(word.replace("_", " ").split()) for separator in " _-")]
    return list(dict.fromkeys([*joined, *map(str.lower, joined)]))


def _load(path: Path) -> Any:
    """The vectors of a file; its first bytes determine the format."""
    # slow to import
    from gensim.models import KeyedVectors
    from gensim.models.fasttext import load_facebook_vectors
    from gensim.utils import open as open_any

    with open_any(str(path), "rb") as file:
        head = file.read(_HEADER_BYTES)
    first, _, rest = head.partition(b"\n")
    sizes = first.split()
    has_header = len(sizes) == 2 and all(size.isdigit() for size in sizes)
    # early fastText models lack the magic number
    if head.startswith(_FASTTEXT_MAGIC) or (not has_header and b"\0" in head):
        return load_facebook_vectors(str(path))
    if not has_header and not _is_text(head):
        raise ValueError("it does not start with a word and numbers")
    is_binary = has_header and not _is_text(rest)
    if not is_binary:
        _check_widths(path, int(sizes[1]) if has_header else None)
    with warnings.catch_warnings():
        # without a header, gensim opens the file twice and leaves one handle open
        warnings.simplefilter("ignore", ResourceWarning)
        return KeyedVectors.load_word2vec_format(
            str(path),
            binary=is_binary,
            no_header=not has_header,
            # word2vec may truncate a long word inside a multibyte character
            unicode_errors="ignore",
        )


def _check_widths(path: Path, width: int | None) -> None:
    """Raise ValueError unless all rows of a text file have `width` numbers (None: as many as the first).

    gensim repeats a single number over the whole vector.
    """
    from gensim.utils import open as open_any

    with open_any(str(path), "rb") as file:
        first = 1 if width is None else 2
        for line, row in enumerate(file, 1):
            n_numbers = row.rstrip().count(b" ")
            width = n_numbers if width is None else width
            if line >= first and row.strip() and n_numbers != width:
                raise ValueError(f"line {line} has {n_numbers} numbers, expected {width}")


def _is_text(rows: bytes) -> bool:
    """Whether the first word is followed by a number in text form."""
    try:
        float(rows.split(b" ", 2)[1])
    except (ValueError, IndexError):
        return False
    return True
