"""A replica of a model: its shards as Ray actors in one placement group."""

from __future__ import annotations

import os
import socket
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import ray
import torch
from transformers.utils import logging as transformers_logging

from cluster.models.partial_model import shard_layers
from cluster.models.shard import ModelShard, ShardSettings
from cluster.models.weights import Weights, ensure_local
from cluster.runtime.queue import Worker
from storage.errors import UserError

ShardT = TypeVar("ShardT", bound=ModelShard[Any])


class ModelActor(Generic[ShardT]):
    """Base of the actors that hold one shard of a model on one device."""

    shard_class: type[ShardT]

    def __init__(self, weights: Weights, settings: ShardSettings, index: int, n_shards: int) -> None:
        if not ray.get_gpu_ids():
            # Ray leaves all GPUs visible to an actor that has none.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # One thread: threads change the order of summation, and OMP_NUM_THREADS differs between nodes.
        torch.set_num_threads(1)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._states: dict[Any, Any] = {}
        self._weights = weights
        self._settings = settings
        self._index, self._n_shards = index, n_shards

    @cached_property
    def _shard(self) -> ShardT:
        # Loaded on first use, so that the queue sees when the actor is placed.
        folder = ensure_local(self._weights)
        layers = shard_layers(folder, self._index, self._n_shards, self._weights.trust_remote_code)
        return self.shard_class(folder, self._settings, layers, self._find_device())

    def _find_device(self) -> str:
        """The device of this actor. Raises UserError if torch cannot use the GPU that Ray gave it."""
        if not ray.get_gpu_ids():
            return "cpu"
        if not torch.cuda.is_available():
            raise UserError(
                f"model {self._weights.label}: {socket.gethostname()} has a GPU for Ray, but torch "
                f"{torch.__version__} cannot use it; install a build of torch for its driver, or set "
                "gpus_per_shard: 0"
            )
        return "cuda"


class ShardGroup(Worker):
    """The shards of one replica."""

    actor_class: ClassVar[Any]

    def __init__(
        self, weights: Weights, settings: ShardSettings, shards: int, resources: dict[str, float]
    ) -> None:
        arguments = [(weights, settings, index, shards) for index in range(shards)]
        super().__init__(self.actor_class, arguments, resources)
        self._shards = self.actors
        self._resources = resources
