"""Work on many rows in chunks that fit the memory of a device."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class DeviceChunks:
    """Processes rows in chunks, from where memory runs out in chunks of half as many.

    The sizes are remembered by the work's name. Results must not depend on the chunks.
    """

    _reduced: dict[str, int] = field(default_factory=dict, init=False)

    @property
    def notes(self) -> list[str]:
        """What had to be done in smaller chunks."""
        return [
            f"{name}: the device ran out of memory; rerun with at most {size:,} rows at a time"
            for name, size in self._reduced.items()
        ]

    def run(self, name: str, n_rows: int, size: int, process: Callable[[slice], T]) -> list[T]:
        """The results of `process` for chunks of at most `size` rows, in their order.

        `process` may be called again for rows for which it ran out of memory. Raises
        torch.OutOfMemoryError if memory runs out for a single row.
        """
        size, first = min(size, self._reduced.get(name, size)), 0
        results = []
        while first < n_rows:
            rows = slice(first, min(first + size, n_rows))
            try:
                results.append(process(rows))
            except torch.OutOfMemoryError as error:
                n_tried = rows.stop - first
                if n_tried == 1:
                    raise
                # Its frames would keep tensors alive.
                traceback.clear_frames(error.__traceback__)
                size = self._reduced[name] = (n_tried + 1) // 2
            else:
                first = rows.stop
        return results
