"""Stage `experts`: which neurons detect which concept, one Ray task per (pooling, site).

It begins when all activations of a model are there: a work unit commits its sentences for every site at
once, so no site is whole before the last unit, and no score can be had of fewer sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.expertise.label_permutations import Shuffles, shuffles
from alignment.expertise.labels import (
    Labels,
    labels_against_others,
    labels_against_pool,
    labels_matched_in_length,
    labels_of_own,
    split_half,
)
from alignment.expertise.scoring import Scores, Tally, expertise_and_chance, on_and_off
from alignment.expertise.sorted_chunks import SORTED_AT_ONCE
from jobs import activations, sentences
from jobs.config import OTHERS, OWN, Experts
from jobs.engine.progress import progress
from jobs.engine.stage import Outcome, Resource, Stage, run_missing_units
from storage import sql, tables
from storage.errors import StoreError, UserError
from storage.readers.concepts import NEGATIVE, POOL, ConceptSet
from storage.store.activation_files import RESIDUAL, SiteFiles, activation_folder
from storage.store.commit import FileRecord, write_table, write_values
from storage.store.paths import let_read
from storage.store.scratch import scratch

Integers = npt.NDArray[np.int64]

KIND = "experts"
CONTROL_KIND = "controls"
HALVES = ("half 1", "half 2")
LENGTH_MATCHED = "length-matched"
_OTHER_LABELS = (*HALVES, LENGTH_MATCHED)
SITES_FOLDER = "experts"
CHANCE_FOLDER = "chance"
SCORES_FOLDER = "scores"
SCORED_FILE = "scored-concepts.parquet"
_TASKS_IN_FLIGHT_PER_CPU = 2
_POLL_SECONDS = 0.5
_TOLD = 0.5
"""The threshold of the papers, for the notes."""

_BLOCK_BYTES = 64 << 20
"""Activations that a task holds at once, unless those of a single neuron are more."""

_PAIRS_AT_ONCE = 2 << 20
"""(neuron, concept) pairs that a task scores at once, unless a single neuron has more."""


@dataclass(frozen=True)
class _Labelled:
    """The labels, the sentences that they are of, how they are shuffled, and where they are scored."""

    labels: Labels
    kept: Integers
    shuffles: Shuffles
    on_gpu: bool


@dataclass(frozen=True)
class _Site:
    pooling: str
    layer: int
    site: str

    @property
    def name(self) -> str:
        return f"{self.pooling}.L{self.layer:02d}.{self.site}"


def plan(read: Stage, wanted: Experts, seed: int, control: str | None = None) -> Stage:
    """The stage that scores the activations of one model, or does so as a control: once more, on one
    half of the sentences or with negatives as long as the positives; or activations that are a control
    by themselves, such as those of shuffled sentences.

    Negatives of halves, and negatives as long as the positives, are always other concepts' positives.
    """
    sampled = wanted.sampled is not None
    relabelled = control in _OTHER_LABELS
    permutations = 0 if control else wanted.permutations
    params = {
        **{name: read.params[name] for name in ("model", "revision", "concept_set")},
        "negatives": wanted.negatives if sampled or not relabelled else OTHERS,
        "prevalence": wanted.prevalence,
        "floor": wanted.floor,
        "seed": seed if sampled or relabelled or permutations else 0,
        "permutations": permutations,
        "scores": wanted.scores and not control,
        **({"control": control} if control else {}),
    }

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, wanted)

    label = f"{read.label} {control}" if control else read.label
    kind = CONTROL_KIND if control else KIND
    return Stage(kind, label, params, run, {"activations": read}, Resource.CPUS)


def check(concepts: ConceptSet, wanted: Experts) -> None:
    """Raise UserError for a concept that has no negatives, or too few to sample so many."""
    counts = concepts.counts()
    own = Counter(name for sentence in concepts.sentences for name in sentence.negative_of)
    pool = sum(sentence.pool for sentence in concepts.sentences)
    labelled = sum(bool(sentence.concepts) for sentence in concepts.sentences)
    needed = wanted.sampled or 1
    for name, count in counts.items():
        possible, what = {
            OWN: (own[name], "sentences of role negative"),
            POOL: (pool, "sentences of role pool"),
        }.get(wanted.negatives, (labelled - count, "the sentences of the others"))
        if possible < needed:
            raise UserError(
                f"experts.negatives: {wanted.negatives}: concept {name!r} has {possible} possible "
                f"negatives, {what}; {needed} are needed"
            )


def read_labels(stage: Stage, texts: Stage, store: Path, wanted: Experts) -> Labels:
    """Which sentences are positives and negatives of which concepts, as `experts.negatives` says."""
    n_concepts = len(sentences.read_concept_names(texts, store))
    ids, members, n_sentences = sentences.read_memberships(texts, store)
    if wanted.negatives == OWN:
        negatives = sentences.read_memberships(texts, store, NEGATIVE)[:2]
        return labels_of_own(ids, members, *negatives, n_sentences, n_concepts)
    if wanted.negatives == POOL:
        pool, _, _ = sentences.read_memberships(texts, store, POOL)
        return labels_against_pool(ids, members, pool, n_sentences, n_concepts)
    seed = stage.params["seed"]
    return labels_against_others(ids, members, n_sentences, n_concepts, wanted.sampled, seed)


def _run(stage: Stage, store: Path, wanted: Experts) -> Outcome:
    import ray

    from cluster.runtime.session import connect, cpus, gpus, result

    folder = stage.folder(store)
    read = stage.inputs["activations"]
    texts = read.inputs["sentences"]
    concepts = sentences.read_concept_names(texts, store)
    labels, kept = _labels(stage, texts, store, wanted)
    # found once here, not by every task
    _ = labels.kinds, labels.n_negative, labels.positives, labels.listed_negatives
    shuffled = shuffles(labels, stage.params["permutations"], stage.params["seed"])
    labelled = _Labelled(labels, kept, shuffled, wanted.gpus > 0)
    units = {
        site.name: site
        for site in (
            _Site(row["pooling"], row["layer"], row["site"])
            for row in activations.read_sites(read, store)
            # the residual stream is the embedding baseline's, not a site of neurons
            if row["site"] != RESIDUAL
        )
    }
    task = ray.remote(_score_site).options(num_cpus=1, num_gpus=wanted.gpus, max_retries=3)

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        todo = list(missing)
        shared = ray.put(labelled)
        flying: dict[Any, _Site] = {}
        with progress(stage.name, len(units), "sites", len(units) - len(todo)) as advance:
            while todo or flying:
                while todo and len(flying) < _TASKS_IN_FLIGHT_PER_CPU * cpus():
                    site = todo.pop(0)
                    files = activations.site_files(read, store, site.pooling, site.layer, site.site)
                    reference = task.remote(files, site, shared, concepts, dict(stage.params), folder)
                    flying[reference] = site
                # with an end, so that the wait can be interrupted
                finished, _ = ray.wait(list(flying), timeout=_POLL_SECONDS)
                for reference in finished:
                    site = flying.pop(reference)
                    yield site.name, result(reference), {}
                    advance(1)

    connect()
    if wanted.gpus > 0 and gpus() < wanted.gpus:
        raise UserError(f"experts.gpus: {wanted.gpus}: the cluster has {gpus()} GPUs")
    files, _ = run_missing_units(folder, units, run)
    notes = _told(folder, files) if stage.params["permutations"] else []
    if stage.params["scores"]:
        columns = {"number": np.arange(len(concepts)), "concept": concepts}
        files.append(write_table(folder, SCORED_FILE, pa.table(columns, tables.SCORED_CONCEPTS)))
    return Outcome(files, notes)


def _told(folder: Path, files: list[FileRecord]) -> list[str]:
    """How many experts there are by chance, in a line for each pooling."""
    paths = [folder / each.path for each in files if each.path.startswith(f"{CHANCE_FOLDER}/")]
    with duckdb.connect() as connection:
        counted = connection.from_parquet(let_read(connection, paths), hive_partitioning=False)
        counted.project("*, '' AS run").create_view("chance_counts")
        rows = connection.sql(sql.query("chance")).filter(f"threshold = {_TOLD}").to_arrow_table()
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["pooling"], []).append(row)
    return [
        f"{pooling} pooling: {sum(row['p'] * (row['shuffles'] + 1) < 1.5 for row in own)} of {len(own)} "
        f"concepts have more neurons with AP > {_TOLD} than in any of {own[0]['shuffles']} shuffles of "
        f"the labels; in the median {np.median([row['n_experts'] for row in own]):.0f} neurons, "
        f"{np.median([row['chance_mean'] for row in own]):.1f} by chance"
        for pooling, own in found.items()
    ]


def _labels(stage: Stage, texts: Stage, store: Path, wanted: Experts) -> tuple[Labels, Integers]:
    """The labels, and the sentences that they are of."""
    control = stage.params.get("control")
    if control not in _OTHER_LABELS:
        labels = read_labels(stage, texts, store, wanted)
        return labels, np.arange(labels.n_sentences)
    try:
        return _control_labels(control, stage.params["seed"], texts, store, wanted.sampled)
    except ValueError as error:
        raise UserError(f"controls: {control}: {error}; leave this control out") from error


def _control_labels(
    control: str, seed: int, texts: Stage, store: Path, sampled: int | None
) -> tuple[Labels, Integers]:
    n_concepts = len(sentences.read_concept_names(texts, store))
    ids, members, n_sentences = sentences.read_memberships(texts, store)
    if control == LENGTH_MATCHED:
        lengths = np.array([len(text.split()) for text, _ in sentences.read_texts(texts, store)])
        labels = labels_matched_in_length(ids, members, lengths, n_concepts, seed)
        return labels, np.arange(n_sentences)
    half = split_half(ids, members, n_sentences, seed)
    kept = np.flatnonzero(half == HALVES.index(control))
    inside = np.isin(ids, kept)
    ids, members = np.searchsorted(kept, ids[inside]), members[inside]
    # half of the sentences hold half of the negatives
    sampled = max(1, sampled // 2) if sampled else None
    return labels_against_others(ids, members, len(kept), n_concepts, sampled, seed), kept


def _score_site(
    files: SiteFiles,
    site: _Site,
    labelled: _Labelled,
    concepts: list[str],
    params: dict[str, Any],
    folder: Path,
) -> list[FileRecord]:
    """Score one site, some neurons at a time, and commit: the rows of every neuron above the floor, the
    scores of all neurons where they are wanted, and how many neurons are how good."""
    labels, kept = labelled.labels, labelled.kept
    committed: list[FileRecord] = []
    tallied: Tally | None = None
    most_units = max(1, _PAIRS_AT_ONCE // labels.n_concepts)
    for first, block in files.blocks(_BLOCK_BYTES, most_units, scratch):
        values = block
        if len(kept) < block.shape[1]:
            values = scratch((len(block), len(kept)), block.dtype)
            np.take(block, kept, axis=1, out=values, mode="clip")
        try:
            scores, counted = _score(values, labelled, params["prevalence"])
        except ValueError as error:
            where = files.paths[0].parent
            raise StoreError(f"{where}: these activations cannot be scored: {error}") from error
        tallied = counted if tallied is None else tallied.with_more(counted)
        table = _experts(values, scores, labels, concepts, site, first, params)
        number = f".{first:07d}" if first else ""
        committed.append(write_table(folder, f"{SITES_FOLDER}/{site.name}{number}.parquet", table))
        if params["scores"]:
            place = activation_folder(site.pooling, site.layer, site.site)
            name = f"{SCORES_FOLDER}/{place}/{first:07d}.parquet"
            ap = scores.ap.astype(np.float32)
            committed.append(write_values(folder, name, ap, ap.size))
        # before the next block is made
        del block, values
    if params["permutations"] and tallied is not None:
        table = _chance(tallied, concepts, site, params)
        committed.append(write_table(folder, f"{CHANCE_FOLDER}/{site.name}.parquet", table))
    return committed


def _score(
    values: npt.NDArray[np.floating[Any]], labelled: _Labelled, prevalence: float
) -> tuple[Scores, Tally]:
    """The scores of some neurons and their tally: on the GPU that the task was given, if it was."""
    labels, shuffled = labelled.labels, labelled.shuffles
    # a GPU sorts all sentences of a neuron at once
    if labelled.on_gpu and labels.n_sentences <= SORTED_AT_ONCE:
        from alignment.expertise.scoring_torch import expertise_and_chance_on

        return expertise_and_chance_on("cuda", values, labels, shuffled, prevalence)
    return expertise_and_chance(values, labels, shuffled, prevalence, scratch)


def _experts(
    values: npt.NDArray[np.floating[Any]],
    scores: Scores,
    labels: Labels,
    concepts: list[str],
    site: _Site,
    first: int,
    params: dict[str, Any],
) -> pa.Table:
    """The rows of the neurons above the floor; `first` is the unit of the first of them."""
    units, members = np.nonzero(scores.ap > params["floor"])
    order = np.lexsort((units, members))
    units, members = units[order], members[order]
    on_p50, on_p90, off_mean = on_and_off(values, labels, units, members, scratch)
    columns = {
        **_place(site, params, len(units)),
        "concept": pa.DictionaryArray.from_arrays(members.astype(np.int32), concepts).cast("string"),
        "unit": (first + units).astype(np.int32),
        "ap": scores.ap[units, members],
        "ap_raw": scores.ap_raw[units, members],
        "auroc": scores.auroc[units, members],
        "on_p50": on_p50,
        "on_p90": on_p90,
        "off_mean": off_mean,
    }
    schema = tables.EXPERTS
    if "control" in params:
        schema = tables.CONTROL_EXPERTS
        columns["control"] = _repeat(params["control"], len(units))
    return pa.table(columns, schema)


def _chance(tallied: Tally, concepts: list[str], site: _Site, params: dict[str, Any]) -> pa.Table:
    """How many neurons of a site are how good for each concept, by each shuffle."""
    n_shuffles, n_concepts = tallied.best.shape
    columns = {
        **_place(site, params, n_shuffles * n_concepts),
        "concept": concepts * n_shuffles,
        "shuffle": np.repeat(np.arange(n_shuffles, dtype=np.int32), n_concepts),
        "best_ap": tallied.best.ravel(),
        "n_above": list(tallied.above.reshape(-1, tallied.above.shape[-1])),
    }
    return pa.table(columns, tables.CHANCE)


def _place(site: _Site, params: dict[str, Any], times: int) -> dict[str, Any]:
    """The columns that are the same in all rows of a site."""
    return {
        **{name: _repeat(params[name], times) for name in ("model", "revision", "concept_set")},
        "pooling": _repeat(site.pooling, times),
        "layer": np.full(times, site.layer, np.int32),
        "site": _repeat(site.site, times),
    }


def _repeat(value: str, times: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), times)


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("experts")
