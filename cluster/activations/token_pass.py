"""Reads some sentences again to find the tokens of the maxima of single neurons. Imports no Ray.

A sentence is read up to the last layer that it is needed for: the best experts are mostly in early ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cluster.activations.batching import batch_sentences, pad
from cluster.activations.block_memory import free_block, frozen_objects
from cluster.activations.block_plan import free_memory, is_divisible, plan_model, split_evenly
from cluster.activations.pooling_shard import PAD_ID, ActivationSettings
from cluster.activations.sentence_set import SentenceSet
from cluster.activations.token_shard import Targets, TokenShard

_LAYERS_IN_BLOCK = 4
"""At the end of a block, sentences are dropped; to load one takes a fraction of a second."""


@dataclass
class TokenPass:
    """A model, its sentences and the targets, whose tokens and maxima are entered.

    `budget` is the number of tokens in a batch.
    """

    folder: Path
    settings: ActivationSettings
    sentences: SentenceSet
    targets: Targets
    budget: int
    device: str = "cpu"
    n_read: int = field(default=0, init=False)
    """Sentences times layers that were read."""

    def __post_init__(self) -> None:
        self._settings = replace(self.settings, include_hidden_states=False)
        self._states: dict[int, torch.Tensor] = {}
        self._n_layers = np.zeros(len(self.sentences), np.int64)
        for (layer, _), site in self.targets.items():
            np.maximum.at(self._n_layers, site.sentences, layer + 1)

    def run(self, consume: Callable[[range], None]) -> None:
        """Call `consume` with the layers of each block, once its targets are found.

        Raises:
            UserError: if the model cannot be read, or does not fit the device.
            NeuralignError: if a site has no output.
        """
        with frozen_objects():
            for layers in self._plan():
                sentences = np.flatnonzero(self._n_layers > layers.start).tolist()
                if not sentences:
                    break
                self._run_block(layers, sentences)
                consume(layers)

    def _plan(self) -> list[range]:
        """Blocks that fit the device, which holds pooled values of no sentence."""
        memory = free_memory(torch.device(self.device))
        blocks = plan_model(self.folder, self._settings, 0, self.budget, memory, 0)
        if not is_divisible(self.folder, self._settings):
            return blocks
        return [
            part for block in blocks for part in split_evenly(block, -(-len(block) // _LAYERS_IN_BLOCK))
        ]

    def _run_block(self, layers: range, sentences: Sequence[int]) -> None:
        shard = TokenShard(self.folder, self._settings, layers, self.device)
        lengths = [len(self.sentences.tokens[sentence].ids) for sentence in sentences]
        for places in batch_sentences(lengths, self.budget):
            batch_of = [sentences[place] for place in places]
            batch = pad([self.sentences.tokens[each] for each in batch_of], PAD_ID, shard.device)
            outgoing = shard.run(batch, batch_of, self._pad_states(batch_of, shard), self.targets)
            for row, sentence in enumerate(batch_of):
                self._states.pop(sentence, None)
                if self._n_layers[sentence] > layers.stop:
                    length = len(self.sentences.tokens[sentence].ids)
                    self._states[sentence] = outgoing[row, :length].cpu().clone()
                self.n_read += int(min(self._n_layers[sentence], layers.stop)) - layers.start
        del shard
        free_block(torch.device(self.device))

    def _pad_states(self, sentences: Sequence[int], shard: TokenShard) -> torch.Tensor | None:
        """The hidden states of a batch before the block, (sentences, tokens, width)."""
        if shard.is_first:
            return None
        states = [self._states[sentence] for sentence in sentences]
        return torch.nn.utils.rnn.pad_sequence(states, batch_first=True).to(shard.device)
