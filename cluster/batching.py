"""How a work unit's sentences are put into batches: a function of the unit alone.

In bfloat16 some values depend on the batch, so a unit that is done again must be cut the same way.
"""

from __future__ import annotations

from collections.abc import Sequence


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of the sentences of each batch, shortest sentences first.

    A batch padded to its longest sentence holds at most `budget` tokens; a sentence longer than
    that is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda position: (lengths[position], position))
    cut: list[list[int]] = []
    for position in order:
        if cut and (len(cut[-1]) + 1) * lengths[position] <= budget:
            cut[-1].append(position)
        else:
            cut.append([position])
    return cut
