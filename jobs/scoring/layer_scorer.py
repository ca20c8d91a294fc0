"""Scores of a layer where its values are: at the end of a pass through the model, all labelings at once.

On a GPU from one sort of every neuron, on a CPU with the compiled kernel; the rows are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.arrays import Ints
from alignment.expertise.top_sentences import find_top_sentences
from jobs.scoring.block_scores import (
    BlockScores,
    Experts,
    SiteKey,
    chance_table,
    expert_table,
    max_block_units,
    merge_scores,
    score_block,
    site_columns,
)
from jobs.scoring.labelings import Labeling, labeling_name
from storage import tables
from storage.store.activation_files import RESIDUAL, activation_folder
from storage.store.commit import FileRecord, write_table, write_values
from storage.store.layout import escape_name
from storage.store.paths import is_remote

if TYPE_CHECKING:
    import torch

    from cluster.activations.pass_actor import SiteValues

SCORES_FOLDER = "scores"
N_TOP_SENTENCES = 5
_SCORED_FOLDER = "scored"
_WORKING_BYTES = 256 << 20
_BYTES_PER_SORTED_VALUE = 32
_PARALLEL_WRITES = 4
"""Hides the latency of object stores and of checking what was written. Beside a model on a CPU, a second
writer only takes cores from it."""

_CPU_BYTES, _GPU_BYTES = 1 << 30, 6 << 30
"""Working memory of scoring; on a GPU mostly `alignment.expertise.scoring_torch.WORKING_BYTES`."""


def scored_folder(params: Mapping[str, Any]) -> str:
    """The folder of a labeling's rows in the stage `activations`, by the parameters of the stage that
    takes them from there."""
    return f"{_SCORED_FOLDER}/{escape_name(labeling_name(params))}"


@dataclass
class LayerScorer:
    """Commits the rows of one layer after another into `folder`.

    `labelings` are of the same sentences; the first may have permutations, and scores that are kept.
    `ids` and `members` are parallel arrays: the sentences of each concept, for the mean hidden states.
    """

    folder: Path
    labelings: Sequence[Labeling]
    ids: Ints
    members: Ints
    _device_scorer: _DeviceScorer | None = field(default=None, init=False)
    _state_weights: torch.Tensor | None = field(default=None, init=False)

    def working_bytes(self, device: str) -> int:
        """Memory of the device that scoring needs beside a layer's values."""
        return _CPU_BYTES if device == "cpu" else _GPU_BYTES

    def __call__(self, layer: int, sites: Sequence[SiteValues]) -> list[FileRecord]:
        """Score a layer's neurons and average its hidden states over each concept's sentences."""
        rows: dict[str, list[pa.Table]] = {}
        files: list[FileRecord] = []
        for pooling, site, values in sites:
            key = SiteKey(pooling, layer, site)
            if site == RESIDUAL:
                name = tables.CONCEPT_STATES.file
                rows.setdefault(name, []).append(self._state_table(key, values))
                continue
            for labeling, scores in zip(self.labelings, self._score(values), strict=True):
                folder = scored_folder(labeling.params)
                name = f"{folder}/{tables.EXPERTS.file}"
                rows.setdefault(name, []).append(expert_table(scores.experts, labeling, key))
                if labeling is not self.labelings[0]:
                    continue
                top = _top_sentence_table(values, scores.experts, key, labeling)
                rows.setdefault(tables.TOP_SENTENCES.file, []).append(top)
                if len(labeling.permutations):
                    name = f"{folder}/{tables.CHANCE_COUNTS.file}"
                    rows.setdefault(name, []).append(chance_table(scores.histogram, labeling, key))
                files += self._write_scores(key, labeling, scores)

        def write(name: str) -> FileRecord:
            return write_table(self.folder, f"{name}/L{layer:02d}.parquet", pa.concat_tables(rows[name]))

        is_on_cpu = all(values.device.type == "cpu" for _, _, values in sites)
        n_threads = 1 if is_on_cpu and not is_remote(self.folder) else _PARALLEL_WRITES
        with ThreadPoolExecutor(n_threads) as threads:
            return files + list(threads.map(write, rows))

    def _score(self, values: torch.Tensor) -> Iterator[BlockScores]:
        if values.device.type == "cpu":
            yield from (_score_on_cpu(values.numpy(), labeling) for labeling in self.labelings)
            return
        if self._device_scorer is None:
            self._device_scorer = _DeviceScorer(self.labelings, values.shape[1], str(values.device))
        yield from self._device_scorer.score(values)

    def _write_scores(
        self, site: SiteKey, labeling: Labeling, scores: BlockScores
    ) -> Iterator[FileRecord]:
        if scores.ap is None:
            return
        size = max_block_units(labeling)
        for first in range(0, len(scores.ap), size):
            ap = scores.ap[first : first + size]
            name = f"{SCORES_FOLDER}/{activation_folder(*site)}/{first:07d}.parquet"
            yield write_values(self.folder, name, ap, ap.size)

    def _state_table(self, site: SiteKey, states: torch.Tensor) -> pa.Table:
        """The mean of hidden states, (width, sentences), over each concept's sentences."""
        import torch

        concepts, n_sentences = self.labelings[0].concepts, states.shape[1]
        if self._state_weights is None:
            self._state_weights = self._make_state_weights(n_sentences).to(states.device)
        size = max(1, _WORKING_BYTES // (8 * n_sentences))
        means = [
            (part.double() @ self._state_weights).cpu().numpy() for part in torch.split(states, size)
        ]
        columns = {
            **site_columns(site, self.labelings[0].params, len(concepts)),
            "concept": concepts,
            "vector": list(np.concatenate(means).T),
        }
        schema = tables.CONCEPT_STATES.schema
        return pa.table({name: columns[name] for name in schema.names}, schema)

    def _make_state_weights(self, n_sentences: int) -> torch.Tensor:
        """The share of each sentence in each concept's mean, (sentences, concepts)."""
        import torch

        counts = np.bincount(self.members, minlength=len(self.labelings[0].concepts))
        weights = np.zeros((n_sentences, len(counts)))
        weights[self.ids, self.members] = 1 / counts[self.members]
        return torch.from_numpy(weights)


class _DeviceScorer:
    """Scores on the device, from one sort, under several labelings of the same sentences."""

    def __init__(self, labelings: Sequence[Labeling], n_sentences: int, device: str) -> None:
        from alignment.expertise.scoring_torch import BlockScorer

        labels = [
            labeling.labels.spread(labeling.sentence_ids, n_sentences)
            if len(labeling.sentence_ids) < n_sentences
            else labeling.labels
            for labeling in labelings
        ]
        self._params = labelings[0].params
        self._scorer = BlockScorer(labels, labelings[0].permutations, self._params["prevalence"], device)

    def score(self, values: torch.Tensor) -> Iterator[BlockScores]:
        """The scores of all neurons of a site under each labeling; the histogram and the AP of all
        neurons are those of the first."""
        result = self._scorer.score(values, self._params["floor"], self._params["scores"])
        for number, pairs in enumerate(result.experts):
            statistics = self._scorer.activation_statistics(values, number, pairs)
            experts = Experts(
                *(pairs.neurons, pairs.concepts, pairs.ap, pairs.ap_raw, pairs.auroc), *statistics.T
            )
            yield BlockScores(experts, result.histogram, None if number else result.ap)


def _score_on_cpu(values: npt.NDArray[Any], labeling: Labeling) -> BlockScores:
    size = max_block_units(labeling)
    starts = range(0, len(values), size)
    return merge_scores([score_block(values[first : first + size], first, labeling) for first in starts])


def _top_sentence_table(
    values: torch.Tensor, experts: Experts, site: SiteKey, labeling: Labeling
) -> pa.Table:
    """The sentences with the highest values of every neuron that is an expert of any concept."""
    import torch

    units = np.unique(experts.units)
    if values.device.type == "cpu":
        ids = find_top_sentences(values.numpy(), units, N_TOP_SENTENCES)
    else:
        ids = _find_top_sentences(values, units)
    places = [torch.from_numpy(index).to(values.device) for index in (units[:, None], ids)]
    highest, count = values[places[0], places[1]].float().cpu().numpy(), ids.shape[1]
    columns = {
        **site_columns(site, labeling.params, ids.size),
        "unit": np.repeat(units, count).astype(np.int32),
        "rank": np.tile(np.arange(1, count + 1, dtype=np.int32), len(units)),
        "sentence_id": ids.ravel(),
        "value": highest.ravel(),
    }
    schema = tables.TOP_SENTENCES.schema
    return pa.table({name: columns[name] for name in schema.names}, schema)


def _find_top_sentences(values: torch.Tensor, units: Ints) -> Ints:
    """`alignment.expertise.top_sentences.find_top_sentences`, on the device of the values."""
    import torch

    n_sentences = values.shape[1]
    count = min(N_TOP_SENTENCES, n_sentences)
    # In front with equal values: the earlier sentence.
    earlier = n_sentences - 1 - torch.arange(n_sentences, device=values.device)
    top = np.empty((len(units), count), np.int64)
    size = max(1, _WORKING_BYTES // (_BYTES_PER_SORTED_VALUE * n_sentences))
    for first in range(0, len(units), size):
        rows = slice(first, first + size)
        bits = values[torch.from_numpy(units[rows]).to(values.device)].view(torch.int16).long()
        # As integers in the order of the numbers; both zeros are 0.
        ordered = torch.where(bits < 0, -(bits & 0x7FFF), bits)
        top[rows] = (ordered * n_sentences + earlier).topk(count, dim=1).indices.cpu().numpy()
    return top
