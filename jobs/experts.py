"""Stage `experts`: score every neuron as a detector of every concept, one Ray task per (pooling, site).

It starts when all activations of a model are complete. If they are not kept, the stage `activations` has
scored them, and this stage takes its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from alignment.expertise.scoring import ApHistogram
from jobs import activations, sentences
from jobs.config.analysis import OTHERS, OWN, ExpertSettings
from jobs.engine.keeping import are_kept
from jobs.engine.progress import progress
from jobs.engine.stage import Resource, Stage, StageOutput, run_missing_units
from jobs.scoring.block_scores import (
    SCORES_FOLDERS,
    SiteKey,
    chance_table,
    expert_table,
    layer_file,
    max_block_units,
    score_block,
)
from jobs.scoring.labelings import (
    COUNT_MATCHED,
    PSEUDO_CONCEPTS,
    RELABELED_CONTROLS,
    Labeling,
    make_labeling,
)
from jobs.scoring.layer_scorer import scored_folder
from jobs.scoring.token_counts import count_experts, token_count_notes
from storage import sql, tables
from storage.errors import StoreError, UserError
from storage.readers.concepts import POOL, ConceptSet
from storage.store.activation_files import SiteActivations, activation_folder
from storage.store.checksums import read_checked
from storage.store.commit import FileRecord, write_bytes, write_table, write_values
from storage.store.flat_parquet import decode
from storage.store.manifest import read_rows
from storage.store.scratch import scratch

KIND = "experts"
CONTROL_KIND = "controls"
EXPERTS_FOLDER = tables.EXPERTS.file  # of controls, too
_MAX_TASKS_PER_CPU = 2
_POLL_SECONDS = 0.5
_NOTE_THRESHOLD = 0.5
"""AP threshold of the notes, as in the papers."""

_MAX_BLOCK_BYTES = 64 << 20
"""Activations that a task holds at a time, unless a single neuron has more."""


def plan(
    activations_stage: Stage,
    config: ExpertSettings,
    seed: int,
    control: str | None = None,
    kept_scores: Sequence[str] = (),
) -> Stage:
    """The stage that scores one model's activations, optionally as a control.

    `kept_scores` are the kinds of scores that are kept of all neurons.

    Controls relabel the sentences (one half of them, length-matched negatives, pseudo-concepts, or as
    many sentences as these have; all with other sentences of concepts as negatives) or have separate
    activations, e.g. of shuffled sentences.
    """
    params = make_params(activations_stage.params, config, seed, control, kept_scores)

    def run(stage: Stage, store: Path) -> StageOutput:
        files = _run(stage, store, config) if is_kept else _take_rows(stage, store)
        return _finish(stage, store, files)

    is_kept = are_kept(activations_stage.params)
    resource = Resource.CPUS if is_kept else Resource.DRIVER
    label = f"{activations_stage.label} {control}" if control else activations_stage.label
    kind = CONTROL_KIND if control else KIND
    return Stage(kind, label, params, run, {"activations": activations_stage}, resource)


def make_params(
    activation_params: Mapping[str, Any],
    config: ExpertSettings,
    seed: int,
    control: str | None = None,
    kept_scores: Sequence[str] = (),
) -> dict[str, Any]:
    """The parameters of the stage for activations with these parameters."""
    is_sampled = config.n_negatives is not None and control not in (PSEUDO_CONCEPTS, COUNT_MATCHED)
    is_relabeled = control in RELABELED_CONTROLS
    permutations = 0 if control else config.permutations
    return {
        **{name: activation_params[name] for name in ("model", "revision", "concept_set")},
        "negatives": config.negatives if is_sampled or not is_relabeled else OTHERS,
        "prevalence": config.prevalence,
        "floor": config.floor,
        "seed": seed if is_sampled or is_relabeled or permutations else 0,
        "permutations": permutations,
        "scores": list(kept_scores),
        **({"control": control} if control else {}),
    }


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


def _run(stage: Stage, store: Path, config: ExpertSettings) -> list[FileRecord]:
    """Score activations that are kept."""
    import ray

    from cluster.runtime.session import cluster_cpus, cluster_gpus, connect, get_result

    folder = stage.folder(store)
    activations_stage = stage.inputs["activations"]
    labeling = make_labeling(stage.params, activations_stage.inputs["sentences"], store)
    sites = [
        SiteKey(row["pooling"], row["layer"], row["site"])
        for row in activations.read_neuron_sites(activations_stage, store)
    ]
    units = {site.name: site for site in sites}
    task = ray.remote(_score_site).options(num_cpus=1, num_gpus=config.gpus, max_retries=3)

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        remaining = list(missing)
        labeling_ref = ray.put(labeling)
        in_flight: dict[Any, SiteKey] = {}
        with progress(stage.name, len(units), "sites", len(units) - len(remaining)) as advance:
            while remaining or in_flight:
                while remaining and len(in_flight) < _MAX_TASKS_PER_CPU * cluster_cpus():
                    site = remaining.pop(0)
                    files = activations.open_site(activations_stage, store, *site)
                    ref = task.remote(files, site, labeling_ref, config.gpus > 0, folder)
                    in_flight[ref] = site
                # A timeout, so that the wait can be interrupted.
                finished, _ = ray.wait(list(in_flight), timeout=_POLL_SECONDS)
                for ref in finished:
                    yield in_flight.pop(ref).name, get_result(ref), {}
                    advance(1)

    connect()
    if config.gpus > 0 and cluster_gpus() < config.gpus:
        raise UserError(f"experts.gpus: {config.gpus}: the cluster has {cluster_gpus()} GPUs")
    return run_missing_units(folder, units, run)[0]


def _take_rows(stage: Stage, store: Path) -> list[FileRecord]:
    """Copy the rows, and scores that are kept, of activations that are not kept.

    Raises StoreError if those of a layer or site are missing or damaged.
    """
    activations_stage, folder = stage.inputs["activations"], stage.folder(store)
    manifest = activations_stage.read_manifest(store)
    sites = activations.read_neuron_sites(activations_stage, store)

    def find(path: str) -> list[FileRecord]:
        if records := manifest.records(path):
            return records
        raise StoreError(
            f"{manifest.folder / path}: is not listed in the manifest; delete the folder "
            f"{manifest.folder} and rerun the sweep"
        )

    files = []
    names = [EXPERTS_FOLDER, *([tables.CHANCE_COUNTS.file] if stage.params["permutations"] else [])]
    layers = sorted({row["layer"] for row in sites})
    for name in (layer_file(name, layer) for name in names for layer in layers):
        (record,) = find(f"{scored_folder(stage.params)}/{name}")
        copied = write_bytes(folder, name, read_checked(manifest.folder / record.path, record.sha256))
        files.append(replace(copied, rows=record.rows))
    prefix = f"{scored_folder(stage.params)}/"
    for kind, row in product(stage.params["scores"], sites):
        site = SiteKey(row["pooling"], row["layer"], row["site"])
        for record in find(f"{prefix}{SCORES_FOLDERS[kind]}/{activation_folder(*site)}"):
            # Written anew: a file of values names its folder.
            content = read_checked(manifest.folder / record.path, record.sha256)
            values = np.concatenate(list(decode(pa.py_buffer(content))))
            name = record.path.removeprefix(prefix)
            files.append(write_values(folder, name, values, len(values)))
    return files


def _finish(stage: Stage, store: Path, files: list[FileRecord]) -> StageOutput:
    folder = stage.folder(store)
    notes = _chance_notes(folder, files) if stage.params["permutations"] else []
    if stage.kind == KIND:
        prefix = f"{EXPERTS_FOLDER}/"
        paths = [folder / record.path for record in files if record.path.startswith(prefix)]
        n_tokens = activations.read_token_counts(stage.inputs["activations"], store)
        notes += token_count_notes(count_experts(paths, _NOTE_THRESHOLD), n_tokens, _NOTE_THRESHOLD)
    if stage.params["scores"] and stage.kind == KIND:
        concepts = sentences.read_concept_names(stage.inputs["activations"].inputs["sentences"], store)
        columns = {"number": np.arange(len(concepts)), "concept": concepts}
        table = pa.table(columns, tables.SCORED_CONCEPTS.schema)
        files = [*files, write_table(folder, tables.SCORED_CONCEPTS.file, table)]
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


def _score_site(
    files: SiteActivations, site: SiteKey, labeling: Labeling, on_gpu: bool, folder: Path
) -> list[FileRecord]:
    """Score one site in blocks of neurons and commit the tables: neurons above the floor and, if
    configured, the scores of all neurons and the AP counts of every permutation."""
    records: list[FileRecord] = []
    histogram: ApHistogram | None = None
    for first, block in files.blocks(_MAX_BLOCK_BYTES, max_block_units(labeling), scratch):
        try:
            scores = score_block(block, first, labeling, on_gpu)
        except ValueError as error:
            site_folder = files.paths[0].parent
            raise StoreError(f"{site_folder}: these activations cannot be scored: {error}") from error
        histogram = scores.histogram if histogram is None else histogram.merge(scores.histogram)
        table = expert_table(scores.experts, labeling, site)
        suffix = f".{first:07d}" if first else ""
        records.append(write_table(folder, f"{EXPERTS_FOLDER}/{site.name}{suffix}.parquet", table))
        for kind, values in scores.kept.items():
            name = f"{SCORES_FOLDERS[kind]}/{activation_folder(*site)}/{first:07d}.parquet"
            records.append(write_values(folder, name, values, values.size))
        # Free the memory before the next block is read.
        del block, scores
    if len(labeling.permutations) and histogram is not None:
        table = chance_table(histogram, labeling, site)
        records.append(write_table(folder, f"{tables.CHANCE_COUNTS.file}/{site.name}.parquet", table))
    return records


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("experts")
