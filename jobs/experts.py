"""Stage `experts`: score every neuron as a detector of every concept, one Ray task per (pooling, site).

It needs all activations of a model: a work unit commits its sentences for every site at once, so no site
is complete before the last unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from alignment.arrays import AnyFloats, Ints
from alignment.expertise.label_permutations import LabelPermutations, permute_labels
from alignment.expertise.labels import (
    Labels,
    labels_against_others,
    labels_against_pool,
    labels_from_own_negatives,
    labels_matched_by_length,
    split_half,
)
from alignment.expertise.scoring import (
    ApHistogram,
    Scores,
    activation_statistics,
    score_with_permutations,
)
from alignment.expertise.sorted_chunks import MAX_CHUNK_SENTENCES
from jobs import activations, sentences
from jobs.config.analysis import OTHERS, OWN, ExpertSettings
from jobs.engine.progress import progress
from jobs.engine.stage import Resource, Stage, StageOutput, run_missing_units
from storage import sql, tables
from storage.errors import StoreError, UserError
from storage.readers.concepts import NEGATIVE, POOL, ConceptSet
from storage.store.activation_files import SiteActivations, activation_folder
from storage.store.commit import FileRecord, write_table, write_values
from storage.store.manifest import read_rows
from storage.store.scratch import scratch

KIND = "experts"
CONTROL_KIND = "controls"
HALVES = ("half 1", "half 2")
LENGTH_MATCHED = "length-matched"
_RELABELED_CONTROLS = (*HALVES, LENGTH_MATCHED)
EXPERTS_FOLDER = tables.EXPERTS.file  # of controls, too
SCORES_FOLDER = "scores"
_MAX_TASKS_PER_CPU = 2
_POLL_SECONDS = 0.5
_NOTE_THRESHOLD = 0.5
"""AP threshold of the notes, as in the papers."""

_MAX_BLOCK_BYTES = 64 << 20
"""Activations that a task holds at a time, unless a single neuron has more."""

_MAX_BLOCK_PAIRS = 2 << 20
"""(neuron, concept) pairs that a task scores at a time, unless a single neuron has more."""


@dataclass(frozen=True)
class _ScoringInputs:
    """What all tasks of a stage share: labels, the ids of the labeled sentences, and permutations."""

    labels: Labels
    sentence_ids: Ints
    permutations: LabelPermutations
    on_gpu: bool


class _ScoringUnit(NamedTuple):
    pooling: str
    layer: int
    site: str

    @property
    def name(self) -> str:
        return f"{self.pooling}.L{self.layer:02d}.{self.site}"


def plan(
    activations_stage: Stage, config: ExpertSettings, seed: int, control: str | None = None
) -> Stage:
    """The stage that scores one model's activations, optionally as a control.

    Controls relabel the sentences (one half of them, or length-matched negatives; both with other
    concepts' positives as negatives) or have separate activations, e.g. of shuffled sentences.
    """
    is_sampled = config.n_negatives is not None
    is_relabeled = control in _RELABELED_CONTROLS
    permutations = 0 if control else config.permutations
    params = {
        **{name: activations_stage.params[name] for name in ("model", "revision", "concept_set")},
        "negatives": config.negatives if is_sampled or not is_relabeled else OTHERS,
        "prevalence": config.prevalence,
        "floor": config.floor,
        "seed": seed if is_sampled or is_relabeled or permutations else 0,
        "permutations": permutations,
        "scores": config.scores and not control,
        **({"control": control} if control else {}),
    }

    def run(stage: Stage, store: Path) -> StageOutput:
        return _run(stage, store, config)

    label = f"{activations_stage.label} {control}" if control else activations_stage.label
    kind = CONTROL_KIND if control else KIND
    return Stage(kind, label, params, run, {"activations": activations_stage}, Resource.CPUS)


def check_negatives(concept_set: ConceptSet, config: ExpertSettings) -> None:
    """Raise UserError for a concept with no negatives, or with too few to sample from."""
    n_own = Counter(name for sentence in concept_set.sentences for name in sentence.negative_of)
    n_pool = sum(sentence.pool for sentence in concept_set.sentences)
    n_labeled = sum(bool(sentence.concepts) for sentence in concept_set.sentences)
    required = config.n_negatives or 1
    for name, n_positive in concept_set.count_sentences().items():
        available, source = {
            OWN: (n_own[name], "sentences with role negative"),
            POOL: (n_pool, "sentences with role pool"),
        }.get(config.negatives, (n_labeled - n_positive, "sentences of other concepts"))
        if available < required:
            raise UserError(
                f"experts.negatives: {config.negatives}: concept {name!r} has {available} possible "
                f"negatives ({source}); {required} are needed"
            )


def read_labels(stage: Stage, sentences_stage: Stage, store: Path, config: ExpertSettings) -> Labels:
    """The positives and negatives of every concept, according to `experts.negatives`."""
    n_concepts = len(sentences.read_concept_names(sentences_stage, store))
    ids, members, n_sentences = sentences.read_memberships(sentences_stage, store)
    if config.negatives == OWN:
        negatives = sentences.read_memberships(sentences_stage, store, NEGATIVE)[:2]
        return labels_from_own_negatives(ids, members, *negatives, n_sentences, n_concepts)
    if config.negatives == POOL:
        pool, _, _ = sentences.read_memberships(sentences_stage, store, POOL)
        return labels_against_pool(ids, members, pool, n_sentences, n_concepts)
    seed = stage.params["seed"]
    return labels_against_others(ids, members, n_sentences, n_concepts, config.n_negatives, seed)


def _run(stage: Stage, store: Path, config: ExpertSettings) -> StageOutput:
    import ray

    from cluster.runtime.session import cluster_cpus, cluster_gpus, connect, get_result

    folder = stage.folder(store)
    activations_stage = stage.inputs["activations"]
    sentences_stage = activations_stage.inputs["sentences"]
    concepts = sentences.read_concept_names(sentences_stage, store)
    labels, sentence_ids = _make_labels(stage, sentences_stage, store, config)
    # Cached properties: computed once here instead of in every task.
    _ = labels.patterns, labels.n_negative, labels.positives, labels.listed_negatives
    permutations = permute_labels(labels, stage.params["permutations"], stage.params["seed"])
    inputs = _ScoringInputs(labels, sentence_ids, permutations, config.gpus > 0)
    sites = [
        _ScoringUnit(row["pooling"], row["layer"], row["site"])
        for row in activations.read_neuron_sites(activations_stage, store)
    ]
    units = {site.name: site for site in sites}
    task = ray.remote(_score_site).options(num_cpus=1, num_gpus=config.gpus, max_retries=3)

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        remaining = list(missing)
        inputs_ref = ray.put(inputs)
        in_flight: dict[Any, _ScoringUnit] = {}
        with progress(stage.name, len(units), "sites", len(units) - len(remaining)) as advance:
            while remaining or in_flight:
                while remaining and len(in_flight) < _MAX_TASKS_PER_CPU * cluster_cpus():
                    site = remaining.pop(0)
                    files = activations.open_site(activations_stage, store, *site)
                    ref = task.remote(files, site, inputs_ref, concepts, dict(stage.params), folder)
                    in_flight[ref] = site
                # A timeout, so that the wait can be interrupted.
                finished, _ = ray.wait(list(in_flight), timeout=_POLL_SECONDS)
                for ref in finished:
                    yield in_flight.pop(ref).name, get_result(ref), {}
                    advance(1)

    connect()
    if config.gpus > 0 and cluster_gpus() < config.gpus:
        raise UserError(f"experts.gpus: {config.gpus}: the cluster has {cluster_gpus()} GPUs")
    files, _ = run_missing_units(folder, units, run)
    notes = _chance_notes(folder, files) if stage.params["permutations"] else []
    if stage.params["scores"]:
        columns = {"number": np.arange(len(concepts)), "concept": concepts}
        table = pa.table(columns, tables.SCORED_CONCEPTS.schema)
        files.append(write_table(folder, tables.SCORED_CONCEPTS.file, table))
    return StageOutput(files, notes)


def _chance_notes(folder: Path, records: list[FileRecord]) -> list[str]:
    """One line per pooling: the number of experts, and the number under permuted labels."""
    prefix = f"{tables.CHANCE_COUNTS.file}/"
    counts = read_rows(folder, [record for record in records if record.path.startswith(prefix)])
    with duckdb.connect() as connection:
        connection.from_arrow(counts).project("*, '' AS run").create_view("chance_counts")
        chance = connection.sql(sql.read_query("chance")).filter(f"threshold = {_NOTE_THRESHOLD}")
        table = chance.to_arrow_table()
    rows_by_pooling: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        rows_by_pooling.setdefault(row["pooling"], []).append(row)
    return [
        f"{pooling} pooling: {sum(row['p'] * (row['shuffles'] + 1) < 1.5 for row in rows)} of "
        f"{len(rows)} concepts have more neurons with AP > {_NOTE_THRESHOLD} than under any of "
        f"{rows[0]['shuffles']} label permutations; median "
        f"{np.median([row['n_experts'] for row in rows]):.0f} neurons, "
        f"{np.median([row['chance_mean'] for row in rows]):.1f} by chance"
        for pooling, rows in rows_by_pooling.items()
    ]


def _make_labels(
    stage: Stage, sentences_stage: Stage, store: Path, config: ExpertSettings
) -> tuple[Labels, Ints]:
    """The labels, and the ids of the sentences that they label."""
    control = stage.params.get("control")
    if control not in _RELABELED_CONTROLS:
        labels = read_labels(stage, sentences_stage, store, config)
        return labels, np.arange(labels.n_sentences)
    try:
        return _make_control_labels(stage, sentences_stage, store, config.n_negatives)
    except ValueError as error:
        raise UserError(f"controls: {control}: {error}; remove this control") from error


def _make_control_labels(
    stage: Stage, sentences_stage: Stage, store: Path, n_negatives: int | None
) -> tuple[Labels, Ints]:
    control, seed = stage.params["control"], stage.params["seed"]
    n_concepts = len(sentences.read_concept_names(sentences_stage, store))
    ids, members, n_sentences = sentences.read_memberships(sentences_stage, store)
    if control == LENGTH_MATCHED:
        texts = sentences.read_texts(sentences_stage, store)
        lengths = np.array([len(text.split()) for text, _ in texts])
        labels = labels_matched_by_length(ids, members, lengths, n_concepts, seed)
        return labels, np.arange(n_sentences)
    half = split_half(ids, members, n_sentences, seed)
    half_ids = np.flatnonzero(half == HALVES.index(control))
    in_half = np.isin(ids, half_ids)
    ids, members = np.searchsorted(half_ids, ids[in_half]), members[in_half]
    # Half of the sentences hold half of the negatives.
    n_negatives = max(1, n_negatives // 2) if n_negatives else None
    labels = labels_against_others(ids, members, len(half_ids), n_concepts, n_negatives, seed)
    return labels, half_ids


def _score_site(
    files: SiteActivations,
    site: _ScoringUnit,
    inputs: _ScoringInputs,
    concepts: list[str],
    params: dict[str, Any],
    folder: Path,
) -> list[FileRecord]:
    """Score one site in blocks of neurons and commit the tables: neurons above the floor and, if
    configured, the scores of all neurons and the AP counts of every permutation."""
    labels, sentence_ids = inputs.labels, inputs.sentence_ids
    records: list[FileRecord] = []
    histogram: ApHistogram | None = None
    max_units = max(1, _MAX_BLOCK_PAIRS // labels.n_concepts)
    for first, block in files.blocks(_MAX_BLOCK_BYTES, max_units, scratch):
        values = block
        if len(sentence_ids) < block.shape[1]:
            values = scratch((len(block), len(sentence_ids)), block.dtype)
            np.take(block, sentence_ids, axis=1, out=values, mode="clip")
        try:
            scores, block_histogram = _score(values, inputs, params["prevalence"])
        except ValueError as error:
            site_folder = files.paths[0].parent
            raise StoreError(f"{site_folder}: these activations cannot be scored: {error}") from error
        histogram = block_histogram if histogram is None else histogram.merge(block_histogram)
        table = _expert_table(values, scores, labels, concepts, site, first, params)
        suffix = f".{first:07d}" if first else ""
        records.append(write_table(folder, f"{EXPERTS_FOLDER}/{site.name}{suffix}.parquet", table))
        if params["scores"]:
            subfolder = activation_folder(*site)
            ap = scores.ap.astype(np.float32)
            name = f"{SCORES_FOLDER}/{subfolder}/{first:07d}.parquet"
            records.append(write_values(folder, name, ap, ap.size))
        # Free the memory before the next block is read.
        del block, values
    if params["permutations"] and histogram is not None:
        table = _chance_table(histogram, concepts, site, params)
        records.append(write_table(folder, f"{tables.CHANCE_COUNTS.file}/{site.name}.parquet", table))
    return records


def _score(values: AnyFloats, inputs: _ScoringInputs, prevalence: float) -> tuple[Scores, ApHistogram]:
    """Scores and AP counts of a block of neurons, on the task's GPU if it has one."""
    labels, permutations = inputs.labels, inputs.permutations
    # A GPU sorts all sentences of a neuron at once.
    if inputs.on_gpu and labels.n_sentences <= MAX_CHUNK_SENTENCES:
        from alignment.expertise.scoring_torch import score_with_permutations_torch

        return score_with_permutations_torch("cuda", values, labels, permutations, prevalence)
    return score_with_permutations(values, labels, permutations, prevalence, scratch)


def _expert_table(
    values: AnyFloats,
    scores: Scores,
    labels: Labels,
    concepts: list[str],
    site: _ScoringUnit,
    first: int,
    params: dict[str, Any],
) -> pa.Table:
    """Rows of the neurons above the floor; `first` is the unit number of the block's first neuron."""
    units, members = np.nonzero(scores.ap > params["floor"])
    order = np.lexsort((units, members))
    units, members = units[order], members[order]
    on_p50, on_p90, off_mean = activation_statistics(values, labels, units, members, scratch)
    columns = {
        **_site_columns(site, params, len(units)),
        "concept": pa.DictionaryArray.from_arrays(members.astype(np.int32), concepts).cast("string"),
        "unit": (first + units).astype(np.int32),
        "ap": scores.ap[units, members],
        "ap_raw": scores.ap_raw[units, members],
        "auroc": scores.auroc[units, members],
        "on_p50": on_p50,
        "on_p90": on_p90,
        "off_mean": off_mean,
    }
    schema = tables.EXPERTS.schema
    if "control" in params:
        schema = tables.CONTROL_EXPERTS.schema
        columns["control"] = pa.repeat(params["control"], len(units))
    return pa.table(columns, schema)


def _chance_table(
    histogram: ApHistogram, concepts: list[str], site: _ScoringUnit, params: dict[str, Any]
) -> pa.Table:
    """Highest AP and AP counts of a site for every concept, by permutation (0: the true labels)."""
    n_permutations, n_concepts = histogram.max_ap.shape
    columns = {
        **_site_columns(site, params, n_permutations * n_concepts),
        "concept": concepts * n_permutations,
        "shuffle": np.repeat(np.arange(n_permutations, dtype=np.int32), n_concepts),
        "best_ap": histogram.max_ap.ravel(),
        "n_above": list(histogram.n_above.reshape(-1, histogram.n_above.shape[-1])),
    }
    return pa.table(columns, tables.CHANCE_COUNTS.schema)


def _site_columns(site: _ScoringUnit, params: dict[str, Any], n_rows: int) -> dict[str, Any]:
    """The columns that are constant within a site."""
    return {
        **{name: pa.repeat(params[name], n_rows) for name in ("model", "revision", "concept_set")},
        "pooling": pa.repeat(site.pooling, n_rows),
        "layer": np.full(n_rows, site.layer, np.int32),
        "site": pa.repeat(site.site, n_rows),
    }


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("experts")
