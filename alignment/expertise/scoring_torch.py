"""Scoring neurons where their activations are: on a torch device, under many labelings at once.

Each neuron's sentences are sorted once. The number of operations depends on the number of labelings and
permutations, but not on the number of concepts, sentences or (within a chunk) neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from alignment.arrays import AnyFloats, Floats, Ints
from alignment.expertise import ap_torch
from alignment.expertise.ap_kernel import N_AP_BINS
from alignment.expertise.device_chunks import DeviceChunks
from alignment.expertise.label_permutations import LabelPermutations
from alignment.expertise.labels import Labels
from alignment.expertise.labels_torch import LabelTensors
from alignment.expertise.ranks_torch import PoolCounts, rank_sentences
from alignment.expertise.scoring import AP, AUROC, ApHistogram, Scores, check_inputs
from alignment.expertise.statistics_torch import activation_statistics_torch

WORKING_BYTES = 4 << 30
"""Working memory for a chunk of neurons, unless a single neuron needs more, or the device has less."""

_BYTES_PER_VALUE = 96
"""Working memory per neuron and sentence, or per neuron and label if there are more of these."""


@dataclass(frozen=True)
class ExpertScores:
    """Scores of (neuron, concept) pairs, ordered by concept, then neuron."""

    neurons: Ints
    concepts: Ints
    ap: Floats
    ap_raw: Floats
    auroc: Floats


@dataclass(frozen=True)
class TorchScores:
    """Scores of a block of neurons under several labelings.

    `experts` has the pairs above the floor under each labeling. `histogram` counts neurons by their AP
    under the first labeling and its permutations. `kept` has the scores of all neurons, of shape
    (neurons, concepts), that are requested under each labeling, as from `Scores.keep`.
    """

    experts: list[ExpertScores]
    histogram: ApHistogram
    kept: list[dict[str, AnyFloats]]


class _ChunkScores(NamedTuple):
    """The parts of `TorchScores` for a chunk of neurons.

    Per labeling, the concepts and neurons of the pairs above the floor, (2, pairs), and their scores,
    (3, pairs); on the device, the highest APs, (1 + permutations, concepts), and the numbers of neurons
    above each edge, (1 + permutations, edges, concepts).
    """

    experts: list[tuple[Ints, Floats]]
    histogram: tuple[torch.Tensor, torch.Tensor]
    kept: list[dict[str, AnyFloats]]


class BlockScorer:
    """Scores blocks of neurons under one or more labelings of the same sentences.

    Unlabeled sentences do not affect a labeling's scores: see `Labels.spread`. `permutations` are those
    of the first labeling. All labels stay on the device. They are scored by `ap_triton` where it works
    for them, and by `ap_torch` elsewhere; `triton_problem` says why. `chunks` know how many rows fit the
    device's memory.
    """

    def __init__(
        self,
        labelings: Sequence[Labels],
        permutations: LabelPermutations | None,
        prevalence: float,
        device: str,
    ) -> None:
        self._n_sentences = labelings[0].n_sentences
        self._labelings = [LabelTensors.of(labels, prevalence, device) for labels in labelings]
        self.chunks = DeviceChunks()
        self.triton_problem = find_ap_triton_problem(self._labelings, self._n_sentences)
        self._permuted = [self._labelings[0].permute(sources) for sources in permutations or ()]
        edges = torch.arange(N_AP_BINS, dtype=torch.float64, device=device) / N_AP_BINS
        self._edges = edges[:, None, None]
        if self.triton_problem is None:
            from alignment.expertise.ap_triton import count_bytes

            counts = [count_bytes(labels, self._n_sentences) for labels in self._labelings]
            row_bytes = _BYTES_PER_VALUE * self._n_sentences + max(counts)
        else:
            n_labels = [len(labels.entries) for labels in self._labelings]
            row_bytes = _BYTES_PER_VALUE * max(self._n_sentences, *n_labels)
        self._chunk_size = max(1, WORKING_BYTES // row_bytes)

    def score(
        self, values: torch.Tensor, floor: float, kinds: Sequence[Collection[str]] | None = None
    ) -> TorchScores:
        """Score `values`, of shape (neurons, sentences), in float16 or float32, on the device.

        Experts are the pairs with an AP above `floor`. `kinds` are those of scores of all neurons that
        are returned, too, for each labeling; by default none.

        Raises:
            ValueError: if `values` contains non-finite numbers or does not match the labels.
        """
        if values.ndim != 2 or values.shape[1] != self._n_sentences:
            raise ValueError(
                f"expected values of shape (neurons, {self._n_sentences} sentences), "
                f"got {tuple(values.shape)}"
            )

        kinds_by_labeling = kinds or [()] * len(self._labelings)

        def score_rows(rows: slice) -> _ChunkScores:
            return self._score_chunk(values[rows], rows.start, floor, kinds_by_labeling)

        chunks = self.chunks.run("scores", len(values), self._chunk_size, score_rows)
        max_ap, n_above = (torch.stack([chunk.histogram[part] for chunk in chunks]) for part in (0, 1))
        return TorchScores(
            [_concatenate(parts) for parts in zip(*(chunk.experts for chunk in chunks), strict=True)],
            ApHistogram(max_ap.amax(0).cpu().numpy(), n_above.sum(0).mT.cpu().numpy()),
            [
                {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
                for parts in zip(*(chunk.kept for chunk in chunks), strict=True)
            ],
        )

    def _score_chunk(
        self, values: torch.Tensor, first: int, floor: float, kinds: Sequence[Collection[str]]
    ) -> _ChunkScores:
        """Score the neurons from number `first` on."""
        score_labels = _labels_scorer(values, self.triton_problem is None)
        experts, kept, rows = [], [], []
        for number, labels in enumerate(self._labelings):
            scores = score_labels(labels, False)
            experts.append(_select(scores, floor, first))
            kept.append(_keep(scores, kinds[number]))
            if number:
                continue
            rows = [self._count(scores[0])]
            del scores
            for permuted in self._permuted:
                rows.append(self._count(score_labels(permuted, True)[0]))
        max_ap, n_above = (torch.stack(part) for part in zip(*rows, strict=True))
        return _ChunkScores(experts, (max_ap, n_above), kept)

    def activation_statistics(
        self, values: torch.Tensor, labeling: int, experts: ExpertScores
    ) -> npt.NDArray[np.float32]:
        """`activation_statistics` of experts under a labeling: an array of shape (pairs, 3)."""
        labels = self._labelings[labeling]
        return activation_statistics_torch(
            values, labels, experts.neurons, experts.concepts, self.chunks
        )

    def _count(self, ap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The highest AP of each concept, and the numbers of neurons above the edges of the bins."""
        return ap.amax(1), (ap > self._edges).sum(2)


def score_with_permutations_torch(
    device: str, values: AnyFloats, labels: Labels, permutations: LabelPermutations, prevalence: float
) -> tuple[Scores, ApHistogram]:
    """`alignment.expertise.scoring.score_with_permutations` on a torch device.

    Raises:
        ValueError: if `values` contains non-finite numbers or does not match `labels`.
    """
    check_inputs(values, labels, prevalence)
    scorer = BlockScorer([labels], permutations, prevalence, device)
    # an AP is never below 0, so that all pairs are returned
    result = scorer.score(torch.tensor(values, device=device), floor=-1.0)
    (all_pairs,) = result.experts
    shape = (labels.n_concepts, len(values))
    columns = (all_pairs.ap, all_pairs.ap_raw, all_pairs.auroc)
    return Scores(*(column.reshape(shape).T for column in columns)), result.histogram


def find_ap_triton_problem(labelings: Sequence[LabelTensors], n_sentences: int) -> str | None:
    """Why `ap_triton` is not used, found by scoring 2 neurons per labeling; None if it is used.

    Raises torch.OutOfMemoryError if the device has no memory for them.
    """
    device = labelings[0].weight.device
    # in orders that differ from the sentences', with many ties and with few
    values = torch.arange(n_sentences, device=device) * 0.618 % 1
    values = torch.stack((values, (values * 97).round()))
    try:
        score_labels = _labels_scorer(values, with_triton=True)
        actual = [score_labels(labels, ap_only) for labels in labelings for ap_only in (False, True)]
    except torch.OutOfMemoryError:
        # It says nothing about Triton.
        raise
    except Exception as error:
        # It compiles its launcher with the machine's C compiler, which may be absent, among others.
        return f"{type(error).__name__}: {error}"
    score_labels = _labels_scorer(values, with_triton=False)
    for number, labels in enumerate(labelings):
        expected = score_labels(labels, False)
        for scores in actual[2 * number : 2 * number + 2]:
            if not torch.allclose(scores, expected[: len(scores)], rtol=0, atol=1e-12):
                return "it gives wrong scores"
    return None


def _labels_scorer(
    values: torch.Tensor, with_triton: bool
) -> Callable[[LabelTensors, bool], torch.Tensor]:
    """Sort `values`; the scores by labels and `ap_only`, of `ap_triton` or `ap_torch`."""
    if not with_triton:
        return partial(ap_torch.score_labels, rank_sentences(values))
    from alignment.expertise.ap_triton import score_labels

    ranks = rank_sentences(values, with_triton=True)
    counts, by_sentence = PoolCounts(ranks), ranks.store_by_sentence()
    return lambda labels, ap_only: score_labels(by_sentence, counts.of(labels.pool), labels, ap_only)


def _select(scores: torch.Tensor, floor: float, first: int) -> tuple[Ints, Floats]:
    """The concepts and neurons, numbered from `first`, of the pairs with an AP above `floor`, and their
    scores, on the host: arrays of shape (2, pairs) and (3, pairs)."""
    pairs = torch.nonzero(scores[0] > floor).T
    chosen = scores[:, pairs[0], pairs[1]].cpu().numpy()
    return pairs.cpu().numpy() + np.array([[0], [first]]), chosen


def _keep(scores: torch.Tensor, kinds: Collection[str]) -> dict[str, AnyFloats]:
    """`Scores.keep` of scores of shape (3, concepts, neurons): arrays on the host."""
    kept: dict[str, AnyFloats] = {}
    if AP in kinds:
        kept[AP] = scores[0].T.float().cpu().numpy()
    if AUROC in kinds:
        kept[AUROC] = (scores[2].T - 0.5).half().cpu().numpy()
    return kept


def _concatenate(parts: Sequence[tuple[Ints, Floats]]) -> ExpertScores:
    """The pairs of several chunks of neurons, in ascending order of the neurons."""
    pairs, scores = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    order = np.argsort(pairs[0], kind="stable")
    (concepts, neurons), (ap, ap_raw, auroc) = pairs[:, order], scores[:, order]
    return ExpertScores(neurons, concepts, ap, ap_raw, auroc)
