"""Stage `hierarchy`: whether the domains of the concepts show in a representation, one model or
baseline at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.statistics.domain_auc import separation
from alignment.statistics.hierarchy import Tree, containment, grow_tree, polysemy, recovery
from jobs import sentences
from jobs.engine.stage import Outcome, Stage
from jobs.experts import SITES_FOLDER
from jobs.similarity import EXPERTS, FILE
from storage import sql, tables
from storage.store.commit import write_table
from storage.store.paths import let_read

KIND = "hierarchy"
SUMMARY_FILE = "summary.parquet"

_FILES = {
    SUMMARY_FILE: tables.HIERARCHY_SUMMARY,
    "domains.parquet": tables.HIERARCHY_DOMAINS,
    "cuts.parquet": tables.HIERARCHY_CUTS,
    "merges.parquet": tables.HIERARCHY_MERGES,
}
_PLACE = (
    "representation",
    "model",
    "revision",
    "concept_set",
    "pooling",
    "layer",
    "site",
    "measure",
    "threshold",
    "top",
)

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Rows = dict[str, list[dict[str, Any]]]


def plan(similarity: Stage, texts: Stage, draws: int, seed: int) -> Stage:
    """The stage for the representations of one similarity stage."""
    inputs = {"similarity": similarity, "sentences": texts}
    if "experts" in similarity.inputs:
        inputs["experts"] = similarity.inputs["experts"]
    return Stage(KIND, similarity.label, {"draws": draws, "seed": seed}, _run, inputs)


def has_domains(domains: dict[str, str | None]) -> bool:
    """Whether there is a hierarchy to look for: two domains with two concepts or more."""
    return len(_taxonomy(domains)[1]) > 1


def _taxonomy(domains: dict[str, str | None]) -> tuple[list[str], list[str]]:
    """The concepts in the order of their names, and the domains, that have two concepts or more."""
    sizes = Counter(domain for domain in domains.values() if domain)
    kept = sorted(domain for domain, size in sizes.items() if size > 1)
    return sorted(name for name, domain in domains.items() if domain in kept), kept


def _run(stage: Stage, store: Path) -> Outcome:
    of = sentences.read_domains(stage.inputs["sentences"], store)
    rows: Rows = {name: [] for name in _FILES}
    with duckdb.connect() as connection:
        paths = let_read(connection, stage.inputs["similarity"].result(store).paths(FILE))
        connection.from_parquet(paths, hive_partitioning=False).create_view("similarity")
        if "experts" in stage.inputs:
            paths = let_read(connection, stage.inputs["experts"].result(store).paths(SITES_FOLDER))
            connection.from_parquet(paths, hive_partitioning=False).create("scored")
        held = connection.sql(
            "SELECT DISTINCT unnest([concept_a, concept_b]) FROM similarity"
        ).fetchall()
        names, _ = _taxonomy({name: of[name] for (name,) in held})
        sql.provide(connection, "common", {"concept": names})
        numbers = list(range(len(names)))
        sql.provide(connection, "concepts", {"concept": names, "number": numbers})
        for family in connection.sql(sql.query("families")).to_arrow_table().to_pylist():
            query = connection.sql(sql.query("matrices"), params=family)
            # each layer's experts alone are too few for a tree
            whole = query.filter("representation != 'experts' OR (layer IS NULL AND site IS NULL)")
            for row in whole.to_arrow_table().to_pylist():
                _add(rows, row, names, of, connection, stage)
    return Outcome(
        [
            write_table(stage.folder(store), name, pa.Table.from_pylist(rows[name], schema))
            for name, schema in _FILES.items()
        ]
    )


def _add(
    rows: Rows,
    row: dict[str, Any],
    names: list[str],
    of: dict[str, str | None],
    connection: duckdb.DuckDBPyConnection,
    stage: Stage,
) -> None:
    """Add what is found of one representation to the tables."""
    place = {name: row[name] for name in _PLACE}
    number = {name: index for index, name in enumerate(names)}
    kept = list(dict.fromkeys(of[name] for name in names))
    domains = np.array([kept.index(of[name]) for name in names])
    values = np.array(row["similarities"], np.float64)
    square = np.zeros((len(names), len(names)))
    square[np.triu_indices(len(names), 1)] = values
    square += square.T
    tree = grow_tree(values, domains)
    area = separation(values, domains)
    summary: dict[str, Any] = {
        **place,
        "n_concepts": len(names),
        "n_domains": len(kept),
        "auc": _finite(area.value),
        "auc_low": area.low,
        "auc_high": area.high,
        "cophenetic": _finite(tree.cophenetic),
        "purity": _finite(tree.purity),
        "triplets": _finite(tree.triplets),
    }
    summary |= _recovered(square, names, of, number, stage)
    rows["cuts.parquet"] += [{**place, **asdict(cut)} for cut in tree.cuts]
    rows["merges.parquet"] += [{**place, **merge} for merge in _merges(tree, names)]
    if row["representation"] == EXPERTS and (row["threshold"], row["top"]) != (None, None):
        experts = _expert_sets(connection, row, len(names))
        # each draw counts every neuron anew, so there are fewer
        found = polysemy(experts, domains, stage.params["draws"] // 20, stage.params["seed"])
        summary |= {
            "n_neurons": found.neurons,
            "n_shared": found.shared,
            "one_domain": _finite(found.one_domain),
            "one_domain_by_chance": _finite(found.one_domain_by_chance),
            "one_domain_p": _finite(found.p),
        }
        rows["domains.parquet"] += [
            {**place, **each} for each in _contained(experts, names, of, number, stage)
        ]
    rows[SUMMARY_FILE].append(dict.fromkeys(tables.HIERARCHY_SUMMARY.names) | summary)


def _expert_sets(
    connection: duckdb.DuckDBPyConnection, row: dict[str, Any], n_concepts: int
) -> Booleans:
    """Which neuron is an expert of which concept: (concepts, neurons)."""
    wanted = {name: row[name] for name in ("pooling", "threshold", "top")}
    found = connection.sql(sql.query("expert_sets"), params=wanted).fetchnumpy()
    n_neurons = int(found["neuron"].max()) + 1 if len(found["neuron"]) else 0
    experts = np.zeros((n_concepts, n_neurons), np.bool_)
    experts[found["number"], found["neuron"]] = True
    return experts


def _recovered(
    square: Floats,
    names: list[str],
    of: dict[str, str | None],
    number: dict[str, int],
    stage: Stage,
) -> dict[str, Any]:
    """Whether members are most like the concept that names their domain."""
    named = [str(domain) for domain in dict.fromkeys(of[name] for name in names) if domain in number]
    members = [name for name in names if of[name] in named and name not in named]
    similarity = square[np.ix_([number[name] for name in members], [number[domain] for domain in named])]
    own = np.array([named.index(str(of[name])) for name in members], np.int64)
    found = recovery(similarity, own, stage.params["draws"], stage.params["seed"])
    if found is None:
        return {}
    return {
        "recovered": found.share,
        "recovered_by_chance": found.by_chance,
        "recovered_p": found.p,
        "n_members": found.members,
    }


def _contained(
    experts: Booleans,
    names: list[str],
    of: dict[str, str | None],
    number: dict[str, int],
    stage: Stage,
) -> list[dict[str, Any]]:
    """Containment of each domain that names a concept and has enough others to be compared with."""
    rows = []
    for domain in dict.fromkeys(of[name] for name in names):
        if domain is None or domain not in number:
            continue
        members = [number[name] for name in names if of[name] == domain and name != domain]
        # the names of other domains stand for more than one concept does
        others = [number[name] for name in names if of[name] != domain and name != of[name]]
        if not members or len(others) < len(members):
            continue
        found = containment(
            experts,
            number[domain],
            np.array(members),
            np.array(others),
            stage.params["draws"],
            stage.params["seed"],
        )
        shares = {name: _finite(value) for name, value in asdict(found).items()}
        rows.append({"domain": domain, "n_members": len(members), **shares})
    return rows


def _merges(tree: Tree, names: list[str]) -> list[dict[str, Any]]:
    below = [[name] for name in names]
    rows = []
    for number, (left, right, distance, _) in enumerate(tree.merges):
        first, second = below[int(left)], below[int(right)]
        rows.append(
            {
                "merge": number,
                "concepts_a": first,
                "concepts_b": second,
                "distance": float(distance),
            }
        )
        below.append(first + second)
    return rows


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("hierarchy")
