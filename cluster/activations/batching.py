"""Batches of a work unit's sentences: a function of the unit alone.

In bfloat16 some values depend on the batch, so a retried unit must be split the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from cluster.models.tokenizer import TokenizedText

_FULL_ENOUGH = 4


@dataclass(frozen=True)
class PaddedBatch:
    """Sentences padded on the right to one length; each tensor has shape (sentences, tokens)."""

    ids: torch.Tensor
    attention: torch.Tensor
    real: torch.Tensor
    concept: torch.Tensor


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


def pad(sentences: Sequence[TokenizedText], pad_id: int, device: torch.device) -> PaddedBatch:
    """A batch, padded on the right with `pad_id`, which attention masks."""

    def pad_rows(rows: Iterable[Sequence[int]], filler: int = 0) -> torch.Tensor:
        return pad_sequence(list(map(torch.tensor, rows)), True, filler).to(device)

    return PaddedBatch(
        ids=pad_rows((sentence.ids for sentence in sentences), pad_id),
        attention=pad_rows([1] * len(sentence.ids) for sentence in sentences),
        real=pad_rows(sentence.real for sentence in sentences),
        concept=pad_rows(sentence.concept for sentence in sentences),
    )


def _fits(count: int, longest: int, length: int, budget: int) -> bool:
    """Whether a sentence of `length` tokens, at least `longest`, fits a batch of `count` sentences."""
    mixable = length == longest or count * longest < budget // _FULL_ENOUGH
    return mixable and (count + 1) * length <= budget
