"""Batches of a work unit's sentences: a function of the unit alone.

In bfloat16 some values depend on the batch, so a retried unit must be split the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.models.token_roles import IGNORED
from cluster.models.tokenizer import TokenizedText

_FULL_ENOUGH = 4


@dataclass(frozen=True)
class PaddedBatch:
    """Sentences padded on the right to one length; each array has shape (sentences, tokens).

    `ids` and `attention` are on the device, and the tokens' `roles` in host memory, from which each
    pooling makes what it needs.
    """

    ids: torch.Tensor
    attention: torch.Tensor
    roles: npt.NDArray[np.int8]

    def split(self, parts: int) -> list[PaddedBatch]:
        """Parts of nearly equal numbers of sentences, padded to the same length; at least one each."""
        edges = [len(self.roles) * part // parts for part in range(parts + 1)]
        return [
            PaddedBatch(self.ids[start:stop], self.attention[start:stop], self.roles[start:stop])
            for start, stop in pairwise(edges)
            if start < stop
        ]


def batch_sentences(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of the sentences of each batch, shortest sentences first.

    A padded batch holds at most `budget` tokens, or one longer sentence. Lengths mix only in batches
    less than a quarter full: padding costs as much as text, and attention without it needs no mask.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batches and _fits(len(batches[-1]), lengths[batches[-1][-1]], lengths[index], budget):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def batch_shapes(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The number of sentences in each batch, and of tokens to which they are padded."""
    return [(len(batch), max(lengths[index] for index in batch)) for batch in batches]


def pad(sentences: Sequence[TokenizedText], pad_id: int, device: torch.device) -> PaddedBatch:
    """A batch, padded on the right with `pad_id`, which attention masks."""
    lengths = np.array([len(sentence.ids) for sentence in sentences])
    is_text = np.arange(lengths.max()) < lengths[:, np.newaxis]

    def pad_rows(rows: Sequence[Sequence[int]], filler: int) -> npt.NDArray[np.int64]:
        padded = np.full(is_text.shape, filler)
        padded[is_text] = np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
        return padded

    roles = pad_rows([sentence.roles for sentence in sentences], IGNORED).astype(np.int8)
    ids = pad_rows([sentence.ids for sentence in sentences], pad_id)
    return PaddedBatch(copy_to(ids, device), copy_to(is_text.astype(np.int64), device), roles)


def copy_to(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array's values on a device, without waiting for the work queued there."""
    values = torch.from_numpy(array)
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _fits(count: int, longest: int, length: int, budget: int) -> bool:
    """Whether a sentence of `length` tokens, at least `longest`, fits a batch of `count` sentences."""
    mixable = length == longest or count * longest < budget // _FULL_ENOUGH
    return mixable and (count + 1) * length <= budget
