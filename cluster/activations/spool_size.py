"""Size of the hidden states that a pass keeps between two blocks of layers, and how much of the host
memory they may take."""

from __future__ import annotations

_BOUNDARIES = 2
"""A block reads those before it and writes those after it."""

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_MEMORY_SHARE = 0.6
"""Of a host's free memory, for the hidden states of a GPU's pass. The rest is for the next block's
weights, which are read ahead, and for other processes."""

_PADDING = 1.15
"""Assumed size of padded batches in pinned memory, relative to their tokens."""


def hidden_state_bytes(n_tokens: int, hidden_size: int, dtype: str) -> int:
    """Most bytes at a time of all sentences' hidden states, without padding; none if all layers fit one
    block."""
    return _BOUNDARIES * n_tokens * hidden_size * _ITEM_BYTES[dtype]


def spool_memory(free: int) -> int:
    """Host memory that a GPU's pass may fill with hidden states; the others go to disk."""
    return int(_MEMORY_SHARE * free)


def share_on_disk(n_bytes: int, free: int) -> float:
    """Share of the hidden states of a GPU's pass, of so many bytes at most, that goes to disk."""
    return max(0.0, 1 - spool_memory(free) / (_PADDING * n_bytes)) if n_bytes else 0.0
