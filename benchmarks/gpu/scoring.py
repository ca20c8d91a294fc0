"""Scoring blocks of neurons on one GPU, and the sort alone; scores are checked against the CPU's.

`python -m benchmarks.gpu.scoring`; without a GPU it runs at tiny sizes on the CPU, which only proves
that it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from alignment.expertise import ap_torch, scoring_torch
from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import (
    Labels,
    labels_against_others,
    labels_matched_by_length,
    split_half,
)
from alignment.expertise.labels_torch import LabelTensors
from alignment.expertise.ranks_torch import rank_sentences
from alignment.expertise.scoring import (
    REFERENCE_PREVALENCE,
    activation_statistics,
    score_with_permutations,
)
from alignment.expertise.scoring_torch import BlockScorer, find_triton_problem
from tests.operations import count_operations

DEMO, LARGER, PAPERS = (2_624, 82), (20_992, 82), (32_250, 645)
"""Sentences and concepts."""

BLOCKS = [(*DEMO, 1_536), (*DEMO, 8_192), (*DEMO, 131_072), (*PAPERS, 512), (*PAPERS, 4_096)]
LARGE_BLOCK = (*LARGER, 131_072)
TINY_BLOCKS, TINY_LARGE_BLOCK = [(96, 6, 32), (96, 6, 128)], (96, 3, 16)
FLOOR = 0.4
_CHECKED = 256
_ROUNDS = 2


def random_block(n_sentences: int, n_neurons: int, device: str) -> torch.Tensor:
    """Random float16 activations; every eighth neuron has many ties."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (n_neurons, n_sentences)
    values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32).half()
    values[::8] = values[::8].round()
    return values


def make_labelings(n_sentences: int, n_concepts: int) -> list[Labels]:
    """The labelings of a sweep: all sentences, both halves, and for small sets negatives matched by
    length, which take long to draw."""
    sentences = np.arange(n_sentences)
    concepts = sentences % n_concepts
    labelings = [labels_against_others(sentences, concepts, n_sentences, n_concepts)]
    half = split_half(sentences, concepts, n_sentences, 0)
    for number in (0, 1):
        chosen = np.flatnonzero(half == number)
        labels = labels_against_others(np.arange(len(chosen)), concepts[chosen], len(chosen), n_concepts)
        labelings.append(labels.spread(chosen, n_sentences))
    if n_sentences > DEMO[0]:
        return labelings
    lengths = np.random.default_rng(0).integers(12, 25, n_sentences)
    return [*labelings, labels_matched_by_length(sentences, concepts, lengths, n_concepts)]


def best_seconds(call: Callable[[], Any], device: str) -> float:
    """Shortest duration of a call after a first one, in seconds, until the device has finished."""
    durations = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - started)
    return min(durations[1:])


def check(n_sentences: int, n_concepts: int, device: str) -> None:
    """Print the largest differences to the CPU's scores and statistics over all labelings."""
    labelings = make_labelings(n_sentences, n_concepts)
    permutations = permute_labels(labelings[0], 3, 0)
    values = random_block(n_sentences, _CHECKED, device)
    scorer = BlockScorer(labelings, permutations, REFERENCE_PREVALENCE, device)
    result = scorer.score(values, -1.0)
    host = values.cpu().numpy()
    score_difference = statistics_difference = 0.0
    for number, (labels, pairs) in enumerate(zip(labelings, result.experts, strict=True)):
        expected, histogram = score_with_permutations(host, labels, None if number else permutations)
        for name in ("ap", "ap_raw", "auroc"):
            difference = getattr(pairs, name) - getattr(expected, name).T.ravel()
            score_difference = max(score_difference, np.abs(difference).max())
        if number == 0:
            same_counts = np.array_equal(result.histogram.n_above, histogram.n_above)
        statistics = scorer.activation_statistics(values, number, pairs)
        expected_statistics = activation_statistics(host, labels, pairs.neurons, pairs.concepts)
        difference = statistics - np.stack(expected_statistics, axis=1)
        statistics_difference = max(statistics_difference, np.abs(difference).max())
    print(
        f"{n_sentences:,} sentences, {n_concepts} concepts, {_CHECKED} neurons: largest difference "
        f"to the CPU {score_difference:.1e} (scores), {statistics_difference:.1e} (statistics); "
        f"AP counts of {len(permutations)} permutations equal: {same_counts}"
    )


class Table:
    """Rows of durations for one block of values."""

    def __init__(self, values: torch.Tensor, n_concepts: int) -> None:
        self.values, self.device = values, values.device.type
        self.name = f"{values.shape[1]:,} x {n_concepts} x {len(values):,}"

    def report(self, what: str, call: Callable[[], Any]) -> None:
        """Print a row."""
        operations = count_operations(call).total()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = best_seconds(call, self.device)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0
        print(
            f"{self.name:24} {what:38} {seconds * 1e3:10.2f} {self.values.numel() / seconds / 1e9:9.3f} "
            f"{operations:6} {peak:8.2f}",
            flush=True,
        )

    def score(self, labelings: list[Labels], n_permutations: int) -> Callable[[], Any]:
        """A call that scores the values."""
        permutations = permute_labels(labelings[0], n_permutations, 0)
        scorer = BlockScorer(labelings, permutations, REFERENCE_PREVALENCE, self.device)
        return lambda: scorer.score(self.values, FLOOR)

    def sort(self) -> None:
        """Sort all values, in chunks as large as those of the scorer."""
        for chunk in torch.split(self.values, chunk_size(self.values)):
            chunk.sort(dim=1)


def chunk_size(values: torch.Tensor) -> int:
    """The number of neurons that the scorer takes at a time."""
    return scoring_torch.WORKING_BYTES // (scoring_torch._BYTES_PER_VALUE * values.shape[1])


def time_block(n_sentences: int, n_concepts: int, n_neurons: int, device: str) -> None:
    """Print one row for each of: the sort, one labeling, with permutations, and all labelings."""
    values = random_block(n_sentences, n_neurons, device)
    labelings = make_labelings(n_sentences, n_concepts)
    table = Table(values, n_concepts)
    table.report("sort alone", table.sort)
    table.report("1 labeling", table.score(labelings[:1], 0))
    table.report("1 labeling, 19 permutations", table.score(labelings[:1], 19))
    table.report(f"{len(labelings)} labelings", table.score(labelings, 0))
    with patch.object(scoring_torch, "find_triton_problem", lambda *_: "not wanted"):
        table.report("1 labeling, in torch", table.score(labelings[:1], 0))
        if n_sentences <= DEMO[0]:
            table.report("1 labeling, 19 permutations, in torch", table.score(labelings[:1], 19))
    scorer = BlockScorer(labelings[:1], None, REFERENCE_PREVALENCE, device)
    (experts,) = scorer.score(values, FLOOR).experts
    table.report("statistics of experts", lambda: scorer.activation_statistics(values, 0, experts))


def time_large_block(n_sentences: int, n_concepts: int, n_neurons: int, device: str) -> None:
    """Print rows for many positives per concept."""
    values = random_block(n_sentences, n_neurons, device)
    labels = make_labelings(n_sentences, n_concepts)[:1]
    table = Table(values, n_concepts)
    table.report("sort alone", table.sort)
    table.report("1 labeling", table.score(labels, 0))
    table.report("1 labeling, 19 permutations", table.score(labels, 19))


def time_parts(n_sentences: int, n_concepts: int, n_neurons: int, device: str) -> None:
    """Print a row for each part of scoring a chunk of neurons under the labeling of all sentences."""
    size = chunk_size(torch.empty(1, n_sentences))
    values = random_block(n_sentences, min(size, n_neurons), device)
    (labels, *_, listed) = (
        LabelTensors.of(labels, REFERENCE_PREVALENCE, device)
        for labels in make_labelings(n_sentences, n_concepts)
    )
    table = Table(values, n_concepts)
    table.report("part: sort", table.sort)
    table.report("part: sort, ranks by searching", lambda: rank_sentences(values))
    ranks = rank_sentences(values)
    table.report("part: ranks by sentence", ranks.store_by_sentence)
    table.report("part: AP in torch", lambda: ap_torch.score_labels(ranks, None, labels, True))
    if (problem := find_triton_problem([labels], n_sentences)) is not None:
        print(f"not timed in Triton: {problem}")
        return
    from alignment.expertise import ap_triton

    table.report("part: sort, ranks in Triton", lambda: rank_sentences(values, True))
    ranks = ranks.store_by_sentence()
    for pairs, max_sorted in ((256, 1024), (512, 1024), (1024, 1024), (512, 0)):
        name = f"{pairs} sorted" if max_sorted else f"{pairs} by place"
        with patch.object(ap_triton, "PAIRS", pairs), patch.object(ap_triton, "MAX_SORTED", max_sorted):
            for what, ap_only in (("AP", True), ("all scores", False)):
                table.report(
                    f"part: {what}, {name}",
                    lambda ap_only=ap_only: ap_triton.score_labels(ranks, None, labels, ap_only),
                )
            if len(listed.negatives):
                table.report(
                    f"part: listed negatives, {name}",
                    lambda: ap_triton.score_labels(ranks, None, listed, False),
                )


def main() -> None:
    """Check the scores and print the table."""
    has_gpu = torch.cuda.is_available()
    device, blocks, large = (
        ("cuda", BLOCKS, LARGE_BLOCK) if has_gpu else ("cpu", TINY_BLOCKS, TINY_LARGE_BLOCK)
    )
    for n_sentences, n_concepts in sorted({block[:2] for block in (*blocks, large)}):
        labelings = [
            LabelTensors.of(labels, REFERENCE_PREVALENCE, device)
            for labels in make_labelings(n_sentences, n_concepts)
        ]
        problem = find_triton_problem(labelings, n_sentences)
        print(f"{n_sentences:,} sentences, {n_concepts} concepts: Triton: {problem or 'used'}")
    print(torch.cuda.get_device_name() if has_gpu else "CPU", torch.__version__)
    check(*blocks[0][:2], device)
    check(*blocks[-1][:2], device)
    check(*large[:2], device)
    columns = f"{'ms':>10} {'Gvalues/s':>9} {'ops':>6} {'peak GB':>8}"
    print(f"{'sentences x concepts x neurons':63} {columns}")
    for block in blocks:
        time_block(*block, device)
    time_large_block(*large, device)
    for block in (blocks[2 if has_gpu else 0], large):
        time_parts(*block, device)


if __name__ == "__main__":
    main()
