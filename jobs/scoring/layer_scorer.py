"""Scores of a layer where its values are: at the end of a pass through the model, all labelings at once.

On a GPU from one sort of every neuron, on a CPU with the compiled kernel; the rows are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from alignment.arrays import Floats, Ints
from jobs.scoring.block_scores import (
    SCORES_FOLDERS,
    BlockScores,
    ScoresMerger,
    SiteKey,
    chance_table,
    expert_table,
    layer_file,
    max_block_units,
    score_block,
)
from jobs.scoring.device_scorer import DeviceScorer
from jobs.scoring.labelings import Labeling, labeling_name
from jobs.scoring.state_means import StateMeans, state_table
from jobs.scoring.top_sentences import (
    TopSentences,
    find_top_sentences,
    find_top_sentences_torch,
    top_sentence_table,
)
from storage import tables
from storage.store.activation_files import RESIDUAL, activation_folder
from storage.store.commit import FileRecord, write_table, write_values
from storage.store.layout import escape_name
from storage.store.scratch import scratch

if TYPE_CHECKING:
    import torch

    from cluster.activations.pass_request import SiteValues

_SCORED_FOLDER = "scored"
_PARALLEL_WRITES = 4
"""Hides the latency of object stores, and of disks that flush a file."""

_PART_UNITS, _PART_BYTES = 128, 16 << 20
"""Neurons, and bytes of their values, that a thread scores at a time. These do not depend on the number
of threads, and so neither do the last digits of a sum."""

_CPU_BYTES, _GPU_BYTES = 1 << 30, 6 << 30
"""Working memory of scoring: on a CPU some 50 MB a thread, on a GPU mostly
`alignment.expertise.scoring_torch.WORKING_BYTES`."""


def scored_folder(params: Mapping[str, Any]) -> str:
    """The folder of a labeling's rows and scores in the stage `activations`, by the parameters of the
    stage that takes them from there."""
    return f"{_SCORED_FOLDER}/{escape_name(labeling_name(params))}"


class _Part(NamedTuple):
    """Some neurons of a site: their scores under each labeling, and the experts' top sentences."""

    scores: list[BlockScores]
    top: TopSentences


@dataclass
class LayerScorer:
    """Commits the rows of one layer after another into `folder`.

    `labelings` are of the same sentences; the first may have permutations.
    `ids` and `members` are parallel arrays: the sentences of each concept, for the mean hidden states.
    `notes` say what made scoring slower.
    """

    folder: Path
    labelings: Sequence[Labeling]
    ids: Ints
    members: Ints
    notes: list[str] = field(default_factory=list, init=False)
    _device_scorer: DeviceScorer | None = field(default=None, init=False)
    _state_means: dict[tuple[int, ...], StateMeans] = field(default_factory=dict, init=False)

    def working_bytes(self, device: str) -> int:
        """Memory of the device that scoring needs beside a layer's values."""
        return _CPU_BYTES if device == "cpu" else _GPU_BYTES

    def __call__(self, layer: int, sites: Sequence[SiteValues], threads: int) -> list[FileRecord]:
        """Score a layer's neurons and average its hidden states over each concept's sentences, but for
        those that have none."""
        rows: dict[str, list[pa.Table]] = {}
        files: list[FileRecord] = []
        keyed = [(SiteKey(site.pooling, layer, site.site), site) for site in sites]
        with _start_threads(threads) as pool:
            # All sites, before the first is waited for.
            parts = [(key, self._score(v.values, pool)) for key, v in keyed if key.site != RESIDUAL]
            states = [
                (key, self._means_without(v.missing), v) for key, v in keyed if key.site == RESIDUAL
            ]
            means = [
                (key, of.concepts, self._average(v.values, of, pool))
                for key, of, v in states
                if len(of.concepts)
            ]
            for key, scored in parts:
                files += self._add_rows(rows, key, scored)
            rows |= {
                tables.CONCEPT_STATES.file: [
                    state_table(list(each), concepts, key, self.labelings[0])
                    for key, concepts, each in means
                ]
            }
        if self._device_scorer is not None:
            self.notes[:] = self._device_scorer.notes

        def write(name: str) -> FileRecord:
            return write_table(self.folder, layer_file(name, layer), pa.concat_tables(rows[name]))

        with ThreadPoolExecutor(_PARALLEL_WRITES) as pool:
            return files + list(pool.map(write, [name for name, parts in rows.items() if parts]))

    def _add_rows(
        self, rows: dict[str, list[pa.Table]], key: SiteKey, parts: Iterator[_Part]
    ) -> list[FileRecord]:
        """Add a site's rows by the table's name; files of scores that are kept are committed."""
        first, *_ = self.labelings
        scores, top = _merge_parts(parts)
        files: list[FileRecord] = []
        for labeling, each in zip(self.labelings, scores, strict=True):
            name = f"{scored_folder(labeling.params)}/{tables.EXPERTS.file}"
            rows.setdefault(name, []).append(expert_table(each.experts, labeling, key))
            files += self._write_scores(key, labeling, each)
        rows.setdefault(tables.TOP_SENTENCES.file, []).append(top_sentence_table(top, key, first.params))
        if len(first.permutations):
            name = f"{scored_folder(first.params)}/{tables.CHANCE_COUNTS.file}"
            rows.setdefault(name, []).append(chance_table(scores[0].histogram, first, key))
        return files

    def _score(self, values: torch.Tensor, pool: Executor) -> Iterator[_Part]:
        """Scores of a site's neurons in parts, in their order: on a CPU by the threads of the pool, on a
        device all at once when they are asked for."""
        if not _is_in_host_memory(values):
            return self._score_on_device(values)
        array = values.numpy()
        self._cache_labels()
        size = min(_PART_UNITS, _PART_BYTES // array[0].nbytes, max_block_units(self.labelings[0]))
        starts = range(0, len(array), max(1, size))

        def score(first: int) -> _Part:
            block = array[first : first + max(1, size)]
            scores = [score_block(block, first, labeling) for labeling in self.labelings]
            return _Part(scores, find_top_sentences(array, np.unique(scores[0].experts.units)))

        return pool.map(score, starts)

    def _score_on_device(self, values: torch.Tensor) -> Iterator[_Part]:
        device = self._on_device(values)
        scores = list(device.score(values))
        units = np.unique(scores[0].experts.units)
        yield _Part(scores, find_top_sentences_torch(values, units, device.chunks))

    def _average(self, states: torch.Tensor, means: StateMeans, pool: Executor) -> Iterator[Floats]:
        """Mean hidden states, (width, concepts), in parts; as `_score`."""
        size = means.chunk_size()

        def average(rows: slice) -> Floats:
            return means(states[rows])

        if _is_in_host_memory(states):
            parts = [slice(first, first + size) for first in range(0, len(states), size)]
            return pool.map(average, parts)
        chunks = self._on_device(states).chunks
        return iter(chunks.run("mean hidden states", len(states), size, average))

    def _on_device(self, values: torch.Tensor) -> DeviceScorer:
        if self._device_scorer is None:
            self._device_scorer = DeviceScorer(self.labelings, values.shape[1], str(values.device))
        return self._device_scorer

    def _means_without(self, missing: tuple[int, ...]) -> StateMeans:
        """The means over each concept's sentences but the `missing` ones."""
        if missing not in self._state_means:
            has_state = ~np.isin(self.ids, missing)
            self._state_means[missing] = StateMeans(self.ids[has_state], self.members[has_state])
        return self._state_means[missing]

    def _cache_labels(self) -> None:
        """Permute labels once, instead of in every thread, if they fit the cache."""
        permutations = self.labelings[0].permutations
        if len(permutations):
            next(permutations.permuted_labels(scratch))

    def _write_scores(
        self, site: SiteKey, labeling: Labeling, scores: BlockScores
    ) -> Iterator[FileRecord]:
        size = max_block_units(labeling)
        for kind, values in scores.kept.items():
            folder = f"{scored_folder(labeling.params)}/{SCORES_FOLDERS[kind]}"
            for first in range(0, len(values), size):
                part = values[first : first + size]
                name = f"{folder}/{activation_folder(*site)}/{first:07d}.parquet"
                yield write_values(self.folder, name, part, part.size)


def _is_in_host_memory(values: torch.Tensor) -> bool:
    return values.device.type == "cpu"


@contextmanager
def _start_threads(count: int) -> Iterator[Executor]:
    """Threads that run torch on one core each; what they have not begun is dropped on an error."""
    import torch

    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _merge_parts(parts: Iterator[_Part]) -> _Part:
    first = next(parts)
    mergers, top = [ScoresMerger(scores) for scores in first.scores], [first.top]
    for part in parts:
        for merger, scores in zip(mergers, part.scores, strict=True):
            merger.add(scores)
        top.append(part.top)
    return _Part([merger.merged() for merger in mergers], TopSentences.concatenate(top))
