"""A pass of a sentence set through a model in Ray actors, which hand over the values of each layer."""

from __future__ import annotations

import gc
import math
import shutil
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray.exceptions import RayError
from ray.experimental.collective import create_collective_group
from ray.util.collective import nccl_available

from cluster.activations.block_memory import frozen_objects
from cluster.activations.model_pass import ModelPass
from cluster.activations.pass_request import PassRequest, layer_unit
from cluster.activations.pipeline_shard import HiddenStates, PipelineShard
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.prepared_pass import PreparedPass
from cluster.activations.spool import SpoolSettings
from cluster.activations.token_pass import TokenPass
from cluster.activations.token_rows import TokenRequest, TokenRows
from cluster.models.weights import ensure_local
from cluster.runtime.shard_group import ModelActor, ShardGroup
from storage.errors import NeuralignError
from storage.store.manifest import read_work_units
from storage.store.temporary_folder import temporary_folder

_PROGRESS = "progress"
"""Concurrency group of the calls that count what is done, parallel to the pass."""

_ANSWER_SECONDS = 10.0

_BATCHES_IN_STEP = 4
"""A core runs so many batches between two transfers of hidden states."""

_MIN_STEPS = 4
_CHARACTERS_IN_TOKEN = 4


class PassActor(ModelActor[Any]):
    """Runs a pass on one device, or a shard of a pipeline."""

    _running: ModelPass | PipelineShard | TokenPass | None = None
    _error: Exception | None = None
    """The first one of the pipeline's present run: later steps cannot do without the failed one."""

    _is_broken = False

    def count_done(self) -> int:
        """Sentences times missing layers that were read since the pass, or that for tokens, began."""
        running = self._running
        return 0 if running is None else running.n_read

    def supports_nccl(self) -> bool:
        """Whether Ray can send tensors from this actor's GPU to another."""
        return bool(nccl_available()) and torch.cuda.is_available()

    def run(self, request: PassRequest, threads: int = 1) -> None:
        """Run the layers that are not recorded yet, after those that they need, in blocks in turn.

        Raises:
            UserError: if the model cannot be read, or does not fit the device.
            NeuralignError: if a site has no output, or a value is not finite.
        """
        with self._handle_errors(), frozen_objects(), _spool_of(request) as spool:
            prepared = self._prepare(request, threads)
            missing = self._find_missing(prepared)
            if not missing:
                return
            if len(missing) == prepared.n_layers:
                # They may be of other inputs.
                shutil.rmtree(spool, ignore_errors=True)
            self._running = model_pass = ModelPass(
                prepared.folder,
                prepared.settings,
                prepared.sentences,
                request.budget,
                SpoolSettings(spool, prepared.spool_memory()),
                prepared.device,
                prepared.plan_blocks(),
                threads=threads,
            )
            model_pass.notes += self._memory_notes(request)
            recorder = prepared.make_recorder(missing, model_pass.notes)
            recorder.record_empty(missing.difference(prepared.layers))
            model_pass.run(recorder.record, missing.intersection(prepared.layers))

    def find_tokens(self, request: TokenRequest) -> None:
        """Record the layers of a request that are not recorded yet.

        Raises:
            UserError: if the model cannot be read, or does not fit the device.
            NeuralignError: if a site has no output.
        """
        torch.set_num_threads(1)
        with self._handle_errors():
            settings = cast(ActivationSettings, self._settings)
            folder = ensure_local(self._weights)
            rows = TokenRows(request, folder, settings, self._find_device())
            self._running = rows.tokens
            rows.record()

    def begin(self, request: PassRequest, threads: int, missing: set[int] | None) -> set[int]:
        """Load the shard of a pipeline for a new run. Returns the missing layers, which the first shard
        finds, and the others are given."""
        self._running = self._error = None
        with self._handle_errors():
            prepared = self._prepare(request, threads)
            if missing is None:
                missing = self._find_missing(prepared)
                prepared.make_recorder(missing, []).record_empty(missing.difference(prepared.layers))
            needed = missing.intersection(prepared.layers)
            self._running = PipelineShard(prepared, self._index, self._n_shards, needed)
        return missing

    def step(
        self, step: int, n_steps: int, incoming: HiddenStates | None, stay_on_device: bool
    ) -> HiddenStates | None:
        """Run one of a pipeline's steps; the next shard's input, or None after the last shard."""
        with self._handle_errors():
            outgoing = self._pipeline_shard().step(step, n_steps, incoming)
        if self._index == self._n_shards - 1:
            return None
        return outgoing if stay_on_device else [hidden.cpu() for hidden in outgoing]

    def finish(self, n_steps: int, _last_step: object) -> None:
        """Record the shard's layers; `_last_step` is only a dependency."""
        with self._handle_errors():
            self._pipeline_shard().finish(n_steps)
        self._free_memory()

    def join(self, parts: list[Any]) -> None:
        """Wait for the ends of all shards. Raises the first error in their order: a value that is not
        finite makes those of later layers so."""
        for part in parts:
            ray.get(part)

    def drop(self) -> None:
        """Free the memory of a pipeline's shard."""
        self._running = None
        self._free_memory()

    def _prepare(self, request: PassRequest, threads: int) -> PreparedPass:
        # In this thread, too: see ModelActor.
        torch.set_num_threads(1)
        settings = cast(ActivationSettings, self._settings)
        folder = ensure_local(self._weights)
        return PreparedPass(folder, settings, request, self._find_device(), threads)

    def _find_missing(self, prepared: PreparedPass) -> set[int]:
        recorded = read_work_units(prepared.request.folder)
        return {layer for layer in range(prepared.n_layers) if layer_unit(layer) not in recorded}

    def _pipeline_shard(self) -> PipelineShard:
        torch.set_num_threads(1)
        if self._error is not None:
            # Not with the frames of the steps that raised it before.
            raise self._error.with_traceback(None)
        return cast(PipelineShard, self._running)

    def _memory_notes(self, request: PassRequest) -> list[str]:
        notes = []
        if request.block_divisor > 1:
            notes.append(
                "a worker was lost, perhaps for lack of memory; the remaining layers were read in "
                f"blocks of 1/{request.block_divisor} of the planned size, or of one layer"
            )
        if request.memory_factor > 1 and self._n_shards > 1:
            notes.append(
                f"memory ran out in a pipeline of {self._n_shards} shards; one of them read all layers, "
                "in blocks"
            )
        elif request.memory_factor > 1:
            notes.append(
                "memory ran out; the layers were read again in blocks that leave "
                f"{request.memory_factor} times as much"
            )
        return notes

    @contextmanager
    def _handle_errors(self) -> Iterator[None]:
        """Name the model in our own errors, remember any error for later steps, and free its memory."""
        if self._is_broken:
            # The queue starts another actor.
            ray.actor.exit_actor()
        try:
            yield
        except Exception as error:
            # Its frames would keep tensors alive, and memory may have run out.
            traceback.clear_frames(error.__traceback__)
            is_unnamed = isinstance(error, NeuralignError) and error is not self._error
            named = type(error)(f"model {self._weights.label}: {error}") if is_unnamed else error
            self._running, self._error = None, named
            self._free_memory()
            if is_unnamed:
                raise named from error
            raise

    def _free_memory(self) -> None:
        gc.collect()
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            # After some errors of CUDA, all its calls fail until the process ends.
            self._is_broken = True


class PassWorker(ShardGroup):
    """The actors of a pass, as seen from the driver: one that takes blocks of layers in turn, or a
    pipeline of shards.

    Hidden states pass between shards by NCCL if each has a whole GPU and Ray supports it there.
    """

    default_transport: str | None = None
    """Ray's tensor transport elsewhere; None for the object store."""

    actor_class = ray.remote(  # type: ignore[call-overload]
        concurrency_groups={_PROGRESS: 1}, enable_tensor_transport=True
    )(PassActor)

    def run(self, request: PassRequest) -> Any:
        """Start the pass; a reference that resolves at its end. After memory ran out in a pipeline, its
        first actor takes blocks in turn."""
        threads = max(1, int(self._resources.get("CPU", 1)))
        first, *others = self.actors
        if not others:
            return first.run.remote(request, threads)
        if request.memory_factor > 1:
            for actor in others:
                actor.drop.remote()
            return first.run.remote(request, threads)
        return self._run_pipeline(ray.put(request), threads, _count_steps(request, threads))

    def find_tokens(self, request: TokenRequest) -> Any:
        """Start to find tokens on the first actor; a reference that resolves at the end."""
        return self.actors[0].find_tokens.remote(request)

    def count_done(self) -> int:
        """The sum of `PassActor.count_done`; 0 if an actor does not answer."""
        counts = [
            actor.count_done.options(concurrency_group=_PROGRESS).remote() for actor in self.actors
        ]
        try:
            return sum(ray.get(counts, timeout=_ANSWER_SECONDS))
        except RayError:
            return 0

    def _run_pipeline(self, request: Any, threads: int, n_steps: int) -> Any:
        first, *others = self.actors
        missing = first.begin.remote(request, threads, None)
        for actor in others:
            actor.begin.remote(request, threads, missing)
        # Each shard works on a step, and some wait: a shard that is ahead waits for the last one.
        n_under_way = len(self.actors) + 2
        last_steps: list[Any] = [None] * len(self.actors)
        ends: list[Any] = []
        for step in range(n_steps):
            hidden = ends[step - n_under_way] if step >= n_under_way else None
            for index, actor in enumerate(self.actors):
                is_last = index == len(self.actors) - 1
                options = {} if is_last else {"tensor_transport": self._transport}
                hidden = last_steps[index] = actor.step.options(**options).remote(
                    step, n_steps, hidden, self._transport is not None
                )
            ends.append(hidden)
        with warnings.catch_warnings():
            # The end of a shard depends on its last step but does not use its tensors.
            warnings.filterwarnings("ignore", ".*is being passed back to the actor that created it")
            parts = [
                actor.finish.remote(n_steps, last_step)
                for actor, last_step in zip(self.actors, last_steps, strict=True)
            ]
        return first.join.remote(parts)

    @cached_property
    def _transport(self) -> str | None:
        # Connects the shards, which must be placed.
        transport, has_whole_gpus = self.default_transport, self._resources.get("GPU", 0) >= 1
        if has_whole_gpus and all(ray.get([shard.supports_nccl.remote() for shard in self.actors])):
            transport = "nccl"
        if transport is not None:
            create_collective_group(self.actors, backend=transport)
        return transport


def _count_steps(request: PassRequest, threads: int) -> int:
    """Steps of a pipeline: of a few batches a core, so that shards overlap and memory is bounded."""
    tokens = sum(len(text.text) for text in request.texts) / _CHARACTERS_IN_TOKEN
    return max(_MIN_STEPS, math.ceil(tokens / (request.budget * threads * _BATCHES_IN_STEP)))


@contextmanager
def _spool_of(request: PassRequest) -> Iterator[Path]:
    if request.spool is not None:
        yield request.spool
        return
    with temporary_folder() as folder:
        yield folder
