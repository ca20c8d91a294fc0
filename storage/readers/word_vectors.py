"""Static word vectors: GloVe from its package, and files of any of the common kinds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from storage.assets import ASSETS
from storage.errors import UserError

Vectors = dict[str, npt.NDArray[np.floating[Any]]]

_FASTTEXT = (793712314).to_bytes(4, "little")
"""The mark that a fastText model begins with."""
_HEAD_BYTES = 1 << 16


def read_glove(words: list[str]) -> Vectors:
    """GloVe 6B vectors (50 numbers each) of those of the words that have one, in lower case."""
    index = pq.read_table(ASSETS["glove-50-index"].path()).column("index").to_pylist()
    wanted = {word.lower() for word in words}
    rows = {word: row for row, word in enumerate(index) if word in wanted}
    matrix = np.load(ASSETS["glove-50"].path(), mmap_mode="r", allow_pickle=False)
    return {word: np.array(matrix[rows[word.lower()]]) for word in words if word.lower() in rows}


def read_vectors(path: Path, words: list[str]) -> Vectors:
    """Vectors of those of the words that a file has one of, read by gensim.

    The file is word2vec's (text or binary), GloVe's or fastText's (.vec, or .bin, which also makes
    vectors of words that it never saw, from their parts); it may be compressed (.gz, .bz2). A word is
    looked for as it stands and in lower case, its parts with a space, `_` or `-` between them.

    Raises UserError for a file that is not there or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        vectors = _load(path)
    except (ValueError, EOFError, OSError, AssertionError, NotImplementedError, MemoryError) as error:
        raise UserError(
            f"{path}: is no file of word vectors (word2vec, GloVe or fastText): "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    found = {}
    for word in words:
        forms = _forms(word)
        # a form that fastText saw goes before one that it can make
        known = [form for form in forms if form in vectors.key_to_index] or [
            form for form in forms if form in vectors
        ]
        if known:
            found[word] = np.array(vectors[known[0]])
    return found


def _forms(word: str) -> list[str]:
    joined = [word, *(mark.join(word.replace("_", " ").split()) for mark in " _-")]
    return list(dict.fromkeys([*joined, *map(str.lower, joined)]))


def _load(path: Path) -> Any:
    """The vectors of a file, of the kind that its beginning tells."""
    # slow to load
    from gensim.models import KeyedVectors
    from gensim.models.fasttext import load_facebook_vectors
    from gensim.utils import open as open_any

    with open_any(str(path), "rb") as file:
        head = file.read(_HEAD_BYTES)
    first, _, rest = head.partition(b"\n")
    sizes = first.split()
    has_header = len(sizes) == 2 and all(size.isdigit() for size in sizes)
    # fastText's first models did not begin with its mark
    if head.startswith(_FASTTEXT) or (not has_header and b"\0" in head):
        return load_facebook_vectors(str(path))
    if not has_header and not _is_text(head):
        raise ValueError("it does not begin with a word and numbers")
    with warnings.catch_warnings():
        # without a header gensim opens the file twice and leaves one to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        return KeyedVectors.load_word2vec_format(
            str(path),
            binary=has_header and not _is_text(rest),
            no_header=not has_header,
            # word2vec cuts long words in the middle of a letter
            unicode_errors="ignore",
        )


def _is_text(rows: bytes) -> bool:
    """Whether a number that can be read follows the first word."""
    try:
        float(rows.split(b" ", 2)[1])
    except (ValueError, IndexError):
        return False
    return True
