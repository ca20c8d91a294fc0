"""A shard that pools the activations of its neurons. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from alignment.arrays import AnyFloats
from cluster.activations.batching import batch_sentences, pad
from cluster.activations.buffer import ActivationBuffer, PooledSite
from cluster.activations.pooling import Pooler
from cluster.activations.pooling_shard import (
    PAD_ID,
    ActivationSettings,
    PoolingShard,
    PoolingState,
    overflow_error,
)
from cluster.activations.sentence_set import SentenceSet, tokenize
from cluster.models.sites import Site
from cluster.models.tokenizer import Text
from storage.store.commit import all_finite

__all__ = ["PAD_ID", "ActivationSettings", "ActivationShard", "HiddenStates", "UnitActivations"]

HiddenStates = list[torch.Tensor]


@dataclass(frozen=True)
class UnitActivations:
    """Activations of a work unit, (units, sentences) by pooled site: float16 for neurons, float32 for
    hidden states (their mean and last token)."""

    values: dict[PooledSite, AnyFloats]
    n_tokens: int
    n_truncated: int


@dataclass
class UnitState:
    """A work unit in progress: its sentences, batches of sentence indices, and pooled activations."""

    sentences: SentenceSet
    batches: list[list[int]]
    buffer: ActivationBuffer


@dataclass(kw_only=True)
class _UnitPoolingState(PoolingState):
    pooled: dict[PooledSite, torch.Tensor] = field(default_factory=dict)


class ActivationShard(PoolingShard[_UnitPoolingState]):
    """Pools the sentences of one work unit after another into host memory."""

    def __init__(
        self,
        folder: Path,
        settings: ActivationSettings,
        layers: range | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(folder, settings, layers, device)
        self._spare_buffers: list[ActivationBuffer] = []
        self._neuron_poolings = settings.poolings
        self._inputs = settings.inputs

    def run(self, texts: Sequence[Text], budget: int) -> UnitActivations:
        """Run a work unit through a shard that holds the complete model."""
        state = self.begin(texts, budget)
        self.step(state, range(len(state.batches)), None)
        return self.finish(state)

    def begin(self, texts: Sequence[Text], budget: int) -> UnitState:
        """Tokenize a work unit and split it into batches of at most `budget` tokens, the same in all
        shards. Raises UserError if a sentence has no tokens to pool."""
        sentences = tokenize(self.tokenizer, texts, self._inputs, self._neuron_poolings)
        if self.is_first:
            sentences.check_vocabulary(self.n_embeddings)
        batches = batch_sentences(sentences.lengths, budget)
        return UnitState(sentences, batches, self._get_buffer(len(texts)))

    def step(self, state: UnitState, indices: range, incoming: HiddenStates | None) -> HiddenStates:
        """Run some of a unit's batches: from hidden states before the shard (None at layer 0) to those
        after it. Raises NeuralignError if a site has no output."""
        outgoing = []
        for step, index in enumerate(indices):
            rows = state.batches[index]
            batch = pad([state.sentences.tokens[row] for row in rows], PAD_ID, self.device)
            forward = _UnitPoolingState(pooler=Pooler(batch))
            self._run_batch(forward, batch, None if incoming is None else incoming[step])
            outgoing.append(self._outgoing(forward))
            state.buffer.add_batch(rows, forward.pooled)
        return outgoing

    def finish(self, state: UnitState) -> UnitActivations:
        """The unit's activations, as views of its buffer (see `recycle`). Raises NeuralignError if a
        value is not finite in float16."""
        values = state.buffer.values()
        for (pooling, site), tensor in values.items():
            if not all_finite(tensor.numpy()):
                raise overflow_error(site, pooling)
        return UnitActivations(
            {key: tensor.numpy().T for key, tensor in values.items()},
            n_tokens=sum(state.sentences.lengths),
            n_truncated=state.sentences.n_truncated,
        )

    def recycle(self, state: UnitState) -> None:
        """Reuse a unit's buffer once its activations are no longer needed: the system zeroes new memory
        page by page, which takes as long as filling it."""
        self._spare_buffers.append(state.buffer)

    def embed(self, words: Sequence[str]) -> npt.NDArray[np.float32]:
        """Mean input embedding of each word's tokens, (words, width); first shard only."""
        return self.embed_tokens([self.tokenizer.word_ids(word) for word in words])

    def _get_buffer(self, n_sentences: int) -> ActivationBuffer:
        while self._spare_buffers:
            buffer = self._spare_buffers.pop()
            if buffer.sentences == n_sentences:
                return buffer
        return ActivationBuffer(self.pooled_dtypes, n_sentences)

    def _pool(self, state: _UnitPoolingState, site: Site, hidden: torch.Tensor, first_unit: int) -> None:
        for pooling, pooled in state.pooler(hidden, self.poolings[site]).items():
            key = pooling, site
            if site.part != "experts":
                state.pooled[key] = pooled
                continue
            # An expert without tokens is not run: its neurons stay 0.
            if key not in state.pooled:
                state.pooled[key] = pooled.new_zeros(len(pooled), site.width)
            state.pooled[key][:, first_unit : first_unit + pooled.shape[1]] = pooled
