"""Static word vectors: GloVe from a package, and files in the common formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from alignment.arrays import AnyFloats
from storage.assets import ASSETS
from storage.errors import UserError
from storage.readers.file_format import FORMAT_NAMES, find_signature, is_compressed
from storage.readers.vector_rows import read_binary_rows, read_text_rows

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
    """The words' vectors from a file; words without a vector are left out.

    The format is word2vec (text or binary), GloVe or fastText (.vec, or .bin, which composes vectors of
    unseen words from subwords), optionally compressed (.gz, .bz2). Words are looked up as given and in
    lower case, with a space, `_` or `-` between their parts. Only the rows of these words are parsed.

    Raises:
        UserError: if the file is missing or in another format, or has two vectors of a word or one with
            values that are not finite numbers.
    """
    if (found := find_signature(path)) is not None:
        raise UserError(f"{path}: is {FORMAT_NAMES[found]}; expected word vectors")
    if is_compressed(path) and path.suffix not in (".gz", ".bz2"):
        raise UserError(f"{path}: is compressed; its name must end in .gz or .bz2")
    try:
        vectors = _load(path, {word: _forms(word) for word in words})
    except UserError:
        raise
    # gensim raises errors of any kind for files in other formats
    except Exception as error:
        raise UserError(
            f"{path}: is not a file of word vectors (word2vec, GloVe or fastText): "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    for word, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise UserError(f"{path}: the vector of {word!r} is not finite in float32")
    return vectors


def _forms(word: str) -> list[str]:
    joined = [word, *(separator.join(word.replace("_", " ").split()) for separator in " _-")]
    return list(dict.fromkeys([*joined, *map(str.lower, joined)]))


def _load(path: Path, forms: dict[str, list[str]]) -> Vectors:
    """The vectors of words, given with their forms; the file's first bytes determine its format."""
    # slow to import
    from gensim.utils import open as open_any

    with open_any(str(path), "rb") as file:
        head = file.read(_HEADER_BYTES)
    first, _, rest = head.partition(b"\n")
    sizes = first.split()
    has_header = len(sizes) == 2 and all(size.isdigit() for size in sizes)
    # early fastText models lack the magic number
    if head.startswith(_FASTTEXT_MAGIC) or (not has_header and b"\0" in head):
        return _load_fasttext(path, forms)
    if not has_header and not _is_text(head):
        raise ValueError("it does not start with a word and numbers")
    size = (int(sizes[0]), int(sizes[1])) if has_header else None
    wanted = {form.encode(): form for candidates in forms.values() for form in candidates}
    vectors: Vectors = {}
    with open_any(str(path), "rb") as file:
        if size is not None and not _is_text(rest):
            rows = read_binary_rows(file, size, wanted)
        else:
            rows = read_text_rows(file, str(path), size, wanted)
        for row_word, vector in rows:
            if wanted[row_word] in vectors:
                raise UserError(f"{path}: has two vectors of {wanted[row_word]!r}")
            vectors[wanted[row_word]] = vector
    matches = {
        word: [form for form in candidates if form in vectors] for word, candidates in forms.items()
    }
    return {word: vectors[found[0]] for word, found in matches.items() if found}


def _load_fasttext(path: Path, forms: dict[str, list[str]]) -> Vectors:
    from gensim.models.fasttext import load_facebook_vectors

    vectors = load_facebook_vectors(str(path))
    result = {}
    for word, candidates in forms.items():
        # seen forms take precedence over those that fastText can compose
        matches = [form for form in candidates if form in vectors.key_to_index] or [
            form for form in candidates if form in vectors
        ]
        if matches:
            result[word] = np.array(vectors[matches[0]])
    return result


def _is_text(rows: bytes) -> bool:
    """Whether the first word is followed by a number in text form."""
    try:
        float(rows.split(b" ", 2)[1])
    except (ValueError, IndexError):
        return False
    return True
