"""Scoring on the device, against one core of the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import labels_against_others
from alignment.expertise.scoring import REFERENCE_PREVALENCE, score_with_permutations
from alignment.expertise.scoring_torch import BlockScorer
from benchmarks.gpu.scale import Scale

_TOLERANCE = 1e-12
_SCORED_BY_CORE = 256
"""Neurons: the rate does not depend on their number."""


def score_on_both(
    scale: Scale, n_sentences: int, n_concepts: int, n_neurons: int, n_permutations: int
) -> tuple[float, float]:
    """Values that the device and one core score per second, for one labeling and its permutations.

    Raises RuntimeError if the scores differ.
    """
    numbers = np.arange(n_sentences)
    labels = labels_against_others(numbers, numbers % n_concepts, n_sentences, n_concepts)
    permutations = permute_labels(labels, n_permutations, 0)
    values = _random_values(n_sentences, n_neurons, scale.device)
    part = values[:_SCORED_BY_CORE]
    host = part.cpu().numpy()
    scorer = BlockScorer([labels], permutations, REFERENCE_PREVALENCE, scale.device)
    # Below all scores, so that each is compared.
    (pairs,) = scorer.score(part, -1.0).experts
    expected, _ = score_with_permutations(host, labels, permutations)
    for name in ("ap", "ap_raw", "auroc"):
        difference = np.abs(getattr(pairs, name) - getattr(expected, name).T.ravel()).max()
        if not difference <= _TOLERANCE:
            raise RuntimeError(f"{name} differs from that of the CPU by {difference:.1e}")
    device_seconds = _best_seconds(lambda: scorer.score(values, 0.5), scale)
    core_seconds = _best_seconds(lambda: score_with_permutations(host, labels, permutations), scale)
    return values.numel() / device_seconds, host.size / core_seconds


def _random_values(n_sentences: int, n_neurons: int, device: str) -> torch.Tensor:
    """Random float16 activations; every eighth neuron has many ties."""
    generator = torch.Generator(device).manual_seed(0)
    values = torch.randn((n_neurons, n_sentences), generator=generator, device=device).half()
    values[::8] = values[::8].round()
    return values


def _best_seconds(call: Callable[[], Any], scale: Scale) -> float:
    durations = []
    for _ in range(scale.rounds):
        started = time.perf_counter()
        call()
        if scale.device == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - started)
    return min(durations)
