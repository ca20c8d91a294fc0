"""Size of the hidden states that a pass keeps on disk between two blocks of layers."""

from __future__ import annotations

_BOUNDARIES = 2
"""A block reads those before it and writes those after it."""

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def spool_bytes(n_tokens: int, hidden_size: int, dtype: str) -> int:
    """Most bytes at a time of all sentences' hidden states, without padding; 0 are written if all layers
    fit one block, or if a GPU's host memory keeps them."""
    return _BOUNDARIES * n_tokens * hidden_size * _ITEM_BYTES[dtype]
