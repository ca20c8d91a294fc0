"""Time that passes through models whose activations are not kept take on one H100, by measured rates.

The rates are those of `docs/gpu.md`, with the commands that measure them. Downloading and loading of
weights are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.activations.spool_size import hidden_state_bytes, share_on_disk
from cluster.models.size import ModelSize
from jobs.config.sweep import Sweep
from jobs.sentences import ALTERATIONS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GPU = "H100 with 80 GB"
TOKENS_PER_SENTENCE = 24
"""Assumed mean length."""

HOST_GIGABYTES = 200
"""Assumed free host memory: hosts with one such GPU have 200 to 256 GB."""

_GPU_BYTES = 80 * 10**9
_TOKEN_BUDGET = 16384
_SCORING_BYTES = 6 << 30
_DTYPE = "bfloat16"

_FLOP_PER_SECOND = 4.0e14
"""Of a forward pass whose activations are pooled: 13,800 sentences/s of 18 tokens through the layers of
Pythia-1b, which have 0.805 billion weights."""

_VALUES_PER_SECOND = 6.6e9
"""Scored under one labeling: 4,096 neurons x 32,250 sentences in 20 ms."""

_PERMUTATION_COST = 0.11
"""Of a permutation, relative to scoring without any: 19 of them take 41 ms more."""

_DISK_BYTES_PER_SECOND = 1.5e9
"""Written to the store by several processes."""


@dataclass(frozen=True)
class GpuTime:
    """Seconds of forward passes and of scoring, and bytes of the hidden states that are kept between
    blocks of layers: at once at most, and those that go to disk in all."""

    forward_seconds: float = 0.0
    scoring_seconds: float = 0.0
    most_hidden_bytes: int = 0
    disk_bytes: int = 0

    def __add__(self, other: GpuTime) -> GpuTime:
        return GpuTime(
            self.forward_seconds + other.forward_seconds,
            self.scoring_seconds + other.scoring_seconds,
            max(self.most_hidden_bytes, other.most_hidden_bytes),
            self.disk_bytes + other.disk_bytes,
        )

    def __rmul__(self, count: int) -> GpuTime:
        return GpuTime(
            count * self.forward_seconds,
            count * self.scoring_seconds,
            self.most_hidden_bytes,
            count * self.disk_bytes,
        )

    @property
    def seconds(self) -> float:
        """All seconds. Hidden states in host memory take none: they are copied while the model
        computes."""
        return self.forward_seconds + self.scoring_seconds + self.disk_seconds

    @property
    def disk_seconds(self) -> float:
        """Seconds of hidden states on disk: each is written and read."""
        return 2 * self.disk_bytes / _DISK_BYTES_PER_SECOND


def estimate_time(
    sweep: Sweep,
    config: PretrainedConfig,
    size: ModelSize,
    n_concepts: int,
    n_sentences: int,
    is_trained: bool,
) -> GpuTime:
    """Time of one revision of a model on one concept set, without sparse autoencoders.

    Raises UserError if a layer does not fit the GPU.
    """
    from cluster.models.sites import count_layer_weights

    n_tokens = TOKENS_PER_SENTENCE * n_sentences
    # Two FLOPs per weight and token.
    forward = 2 * count_layer_weights(config) * n_tokens / _FLOP_PER_SECOND
    n_values = size.neurons * len(sweep.neurons.pooling) * n_sentences
    # Each sampled negative of a concept is looked up, as each sentence is.
    sampled = 1 + n_concepts * (sweep.experts.n_negatives or 0) / n_sentences
    labelings = sampled * (1 + _PERMUTATION_COST * sweep.experts.permutations)
    n_passes = 1
    if is_trained:
        # The halves have all sentences together; each sentence is a negative of some concept, too.
        labelings += sampled * ("split-half" in sweep.controls)
        labelings += 2 * ("length-matched" in sweep.controls)
        labelings += 2 * ("pseudo-concepts" in sweep.controls)
        n_altered = sum(name in sweep.baselines for name in ALTERATIONS)
        labelings += n_altered * sampled
        n_passes += n_altered
    n_boundaries = _count_blocks(sweep, config, n_sentences) - 1
    # Those before a block are read while those after it are written.
    both_bytes = hidden_state_bytes(n_tokens, size.hidden_size, _DTYPE)
    on_disk = share_on_disk(both_bytes, HOST_GIGABYTES * 10**9)
    return GpuTime(
        n_passes * forward,
        n_values * labelings / _VALUES_PER_SECOND,
        both_bytes * min(2, n_boundaries) // 2,
        int(on_disk * both_bytes / 2) * n_boundaries * n_passes,
    )


def _count_blocks(sweep: Sweep, config: PretrainedConfig, n_sentences: int) -> int:
    from cluster.activations.block_plan import measure_config, plan_blocks
    from cluster.activations.pooling_shard import ActivationSettings

    neurons, has_states = sweep.neurons, "contextual" in sweep.baselines
    settings = ActivationSettings(_DTYPE, neurons.sites, list(neurons.pooling), has_states)
    model = measure_config(config, settings)
    return len(plan_blocks(model, n_sentences, _TOKEN_BUDGET, _GPU_BYTES, _SCORING_BYTES))
