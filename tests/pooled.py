"""Pooled values of texts, from a model or some of its layers in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import batch_sentences, pad
from cluster.activations.block_buffer import BlockBuffer
from cluster.activations.block_shard import BlockShard
from cluster.activations.pooling_shard import PAD_ID, ActivationSettings
from cluster.activations.sentence_set import SentenceSet, tokenize
from cluster.models.model_config import read_config
from cluster.models.shard import token_limit
from cluster.models.sites import Site
from cluster.models.tokenizer import Text, Tokenizer

PooledSite = tuple[str, Site]
Pooled = dict[PooledSite, npt.NDArray[np.floating[Any]]]
"""Values by pooling and site, (units, sentences)."""


def read_texts(folder: Path, settings: ActivationSettings, texts: Sequence[Text]) -> SentenceSet:
    """The texts as the model reads them."""
    limit = token_limit(read_config(folder, settings.trust_remote_code).get_text_config())
    tokenizer = Tokenizer(folder, limit, settings.trust_remote_code)
    return tokenize(tokenizer, texts, settings.inputs, settings.poolings)


def pool(folder: Path, settings: ActivationSettings, texts: Sequence[Text], budget: int) -> Pooled:
    """Pooled values of all sites of a model, in batches of at most `budget` tokens."""
    sentences = read_texts(folder, settings, texts)
    return run_layers(BlockShard(folder, settings), sentences, budget)[0]


def run_layers(
    shard: BlockShard,
    sentences: SentenceSet,
    budget: int,
    incoming: Sequence[torch.Tensor] | None = None,
    dtypes: Mapping[PooledSite, torch.dtype] | None = None,
    pad_id: int = PAD_ID,
) -> tuple[Pooled, list[torch.Tensor]]:
    """Pooled values of the layers of a shard, by default in their own dtypes, and the hidden states of
    each batch after them; `incoming` are those before them, except at layer 0."""
    batches = batch_sentences(sentences.lengths, budget)
    buffer = BlockBuffer(dtypes or shard.pooled_dtypes, len(sentences), shard.device)
    outgoing, first = list[torch.Tensor](), 0
    for number, rows in enumerate(batches):
        batch = pad([sentences.tokens[row] for row in rows], pad_id, shard.device)
        columns = slice(first, first + len(rows))
        hidden = None if incoming is None else incoming[number]
        outgoing.append(shard.run(batch, hidden, buffer, columns))
        first = columns.stop
    order = [row for rows in batches for row in rows]
    pooled = buffer.finish(order, [text.text for text in sentences.texts])
    values = {
        (group.pooling, site): of_site.numpy() for group in pooled for site, of_site in group.of_sites()
    }
    return values, outgoing
