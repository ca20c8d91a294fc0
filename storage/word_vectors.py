"""Reading static word vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from storage.assets import ASSETS


def read_glove(words: list[str]) -> dict[str, npt.NDArray[np.floating[Any]]]:
    """GloVe 6B vectors (50 numbers each) of those of the words that have one, in lower case."""
    index = pq.read_table(ASSETS["glove-50-index"].path()).column("index").to_pylist()
    wanted = {word.lower() for word in words}
    rows = {word: row for row, word in enumerate(index) if word in wanted}
    matrix = np.load(ASSETS["glove-50"].path(), mmap_mode="r", allow_pickle=False)
    return {word: np.array(matrix[rows[word.lower()]]) for word in words if word.lower() in rows}
