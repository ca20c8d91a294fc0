"""How a work unit's sentences are put into batches: a function of the unit alone.

In bfloat16 some values depend on the batch, so a unit that is done again must be cut the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

_FULL_ENOUGH = 4


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of the sentences of each batch, shortest sentences first.

    A batch padded to its longest sentence holds at most `budget` tokens; a sentence longer than
    that is a batch of its own. Sentences of another length come into a batch only while it is less
    than a quarter full: padding costs as much as text, and without any the attention needs no mask.
    """
    order = sorted(range(len(lengths)), key=lambda position: (lengths[position], position))
    cut: list[list[int]] = []
    for position in order:
        if cut and _takes(len(cut[-1]), lengths[cut[-1][-1]], lengths[position], budget):
            cut[-1].append(position)
        else:
            cut.append([position])
    return cut


def _takes(count: int, longest: int, length: int, budget: int) -> bool:
    """Whether a batch of so many sentences takes one more, at least as long as its longest."""
    wanted = length == longest or count * longest < budget // _FULL_ENOUGH
    return wanted and (count + 1) * length <= budget
