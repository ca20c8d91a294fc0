"""Passes of one model, against the model alone in the same process."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from transformers import AutoModel, PretrainedConfig

from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import labels_against_others
from alignment.expertise.scoring import REFERENCE_PREVALENCE
from alignment.expertise.scoring_torch import BlockScorer
from benchmarks.gpu.random_model import make_texts, write_model
from benchmarks.gpu.scale import Scale
from cluster.activations.batching import batch_sentences, pad
from cluster.activations.block_plan import free_memory, measure_model, plan_blocks, split_evenly
from cluster.activations.block_shard import BlockShard
from cluster.activations.layer_recorder import sites_of
from cluster.activations.layer_writer import LayerWriter
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pass_actor import PassWorker
from cluster.activations.pass_request import PassRequest, SiteValues
from cluster.activations.pooling_shard import PAD_ID, ActivationSettings
from cluster.activations.sentence_set import SentenceSet, tokenize
from cluster.activations.spool import HiddenStateSpool, SpoolSettings
from cluster.models.shard import MAX_TOKENS
from cluster.models.sites import count_layer_weights
from cluster.models.tokenizer import Tokenizer
from cluster.models.weights import resolve
from storage.errors import UserError
from storage.store.commit import FileRecord

POOLINGS = ["max", "concept", "context"]
_FLOOR = 0.5
_WORD = "w1"
_FIRST_SENTENCES = 64
_SPOOL_BYTES = 32 << 30
_STEPS = 400


@dataclass
class Measured:
    """Sentences per second, and the most memory of the device in GB."""

    rate: float
    gigabytes: float


@dataclass
class Dropped:
    """A consumer that drops the values."""

    notes: list[str] = field(default_factory=list)

    def working_bytes(self, _device: str) -> int:
        """None."""
        return 0

    def __call__(self, _layer: int, _sites: Sequence[SiteValues], _threads: int) -> list[FileRecord]:
        """Commit no file."""
        return []


class ModelBench:
    """A model with random weights on the device, and its sentences."""

    def __init__(self, scale: Scale, config: PretrainedConfig, folder: Path) -> None:
        self.scale, self.config, self.device = scale, config, torch.device(scale.device)
        self.folder = write_model(folder / "model", config, scale.device)
        self.weight_bytes = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        self._scratch = folder
        self._spool = SpoolSettings(folder / "spool", _SPOOL_BYTES)
        self.model_bytes = measure_model(self.folder, self.settings())
        self.layers = range(len(self.model_bytes.layers))
        pooled = sum(layer.pooled for layer in self.model_bytes.layers)
        is_large = pooled * scale.sentences > scale.pooled_bytes
        texts = make_texts(scale.few_sentences if is_large else scale.sentences, config)
        tokenizer = Tokenizer(self.folder, MAX_TOKENS)
        self.sentences = tokenize(tokenizer, texts, self.settings().inputs, POOLINGS)
        self.few = _first(self.sentences, scale.few_sentences)

    def settings(self, has_states: bool = False) -> ActivationSettings:
        """Three poolings of all MLP neurons."""
        return ActivationSettings("bfloat16", "mlp", POOLINGS, include_hidden_states=has_states)

    def flop_per_sentence(self) -> float:
        """FLOPs of the layers, two per weight and token."""
        return 2 * count_layer_weights(self.config) * float(np.mean(self.sentences.lengths))

    def matrix_rate(self) -> float:
        """FLOPs per second of a large matrix product."""
        size = self.scale.matrix
        square = torch.randn(size, size, dtype=torch.bfloat16, device=self.device)
        return 2 * size**3 / self._best_seconds(lambda: square @ square)

    def start_seconds(self) -> float:
        """Seconds from the files of the weights to the first pooled values."""
        few = _first(self.sentences, _FIRST_SENTENCES)
        started = time.perf_counter()
        self._pass(few, [self.layers]).run(lambda _: self._synchronize())
        return time.perf_counter() - started

    def bare(self) -> dict[int, Measured]:
        """The model's body alone, with batches as the passes make them, by their number of tokens."""
        model = AutoModel.from_pretrained(self.folder, dtype=torch.bfloat16).eval().to(self.device)
        measured = {}
        for budget in self.scale.budgets:
            batches = [
                pad([self.sentences.tokens[row] for row in rows], PAD_ID, self.device)
                for rows in batch_sentences(self.sentences.lengths, budget)
            ]

            def run(batches: Any = batches) -> None:
                with torch.inference_mode():
                    for batch in batches:
                        model(batch.ids, attention_mask=batch.attention, use_cache=False)

            measured[budget] = self._measure(run)
        return measured

    def capture(self, has_states: bool = False, n_blocks: int = 1) -> Measured:
        """Passes over loaded blocks, whose values are dropped."""
        settings, blocks = self.settings(has_states), split_evenly(self.layers, n_blocks)
        # Earlier shards' hooks refer to them.
        gc.collect()
        reading = self._pass(self.sentences, blocks, settings)
        shards = [BlockShard(self.folder, settings, block, self.scale.device) for block in blocks]

        def run() -> None:
            incoming = None
            for shard in shards:
                outgoing = (
                    None
                    if shard.is_last
                    else HiddenStateSpool(self._spool, shard.layers.stop, self.device)
                )
                reading.read_block(shard, incoming, outgoing)
                incoming = outgoing

        return self._measure(run)

    def score(self, n_permutations: int) -> Measured:
        """A pass over the loaded model whose values are scored where they are."""
        n_sentences, n_concepts = len(self.sentences), self.scale.concepts
        numbers = np.arange(n_sentences)
        labels = labels_against_others(numbers, numbers % n_concepts, n_sentences, n_concepts)
        permutations = permute_labels(labels, n_permutations, 0)
        scorer = BlockScorer([labels], permutations, REFERENCE_PREVALENCE, self.scale.device)
        gc.collect()
        reading = self._pass(self.sentences, [self.layers])
        shard = BlockShard(self.folder, self.settings(), None, self.scale.device)

        def run() -> None:
            for pooled in reading.read_block(shard).pooled:
                scorer.score(pooled.values, _FLOOR)

        return self._measure(run)

    def write(self, folder: Path, threads: int) -> tuple[Measured, float, list[FileRecord]]:
        """A pass over the loaded model whose values are written. Also returns the seconds of writing
        and the files."""
        gc.collect()
        reading = self._pass(self.few, [self.layers])
        shard = BlockShard(self.folder, self.settings(), None, self.scale.device)
        writer, files = LayerWriter(folder), list[FileRecord]()
        seconds = list[float]()

        def run() -> None:
            block = reading.read_block(shard)
            self._synchronize()
            started = time.perf_counter()
            files[:] = [
                record
                for layer in block.layers
                for record in writer(layer, _values_of(block, layer), threads)
            ]
            seconds.append(time.perf_counter() - started)

        measured = self._measure(run, len(self.few))
        return measured, min(seconds[1:]), files

    def whole(self, n_blocks: int, is_limited: bool = False) -> Measured:
        """A pass with loading, in blocks of layers in turn; the device has only the memory that they
        need if it `is_limited`."""
        blocks, memory = split_evenly(self.layers, n_blocks), free_memory(self.device)
        if is_limited:
            memory, blocks = self._plan_small(n_blocks)

        def run() -> None:
            reading = self._pass(self.few, blocks)
            reading.run(lambda _: self._synchronize())
            if reading.notes:
                print("\n".join(reading.notes))

        with self._limited(memory):
            return self._measure(run, len(self.few))

    def on_cluster(self, n_shards: int) -> float:
        """Sentences per second of a pass with loading in actors that share the device."""
        kind = "GPU" if self.device.type == "cuda" else "CPU"
        resources = {kind: 1 / n_shards if kind == "GPU" else 1.0}
        weights = resolve(str(self.folder), "main", Path())
        worker = PassWorker(weights, self.settings(), n_shards, resources)

        def run() -> None:
            with tempfile.TemporaryDirectory(dir=self._scratch) as name:
                folder = Path(name)
                ray.get(
                    worker.run(
                        PassRequest(self.few.texts, [_WORD], self.scale.budget, folder, None, Dropped())
                    )
                )

        try:
            return len(self.few) / self._best_seconds(run)
        finally:
            worker.stop()

    def _pass(
        self, sentences: SentenceSet, blocks: list[range], settings: ActivationSettings | None = None
    ) -> ModelPass:
        return ModelPass(
            self.folder,
            settings or self.settings(),
            sentences,
            self.scale.budget,
            self._spool,
            self.scale.device,
            blocks,
        )

    def _measure(self, run: Callable[[], Any], n_sentences: int | None = None) -> Measured:
        is_gpu = self.device.type == "cuda"
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = self._best_seconds(run)
        gigabytes = torch.cuda.max_memory_allocated() / 1e9 if is_gpu else 0.0
        return Measured((n_sentences or len(self.sentences)) / seconds, gigabytes)

    def _best_seconds(self, run: Callable[[], Any]) -> float:
        """Seconds of the best of some rounds, after a first that is not counted."""
        durations = []
        for _ in range(1 + self.scale.rounds):
            self._synchronize()
            started = time.perf_counter()
            run()
            self._synchronize()
            durations.append(time.perf_counter() - started)
        return min(durations[1:])

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _plan_small(self, n_blocks: int) -> tuple[int, list[range]]:
        """The least memory that takes at most so many blocks, and the blocks."""
        model, n_sentences = self.model_bytes, len(self.few)
        total = model.embeddings + 2 * self.scale.budget * model.token
        total += sum(layer.weights + layer.pooled * n_sentences for layer in model.layers)
        for step in range(1, _STEPS):
            memory = 2 * total * step // _STEPS
            try:
                blocks = plan_blocks(model, n_sentences, self.scale.budget, memory)
            except UserError:
                continue
            if len(blocks) <= n_blocks:
                return memory, blocks
        raise RuntimeError("no size of memory takes so few blocks")

    @contextmanager
    def _limited(self, memory: int) -> Iterator[None]:
        """Let this process have only so much of the device's memory."""
        if self.device.type != "cuda":
            yield
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


def _first(sentences: SentenceSet, count: int) -> SentenceSet:
    return SentenceSet(sentences.texts[:count], sentences.tokens[:count])


def _values_of(block: Block, layer: int) -> list[SiteValues]:
    return [SiteValues(pooling, site.name, values) for pooling, site, values in sites_of(block, layer)]
