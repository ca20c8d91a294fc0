"""A pass of a sentence set through a model in a Ray actor, which hands over the values of each layer."""

from __future__ import annotations

import gc
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import pyarrow as pa
import ray
import torch
from ray.exceptions import RayError

from cluster.activations.batching import PaddedBatch
from cluster.activations.block_plan import (
    free_memory,
    is_divisible,
    measure_model,
    plan_model,
    split_evenly,
)
from cluster.activations.block_shard import BlockShard
from cluster.activations.model_pass import Block, ModelPass
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.sentence_set import SentenceSet, tokenize
from cluster.activations.spool import SpoolSettings, complete_layers, spool_folder
from cluster.models.model_config import read_config
from cluster.models.partial_model import count_layers
from cluster.models.shard import token_limit
from cluster.models.sites import Site
from cluster.models.tokenizer import Text, Tokenizer
from cluster.models.weights import ensure_local
from cluster.runtime.shard_group import ModelActor, ShardGroup
from storage import tables
from storage.errors import NeuralignError
from storage.store.activation_files import INPUT_EMBEDDINGS_FILE
from storage.store.commit import FileRecord, write_table
from storage.store.manifest import read_work_units, write_work_unit
from storage.store.paths import list_dir

_PROGRESS = "progress"
"""Concurrency group of the calls that count what is done, parallel to the pass."""

_ANSWER_SECONDS = 10.0
_SECONDS_IN_BLOCK = 60
_CORE_FLOP_PER_SECOND = 5e10
"""Assumed rate of a core: a run that is killed loses about the block in work."""

_SPOOL_SHARE = 0.25
"""Hidden states of a GPU's pass stay in host memory if they fill at most a quarter of it: reading so few
again takes minutes. All others go to disk, so that a run that is killed continues there."""

_HOST_FACTOR = 2.5
"""Padding, and pinned memory, which is allocated in powers of two."""


class SiteValues(NamedTuple):
    """The pooled values of a site, (units, sentences), on the device."""

    pooling: str
    site: str
    values: torch.Tensor


class LayerConsumer(Protocol):
    """What is done with the values of a layer, once all sentences have passed through it."""

    def working_bytes(self, device: str, /) -> int:
        """Memory of the device that it needs beside the values."""

    def __call__(self, layer: int, sites: Sequence[SiteValues], /) -> list[FileRecord]:
        """Commit files; they are recorded together, as the work unit of the layer."""


@dataclass(frozen=True)
class PassRequest:
    """Sentences to read in batches of at most `budget` tokens.

    Layers are recorded as work units in `folder`. `spool` is a folder for hidden states, by default a
    temporary one. The first layer also commits the input embeddings of `words`. `memory_factor` is how
    many times the consumer's memory is left beside a block.
    """

    texts: Sequence[Text]
    words: Sequence[str]
    budget: int
    folder: Path
    spool: Path | None
    consumer: LayerConsumer
    memory_factor: int = 1

    def leave_more_memory(self) -> PassRequest:
        """The request to retry when memory ran out in the consumer."""
        return replace(self, memory_factor=2 * self.memory_factor)


def layer_unit(layer: int) -> str:
    """Name of a layer's work unit."""
    return f"L{layer:02d}"


class PassActor(ModelActor[Any]):
    """Runs a pass on one device."""

    _pass: _CountedPass | None = None

    def count_done(self) -> int:
        """Sentences times missing layers that were read since the pass began."""
        return 0 if self._pass is None else self._pass.n_read

    def run(self, request: PassRequest) -> None:
        """Run the layers that are not recorded yet, after those that they need.

        Raises:
            UserError: if the model cannot be read, or does not fit the device.
            NeuralignError: if a site has no output, or a value is not finite.
        """
        try:
            with _spool_of(request) as spool:
                self._run(request, spool)
        except Exception as error:
            # Its frames would keep tensors alive, and memory may have run out.
            traceback.clear_frames(error.__traceback__)
            gc.collect()
            torch.cuda.empty_cache()
            if isinstance(error, NeuralignError):
                raise type(error)(f"model {self._weights.label}: {error}") from error
            raise

    def _run(self, request: PassRequest, spool_path: Path) -> None:
        # In this thread, too: see ModelActor.
        torch.set_num_threads(1)
        folder, settings = ensure_local(self._weights), cast(ActivationSettings, self._settings)
        limit = token_limit(read_config(folder, settings.trust_remote_code).get_text_config())
        tokenizer = Tokenizer(folder, limit, settings.trust_remote_code)
        sentences = tokenize(tokenizer, request.texts, settings.inputs, settings.poolings)
        recorded = read_work_units(request.folder)
        layers = range(count_layers(folder, settings.trust_remote_code))
        missing = [layer for layer in layers if layer_unit(layer) not in recorded]
        if not missing:
            return
        device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        blocks = _plan_blocks(folder, settings, sentences, request, device)
        spool = SpoolSettings(spool_path, _spool_bytes(folder, settings, sentences, device))
        model_pass = _CountedPass(folder, settings, sentences, request.budget, spool, device, blocks)
        model_pass.missing = frozenset(missing)
        self._pass = model_pass

        def consume(block: Block) -> None:
            for layer in sorted(model_pass.missing.intersection(block.layers)):
                sites = sites_of(block, layer)
                values = [SiteValues(pooling, site.name, tensor) for pooling, site, tensor in sites]
                files = request.consumer(layer, values)
                facts: dict[str, Any] = {
                    "places": [
                        [pooling, site.layer, site.name, site.width, site.module, site.part]
                        for pooling, site, _ in sites
                    ],
                    "notes": list(model_pass.notes),
                }
                if layer == 0:
                    files += _write_embeddings(request, block, tokenizer)
                    facts |= _describe_inputs(sentences, tokenizer, request.words)
                write_work_unit(request.folder, layer_unit(layer), files, facts)

        model_pass.run(consume, _clean_spool(spool_path, missing[0], is_new=not recorded))


class _CountedPass(ModelPass):
    """A pass that counts the sentences that went through each of the `missing` layers."""

    missing: frozenset[int] = frozenset()
    n_read = 0

    def _run_parts(self, shard: BlockShard, batch: PaddedBatch, *arguments: Any) -> torch.Tensor:
        outgoing = super()._run_parts(shard, batch, *arguments)
        self.n_read += len(batch.roles) * len(self.missing.intersection(shard.layers))
        return outgoing


class PassWorker(ShardGroup):
    """The actor of a pass, as seen from the driver."""

    actor_class = ray.remote(concurrency_groups={_PROGRESS: 1})(PassActor)  # type: ignore[call-overload]

    def run(self, request: PassRequest) -> Any:
        """Start the pass; a reference that resolves at its end."""
        return self.actors[0].run.remote(request)

    def count_done(self) -> int:
        """`PassActor.count_done`; 0 if the actor does not answer."""
        count = self.actors[0].count_done.options(concurrency_group=_PROGRESS).remote()
        try:
            return int(ray.get(count, timeout=_ANSWER_SECONDS))
        except RayError:
            return 0


def _plan_blocks(
    folder: Path,
    settings: ActivationSettings,
    sentences: SentenceSet,
    request: PassRequest,
    device: str,
) -> list[range]:
    """The blocks that fit the device; on a CPU each takes about a minute, or is a layer."""
    memory = free_memory(torch.device(device))
    working_bytes = request.memory_factor * request.consumer.working_bytes(device)
    blocks = plan_model(folder, settings, len(sentences), request.budget, memory, working_bytes)
    if device != "cpu" or not is_divisible(folder, settings):
        return blocks
    dtype: torch.dtype = getattr(torch, settings.dtype)
    layer_bytes = max(layer.weights for layer in measure_model(folder, settings).layers)
    # Two operations per weight and token.
    flop = 2 * layer_bytes / dtype.itemsize * sum(sentences.lengths)
    most = max(1, int(_SECONDS_IN_BLOCK * _CORE_FLOP_PER_SECOND / flop))
    return [part for block in blocks for part in split_evenly(block, -(-len(block) // most))]


@contextmanager
def _spool_of(request: PassRequest) -> Iterator[Path]:
    if request.spool is not None:
        yield request.spool
        return
    with tempfile.TemporaryDirectory(prefix="neuralign-") as folder:
        yield Path(folder)


def _spool_bytes(folder: Path, settings: ActivationSettings, sentences: SentenceSet, device: str) -> int:
    """Host memory for the hidden states before and after a block; 0 if they go to disk."""
    if device == "cpu":
        return 0
    width = read_config(folder, settings.trust_remote_code).get_text_config().hidden_size
    dtype: torch.dtype = getattr(torch, settings.dtype)
    needed = int(2 * _HOST_FACTOR * sum(sentences.lengths) * width * dtype.itemsize)
    return needed if needed <= _SPOOL_SHARE * free_memory(torch.device("cpu")) else 0


def _clean_spool(spool: Path, first_missing: int, is_new: bool) -> int:
    """The layer to begin at: the last one up to `first_missing` whose hidden states an earlier run left
    complete, or 0. Removes all other hidden states, which may be of other inputs if the run `is_new`."""
    found = [layer for layer in complete_layers(spool) if layer <= first_missing and not is_new]
    first = max(found, default=0)
    for folder in list_dir(spool):
        if folder != spool_folder(spool, first):
            shutil.rmtree(folder)
    return first


def sites_of(block: Block, layer: int) -> list[tuple[str, Site, torch.Tensor]]:
    """Pooling, site and values of a layer's sites."""
    return [
        (pooled.pooling, site, values)
        for pooled in block.pooled
        for site, values in pooled.of_sites()
        if site.layer == layer
    ]


def _write_embeddings(request: PassRequest, block: Block, tokenizer: Tokenizer) -> list[FileRecord]:
    vectors = block.embed_tokens([tokenizer.word_ids(word) for word in request.words])
    columns = {"concept": list(request.words), "vector": list(vectors)}
    table = pa.Table.from_pydict(columns, tables.INPUT_EMBEDDINGS)
    return [write_table(request.folder, INPUT_EMBEDDINGS_FILE, table)]


def _describe_inputs(
    sentences: SentenceSet, tokenizer: Tokenizer, words: Sequence[str]
) -> dict[str, Any]:
    return {
        "tokens": sum(sentences.lengths),
        "cut": sentences.n_truncated,
        "word_tokens": {word: len(tokenizer.word_ids(word.replace("_", " "))) for word in words},
    }
