"""Scores of a site on a device, from one sort, under several labelings of the same sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.scoring.block_scores import BlockScores, Experts
from jobs.scoring.labelings import Labeling

if TYPE_CHECKING:
    import torch

    from alignment.expertise.device_chunks import DeviceChunks


class DeviceScorer:
    """The labels of a sweep on a device. The first labeling may have permutations."""

    def __init__(self, labelings: Sequence[Labeling], n_sentences: int, device: str) -> None:
        from alignment.expertise.scoring_torch import BlockScorer

        labels = [
            labeling.labels.spread(labeling.sentence_ids, n_sentences)
            if len(labeling.sentence_ids) < n_sentences
            else labeling.labels
            for labeling in labelings
        ]
        self._params = labelings[0].params
        self._kinds = [labeling.params["scores"] for labeling in labelings]
        self._scorer = BlockScorer(labels, labelings[0].permutations, self._params["prevalence"], device)

    @property
    def chunks(self) -> DeviceChunks:
        """Runs work on rows of the values."""
        return self._scorer.chunks

    @property
    def notes(self) -> list[str]:
        """Why scoring takes longer than it could."""
        problem = self._scorer.triton_problem
        slow = f"scores were computed by torch, which is slower than Triton: {problem}"
        return [*([slow] if problem else []), *self.chunks.notes]

    def score(self, values: torch.Tensor) -> Iterator[BlockScores]:
        """Scores of all neurons of a site under each labeling; the histogram is that of the first."""
        result = self._scorer.score(values, self._params["floor"], self._kinds)
        for number, pairs in enumerate(result.experts):
            statistics = self._scorer.activation_statistics(values, number, pairs)
            experts = Experts(
                *(pairs.neurons, pairs.concepts, pairs.ap, pairs.ap_raw, pairs.auroc), *statistics.T
            )
            yield BlockScores(experts, result.histogram, result.kept[number])
