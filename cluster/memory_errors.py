"""Errors of a device or a machine whose memory ran out."""

from __future__ import annotations

import errno

from storage.errors import NeuralignError

_MESSAGES = ("out of memory", "allocate memory", "alloc_failed", "could not create a primitive")
"""Of CUDA and its allocator in torch, of torch's allocator in host memory, of cuBLAS, and of oneDNN,
which does not say why. NumPy and Arrow raise MemoryError, with other messages or none."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the cause of an error that neuralign raised, is that memory ran out.

    Messages count only in the types that torch and the operating system raise: others may quote a text
    that says so.
    """
    if isinstance(error, NeuralignError):
        return is_out_of_memory(error.__cause__)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError | OSError):
        message = str(error).lower()
        return any(text in message for text in _MESSAGES)
    return isinstance(error, MemoryError)
