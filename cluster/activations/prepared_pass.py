"""A pass that is ready to run: its sentences as tokens, and what its blocks may take of a device."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch

from cluster.activations.block_plan import (
    ModelBytes,
    free_memory,
    is_divisible,
    measure_model,
    plan_model,
    split_evenly,
)
from cluster.activations.layer_recorder import LayerRecorder
from cluster.activations.pass_request import PassRequest
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.sentence_set import SentenceSet, tokenize
from cluster.activations.shard_choice import PassSize
from cluster.activations.spool_size import spool_memory
from cluster.models.model_config import read_config
from cluster.models.shard import token_limit
from cluster.models.tokenizer import Tokenizer

_SECONDS_IN_BLOCK = 60
"""On a CPU: a run that is killed loses about the block in work."""

_PRODUCT_SIZE = 1024
_SHARE_IN_MODEL = 0.5
"""Rate of a model's layers relative to that of a large matrix product."""


@dataclass
class PreparedPass:
    """A request for a model in a folder on one device, whose batches run in as many `threads`.

    Raises UserError if the model cannot be read, or a sentence has no tokens to pool.
    """

    folder: Path
    settings: ActivationSettings
    request: PassRequest
    device: str
    threads: int

    def __post_init__(self) -> None:
        trust_remote_code = self.settings.trust_remote_code
        limit = token_limit(read_config(self.folder, trust_remote_code).get_text_config())
        self.tokenizer = Tokenizer(self.folder, limit, trust_remote_code)
        self.sentences: SentenceSet = tokenize(
            self.tokenizer, self.request.texts, self.settings.inputs, self.settings.poolings
        )

    @cached_property
    def model(self) -> ModelBytes:
        """The bytes of the model."""
        return measure_model(self.folder, self.settings)

    @property
    def n_layers(self) -> int:
        """Number of layers of the model."""
        return len(self.model.layers)

    @property
    def layers(self) -> range:
        """The layers up to the last one with sites; the others are empty."""
        with_sites = [number for number, layer in enumerate(self.model.layers) if layer.pooled]
        return range(max(with_sites, default=0) + 1)

    @cached_property
    def size(self) -> PassSize:
        """What the pass needs of the device beside the model."""
        return PassSize(
            len(self.sentences),
            # Of the batches that run at once.
            self.request.budget * self.threads,
            self.request.memory_factor * self.request.consumer.working_bytes(self.device),
            max(self.sentences.lengths),
        )

    def make_recorder(self, missing: set[int], notes: list[str]) -> LayerRecorder:
        """A recorder of missing layers."""
        return LayerRecorder(self.request, self.sentences, self.tokenizer, missing, self.threads, notes)

    def plan_blocks(self) -> list[range]:
        """The blocks that fit the device, of which on a CPU each takes about a minute, or is a layer;
        divided further as the request says."""
        blocks = plan_model(
            self.folder,
            self.settings,
            self.size.sentences,
            self.size.budget,
            free_memory(torch.device(self.device)),
            self.size.consumer_bytes,
            self.size.longest,
            self.model,
        )
        if not is_divisible(self.folder, self.settings):
            return blocks
        most = self._layers_in_a_minute() if self.device == "cpu" else self.n_layers
        divisor = self.request.block_divisor
        return [
            part
            for block in blocks
            for part in split_evenly(block, min(len(block), -(-len(block) // most) * divisor))
        ]

    def _layers_in_a_minute(self) -> int:
        """The layers that cores read in about a minute, at least one."""
        dtype: torch.dtype = getattr(torch, self.settings.dtype)
        layer_bytes = max(layer.weights for layer in self.model.layers)
        # Two operations per weight and token.
        flop = 2 * layer_bytes / dtype.itemsize * sum(self.sentences.lengths)
        rate = _SHARE_IN_MODEL * _measure_core(dtype) * self.threads
        return max(1, int(_SECONDS_IN_BLOCK * rate / flop))

    def spool_memory(self) -> int:
        """Host memory for hidden states: none on a CPU, where all go to disk, so that a run that is
        killed continues there. Beside a GPU, reading the layers again takes minutes."""
        if self.device == "cpu":
            return 0
        return spool_memory(free_memory(torch.device("cpu"))) // self.request.block_divisor


@cache
def _measure_core(dtype: torch.dtype) -> float:
    """FLOP per second of a core in a large matrix product."""
    square = torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE, dtype=dtype)
    durations = []
    for _ in range(3):
        started = time.perf_counter()
        square @ square
        durations.append(time.perf_counter() - started)
    return 2 * _PRODUCT_SIZE**3 / min(durations)
