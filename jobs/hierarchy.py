"""Stage `hierarchy`: how well the concepts' domains are recovered from the representations of one model
or baseline."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from alignment.arrays import Bools, Floats
from alignment.statistics.domain_auc import within_domain_auc
from alignment.statistics.hierarchy import (
    ConceptTree,
    build_tree,
    measure_containment,
    measure_polysemy,
    measure_recovery,
)
from jobs import sentences
from jobs.alignment import finite_or_none
from jobs.engine.stage import Stage, StageOutput
from jobs.experts import EXPERTS_FOLDER
from jobs.similarity import EXPERTS, REPRESENTATION_KEY
from storage import sql, tables
from storage.store.commit import write_table

KIND = "hierarchy"

_TABLES = (
    tables.HIERARCHY_SUMMARY,
    tables.HIERARCHY_DOMAINS,
    tables.HIERARCHY_CUTS,
    tables.HIERARCHY_MERGES,
)
Domains = dict[str, str | None]
Rows = dict[str, list[dict[str, Any]]]


def plan(similarity: Stage, sentences_stage: Stage, draws: int, seed: int) -> Stage:
    """The stage for the representations of one similarity stage."""
    inputs = {"similarity": similarity, "sentences": sentences_stage}
    if "experts" in similarity.inputs:
        inputs["experts"] = similarity.inputs["experts"]
    return Stage(KIND, similarity.label, {"draws": draws, "seed": seed}, _run, inputs)


def has_domains(domains: Domains) -> bool:
    """Whether at least two domains have at least two concepts."""
    return len(set(_select_concepts(domains).values())) > 1


def _select_concepts(domains: Domains) -> dict[str, str]:
    """The concepts of domains with at least two of them, sorted by name, and their domains."""
    sizes = Counter(domains.values())
    return {name: domain for name, domain in sorted(domains.items()) if domain and sizes[domain] > 1}


def _run(stage: Stage, store: Path) -> StageOutput:
    all_domains = sentences.read_domains(stage.inputs["sentences"], store)
    rows: Rows = {table.name: [] for table in _TABLES}
    notes = []
    with duckdb.connect() as connection:
        paths = stage.inputs["similarity"].read_manifest(store).paths(tables.SIMILARITY.file)
        sql.scan_parquet(connection, paths).create_view("similarity")
        if "experts" in stage.inputs:
            paths = stage.inputs["experts"].read_manifest(store).paths(EXPERTS_FOLDER)
            sql.scan_parquet(connection, paths).create("experts")
        query = "SELECT DISTINCT unnest([concept_a, concept_b]) FROM similarity"
        covered: Domains = {name: all_domains[name] for (name,) in connection.sql(query).fetchall()}
        # word vectors may lack most concepts
        if has_domains(covered):
            _add_families(rows, _select_concepts(covered), connection, stage)
        else:
            notes = [f"{stage.label}: no hierarchy: no two domains have two of its concepts each"]
    files = [
        write_table(
            stage.folder(store), table.file, pa.Table.from_pylist(rows[table.name], table.schema)
        )
        for table in _TABLES
    ]
    return StageOutput(files, notes)


def _add_families(
    rows: Rows, domains: dict[str, str], connection: duckdb.DuckDBPyConnection, stage: Stage
) -> None:
    """Add the results for all representations to the tables."""
    sql.create_table(connection, "common", {"concept": list(domains)})
    numbers = range(len(domains))
    sql.create_table(connection, "concepts", {"concept": list(domains), "number": numbers})
    for family in connection.sql(sql.read_query("families")).to_arrow_table().to_pylist():
        matrices = connection.sql(sql.read_query("matrices"), params=family)
        # A single layer has too few experts for a tree.
        matrices = matrices.filter("representation != 'experts' OR (layer IS NULL AND site IS NULL)")
        for representation in matrices.to_arrow_table().to_pylist():
            _add_rows(rows, representation, domains, connection, stage)


def _add_rows(
    rows: Rows,
    representation: dict[str, Any],
    domains: dict[str, str],
    connection: duckdb.DuckDBPyConnection,
    stage: Stage,
) -> None:
    """Add the results for one representation to the tables."""
    key = {name: representation[name] for name in REPRESENTATION_KEY}
    names, domain_names = list(domains), list(dict.fromkeys(domains.values()))
    labels = np.array([domain_names.index(domain) for domain in domains.values()])
    values = np.array(representation["similarities"], np.float64)
    matrix = np.zeros((len(names), len(names)))
    matrix[np.triu_indices(len(names), 1)] = values
    matrix += matrix.T
    tree = build_tree(values, labels)
    auc = within_domain_auc(values, labels)
    summary: dict[str, Any] = {
        **key,
        "n_concepts": len(names),
        "n_domains": len(domain_names),
        "auc": finite_or_none(auc.value),
        "auc_low": auc.low,
        "auc_high": auc.high,
        "cophenetic": finite_or_none(tree.cophenetic),
        "purity": finite_or_none(tree.purity),
        "triplets": finite_or_none(tree.triplets),
    }
    summary |= _recovery_columns(matrix, domains, stage)
    rows[tables.HIERARCHY_CUTS.name] += [{**key, **asdict(cut)} for cut in tree.cuts]
    rows[tables.HIERARCHY_MERGES.name] += [{**key, **merge} for merge in _merge_rows(tree, names)]
    cutoff = (representation["threshold"], representation["top"])
    if representation["representation"] == EXPERTS and cutoff != (None, None):
        experts = _expert_sets(connection, representation, len(names))
        # Fewer draws: each one counts every neuron.
        polysemy = measure_polysemy(experts, labels, stage.params["draws"] // 20, stage.params["seed"])
        summary |= {
            "n_neurons": polysemy.neurons,
            "n_shared": polysemy.shared,
            "one_domain": finite_or_none(polysemy.one_domain),
            "one_domain_by_chance": finite_or_none(polysemy.one_domain_by_chance),
            "one_domain_p": finite_or_none(polysemy.p),
        }
        rows[tables.HIERARCHY_DOMAINS.name] += [
            {**key, **columns} for columns in _containment_rows(experts, domains, stage)
        ]
    table = tables.HIERARCHY_SUMMARY
    rows[table.name].append(dict.fromkeys(table.schema.names) | summary)


def _expert_sets(
    connection: duckdb.DuckDBPyConnection, representation: dict[str, Any], n_concepts: int
) -> Bools:
    """Which neurons are experts of which concepts, of shape (concepts, neurons)."""
    params = {name: representation[name] for name in ("pooling", "threshold", "top")}
    pairs = connection.sql(sql.read_query("expert_sets"), params=params).fetchnumpy()
    n_neurons = int(pairs["neuron"].max()) + 1 if len(pairs["neuron"]) else 0
    experts = np.zeros((n_concepts, n_neurons), np.bool_)
    experts[pairs["number"], pairs["neuron"]] = True
    return experts


def _recovery_columns(matrix: Floats, domains: dict[str, str], stage: Stage) -> dict[str, Any]:
    """Whether members are most similar to the concept that names their domain."""
    names = list(domains)
    superordinates = [domain for domain in dict.fromkeys(domains.values()) if domain in domains]
    members = [
        name
        for name, domain in domains.items()
        if domain in superordinates and name not in superordinates
    ]
    rows = [names.index(name) for name in members]
    columns = [names.index(name) for name in superordinates]
    labels = np.array([superordinates.index(domains[name]) for name in members], np.int64)
    similarity = matrix[np.ix_(rows, columns)]
    recovery = measure_recovery(similarity, labels, stage.params["draws"], stage.params["seed"])
    if recovery is None:
        return {}
    return {
        "recovered": recovery.share,
        "recovered_by_chance": recovery.by_chance,
        "recovered_p": recovery.p,
        "n_members": recovery.members,
    }


def _containment_rows(experts: Bools, domains: dict[str, str], stage: Stage) -> list[dict[str, Any]]:
    """Containment of every domain that is itself a concept and has enough others to compare with."""
    draws, seed = stage.params["draws"], stage.params["seed"]
    names = list(domains)
    rows = []
    for domain in dict.fromkeys(domains.values()):
        if domain not in domains:
            continue
        members = [names.index(name) for name in names if domains[name] == domain and name != domain]
        # The names of other domains are superordinates too, so they are not comparable with members.
        others = [
            number
            for number, name in enumerate(names)
            if domains[name] != domain and name != domains[name]
        ]
        if not members or len(others) < len(members):
            continue
        containment = measure_containment(
            experts, names.index(domain), np.array(members), np.array(others), draws, seed
        )
        shares = {name: finite_or_none(value) for name, value in asdict(containment).items()}
        rows.append({"domain": domain, "n_members": len(members), **shares})
    return rows


def _merge_rows(tree: ConceptTree, names: list[str]) -> list[dict[str, Any]]:
    leaves = [[name] for name in names]
    rows = []
    for number, (left, right, distance, _) in enumerate(tree.merges):
        first, second = leaves[int(left)], leaves[int(right)]
        row = {"merge": number, "concepts_a": first, "concepts_b": second, "distance": float(distance)}
        rows.append(row)
        leaves.append(first + second)
    return rows


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("hierarchy")
