"""A pipeline of steering shards, as seen from the driver."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from cluster.runtime.shard_group import ShardGroup
from cluster.steering.actor import (
    AttributionRequest,
    Continuations,
    SteeringActor,
    SteeringRequest,
    UnitsRequest,
)
from cluster.steering.interventions import SteeringBatch, batch_sequences

_MAX_BATCHES_IN_FLIGHT = 4


class SteeringPipeline(ShardGroup):
    """Sends requests through the shards of one replica: hidden states forward, gradients backward, and
    sampled tokens back to the first shard."""

    actor_class = ray.remote(SteeringActor)

    def attribute(self, request: AttributionRequest) -> Any:
        """Run a request forward and backward; the reference of its attributions by site."""
        attempt = (request.name, uuid.uuid4().hex)
        gradients: list[Any] = []
        for number, batch in enumerate(batch_sequences(request.sequences, request.budget)):
            batch_ref, passed, earlier = ray.put(batch), None, _backpressure(gradients)
            for shard in self._shards:
                passed = shard.forward.remote(attempt, number, batch_ref, passed, earlier)
            for shard in reversed(self._shards[:-1]):
                passed = shard.backward.remote(attempt, number, batch_ref, passed)
            gradients.append(passed)
        attributions: Any = {}
        for shard in self._shards:
            attributions = shard.attribute.remote(attempt, request, attributions, *gradients)
        return attributions

    def read_units(self, request: UnitsRequest) -> Any:
        """Run a request; the reference of a `UnitsRead` for each of its sites."""
        attempt = (request.name, uuid.uuid4().hex)
        outgoing: list[Any] = []
        for batch in batch_sequences(request.sequences, request.budget):
            batch_ref, passed, earlier = ray.put(batch), None, _backpressure(outgoing)
            for shard in self._shards:
                passed = shard.read.remote(attempt, batch_ref, request.units, passed, earlier)
            outgoing.append(passed)
        read: Any = {}
        for shard in self._shards:
            read = shard.gather_units.remote(attempt, request.units, read, *outgoing)
        return read

    def steer(self, request: SteeringRequest) -> Any:
        """Run a request; the reference of its `SteeringResult`."""
        attempt = (request.name, uuid.uuid4().hex)
        log_p: list[Any] = []
        batches = batch_sequences(request.sequences, request.budget)
        for batch in batches:
            batch_ref, passed, earlier = ray.put(batch), None, _backpressure(log_p)
            for shard in self._shards:
                passed = shard.run.remote(batch_ref, passed, earlier)
            log_p.append(passed)
        texts: list[Any] = []
        if (continuations := request.continuations) is not None:
            prompts = batch_sequences(continuations.sequences, request.budget)
            # as many batches at a time as there are shards keep each shard busy
            for first in range(0, len(prompts), len(self._shards)):
                group = prompts[first : first + len(self._shards)]
                texts += self._continue(attempt, continuations, group, first)
            batches += prompts
        indices = [batch.indices for batch in batches]
        result = self._shards[-1].gather.remote(indices, len(log_p), *log_p, *texts)
        for shard in self._shards:
            shard.release.remote(attempt, result)
        return result

    def _continue(
        self, attempt: tuple[str, str], request: Continuations, batches: list[SteeringBatch], first: int
    ) -> list[Any]:
        """References of the continuations' texts of some batches, numbered from `first`."""
        uniforms = request.uniforms
        refs = [
            ray.put(replace(request, sequences=batch.rows, uniforms=uniforms[batch.indices]))
            for batch in batches
        ]
        passed: list[Any] = [None] * len(batches)
        for step in range(uniforms.shape[1]):
            for index, ref in enumerate(refs):
                for shard in self._shards:
                    passed[index] = shard.decode_step.remote(
                        attempt, first + index, ref, step, passed[index]
                    )
        decode = self._shards[-1].decode_texts.remote
        return [decode(attempt, first + index, tokens) for index, tokens in enumerate(passed)]


def _backpressure(results: Sequence[Any]) -> Any:
    """The result that the next batch waits for, so that hidden states do not pile up."""
    return results[-_MAX_BATCHES_IN_FLIGHT] if len(results) >= _MAX_BATCHES_IN_FLIGHT else None
