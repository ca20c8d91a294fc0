"""Scores of a block of neurons under one labeling, and their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.arrays import AnyFloats, Floats, Ints
from alignment.expertise.scoring import (
    AP,
    AUROC,
    ApHistogram,
    Scores,
    activation_statistics,
    score_with_permutations,
)
from alignment.expertise.sorted_chunks import MAX_CHUNK_SENTENCES
from jobs.scoring.labelings import Labeling
from storage import tables
from storage.store.scratch import scratch

SCORES_FOLDERS = {AP: "scores", AUROC: "auroc"}
"""Folder of each kind of scores of all neurons. Its files hold arrays of shape (neurons, concepts)."""

_MAX_BLOCK_PAIRS = 2 << 20
"""(neuron, concept) pairs that are scored at a time, unless a single neuron has more."""


class SiteKey(NamedTuple):
    """A site at one pooling."""

    pooling: str
    layer: int
    site: str

    @property
    def name(self) -> str:
        return f"{self.pooling}.L{self.layer:02d}.{self.site}"


def layer_file(table: str, layer: int) -> str:
    """Name of the file with a layer's rows of a table."""
    return f"{table}/L{layer:02d}.parquet"


class Experts(NamedTuple):
    """Scores and activation statistics of the (neuron, concept) pairs above the floor, by concept, then
    neuron: arrays of shape (pairs,). `units` are numbers of neurons in the site, `concepts` indices."""

    units: Ints
    concepts: Ints
    ap: Floats
    ap_raw: Floats
    auroc: Floats
    on_p50: npt.NDArray[np.float32]
    on_p90: npt.NDArray[np.float32]
    off_mean: npt.NDArray[np.float32]


class BlockScores(NamedTuple):
    """Scores of consecutive neurons of a site; `kept` are those of all neurons, (neurons, concepts), by
    their kind, in the form of `Scores.keep`."""

    experts: Experts
    histogram: ApHistogram
    kept: dict[str, AnyFloats]


def max_block_units(labeling: Labeling) -> int:
    """The number of neurons that are scored at a time."""
    return max(1, _MAX_BLOCK_PAIRS // labeling.labels.n_concepts)


def score_block(block: AnyFloats, first: int, labeling: Labeling, on_gpu: bool = False) -> BlockScores:
    """Score neurons whose values on all sentences are the rows of `block`; `first` is the number of the
    first of them. Raises ValueError for values that are not finite."""
    params, labels, sentence_ids = labeling.params, labeling.labels, labeling.sentence_ids
    values = block
    if len(sentence_ids) < block.shape[1]:
        values = scratch((len(block), len(sentence_ids)), block.dtype)
        np.take(block, sentence_ids, axis=1, out=values, mode="clip")
    scores, histogram = _score(values, labeling, on_gpu)
    units, concepts = np.nonzero(scores.ap > params["floor"])
    order = np.lexsort((units, concepts))
    units, concepts = units[order], concepts[order]
    chosen = [column[units, concepts] for column in (scores.ap, scores.ap_raw, scores.auroc)]
    statistics = activation_statistics(values, labels, units, concepts, scratch)
    experts = Experts._make([first + units, concepts, *chosen, *statistics])
    return BlockScores(experts, histogram, scores.keep(params["scores"]))


def _score(values: AnyFloats, labeling: Labeling, on_gpu: bool) -> tuple[Scores, ApHistogram]:
    labels, permutations = labeling.labels, labeling.permutations
    prevalence = labeling.params["prevalence"]
    # A GPU sorts all sentences of a neuron at once.
    if on_gpu and labels.n_sentences <= MAX_CHUNK_SENTENCES:
        from alignment.expertise.scoring_torch import score_with_permutations_torch

        return score_with_permutations_torch("cuda", values, labels, permutations, prevalence)
    return score_with_permutations(values, labels, permutations, prevalence, scratch)


class ScoresMerger:
    """The scores of the neurons of a site, from those of its blocks in their order."""

    def __init__(self, first: BlockScores) -> None:
        self._experts, self._histogram = [first.experts], first.histogram
        self._kept = {kind: [values] for kind, values in first.kept.items()}

    def add(self, part: BlockScores) -> None:
        """Add the next block."""
        self._experts.append(part.experts)
        for kind, values in part.kept.items():
            self._kept[kind].append(values)
        # At once: with permutations a histogram is large.
        self._histogram = self._histogram.merge(part.histogram)

    def merged(self) -> BlockScores:
        """The scores of all blocks."""
        columns = [np.concatenate(column) for column in zip(*self._experts, strict=True)]
        order = np.argsort(columns[1], kind="stable")
        experts = Experts(*(column[order] for column in columns))
        kept = {kind: np.concatenate(parts) for kind, parts in self._kept.items()}
        return BlockScores(experts, self._histogram, kept)


def expert_table(experts: Experts, labeling: Labeling, site: SiteKey) -> pa.Table:
    """Rows of the neurons above the floor."""
    params, n_rows = labeling.params, len(experts.units)
    names = pa.DictionaryArray.from_arrays(experts.concepts.astype(np.int32), labeling.concepts)
    columns = {
        **site_columns(site, params, n_rows),
        **experts._asdict(),
        "concept": names.cast("string"),
        "unit": experts.units.astype(np.int32),
    }
    schema = tables.EXPERTS.schema
    if "control" in params:
        schema = tables.CONTROL_EXPERTS.schema
        columns["control"] = pa.repeat(params["control"], n_rows)
    return pa.table({name: columns[name] for name in schema.names}, schema)


def chance_table(histogram: ApHistogram, labeling: Labeling, site: SiteKey) -> pa.Table:
    """Highest AP and AP counts of a site for every concept, by permutation (0: the true labels)."""
    n_permutations, n_concepts = histogram.max_ap.shape
    columns = {
        **site_columns(site, labeling.params, n_permutations * n_concepts),
        "concept": labeling.concepts * n_permutations,
        "shuffle": np.repeat(np.arange(n_permutations, dtype=np.int32), n_concepts),
        "best_ap": histogram.max_ap.ravel(),
        "n_above": list(histogram.n_above.reshape(-1, histogram.n_above.shape[-1])),
    }
    return pa.table(columns, tables.CHANCE_COUNTS.schema)


def site_columns(site: SiteKey, params: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """The columns that are constant within a site."""
    return {
        **{name: pa.repeat(params[name], n_rows) for name in ("model", "revision", "concept_set")},
        "pooling": pa.repeat(site.pooling, n_rows),
        "layer": np.full(n_rows, site.layer, np.int32),
        "site": pa.repeat(site.site, n_rows),
    }
