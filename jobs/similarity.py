"""Stage `similarity`: similarity of every pair of concepts, by their shared experts (DuckDB SQL) or by
the APs of all neurons, in the whole model, in each layer and in each kind of site."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from alignment.expertise.scoring import AP, AUROC
from jobs import activations, sentences
from jobs.config.analysis import AP_MEASURES, AUROC_HALVES, AUROC_MEASURES, VECTOR_MEASURES
from jobs.engine.stage import Stage, StageOutput
from jobs.experts import EXPERTS_FOLDER
from jobs.representations.score_vectors import ScoreFiles, score_similarities
from jobs.scoring.block_scores import SCORES_FOLDERS
from jobs.scoring.labelings import HALVES
from storage import sql, tables
from storage.store.activation_files import activation_folder
from storage.store.commit import write_table

KIND = "similarity"
EXPERTS = "experts"
FAMILY_KEY = ("representation", "model", "revision", "concept_set", "pooling", "measure")
REPRESENTATION_KEY = (*FAMILY_KEY, "layer", "site", "threshold", "top")

MEMORY_LIMIT = "4GB"
"""Memory limit of DuckDB, above which it spills to disk."""

_PERFECT_HASH_BITS = 22
"""Up to 4 million pairs are counted in an array (40 MB per thread)."""


def plan(
    experts: Stage,
    measures: Sequence[str],
    scopes: Sequence[str],
    thresholds: Sequence[float],
    top: Sequence[int] = (),
    halves: Sequence[Stage] = (),
) -> Stage:
    """The stage that compares concepts by one model's experts, at every pooling.

    `halves` are the experts of both halves of the sentences, for the measure auroc-halves.
    """
    control = experts.params.get("control")
    params = {
        **{name: experts.params[name] for name in ("model", "revision", "concept_set")},
        "representation": f"{EXPERTS}, {control}" if control else EXPERTS,
        "measures": list(measures),
        "scopes": sorted(scopes),
        "thresholds": sorted(thresholds),
        "top": sorted(top),
    }
    inputs = {"experts": experts}
    if AUROC_HALVES in measures:
        inputs |= dict(zip(HALVES, halves, strict=True))
    return Stage(KIND, experts.label, params, _run, inputs)


def _run(stage: Stage, store: Path) -> StageOutput:
    experts = stage.inputs["experts"]
    activations_stage = experts.inputs["activations"]
    paths = experts.read_manifest(store).paths(EXPERTS_FOLDER)
    concepts = sentences.read_concept_names(activations_stage.inputs["sentences"], store)
    measures = stage.params["measures"]
    with connect_duckdb() as connection:
        sql.scan_parquet(connection, paths).create_view("experts")
        results = compute_similarities(
            connection,
            concepts,
            activations_stage.params["poolings"],
            [measure for measure in measures if measure not in VECTOR_MEASURES],
            **{name: stage.params[name] for name in ("scopes", "thresholds", "top")},
        )
    vector_measures = [measure for measure in measures if measure in VECTOR_MEASURES]
    if vector_measures:
        files = _score_files(stage, store, vector_measures)
        results += score_similarities(files, concepts, vector_measures)
    names = ("model", "revision", "concept_set", "representation")
    constants = {name: stage.params[name] for name in names}
    rows = pa.concat_tables([fill_columns(table, constants) for table in results])
    return StageOutput([write_table(stage.folder(store), tables.SIMILARITY.file, rows)])


def _score_files(
    stage: Stage, store: Path, measures: Sequence[str]
) -> list[tuple[dict[str, Any], ScoreFiles]]:
    """The score files that the measures need, by scope, with the scope's columns (pooling, layer,
    site)."""
    experts, scopes = stage.inputs["experts"], stage.params["scopes"]
    sites = activations.read_neuron_sites(experts.inputs["activations"], store)
    if len({row["site"] for row in sites}) == 1:
        scopes = [scope for scope in scopes if scope != "site"]
    needed = [
        (kind, experts, kind)
        for kind, users in ((AP, AP_MEASURES), (AUROC, AUROC_MEASURES[:1]))
        if not set(users).isdisjoint(measures)
    ]
    needed += [(half, stage.inputs[half], AUROC) for half in HALVES if AUROC_HALVES in measures]
    files: dict[tuple[Any, ...], ScoreFiles] = {}
    for name, scored, kind in needed:
        manifest = scored.read_manifest(store)
        manifest.check(manifest.records(SCORES_FOLDERS[kind]))
        for scope, row in product(scopes, sites):
            layer = row["layer"] if scope == "layer" else None
            site = row["site"] if scope == "site" else None
            folder = activation_folder(row["pooling"], row["layer"], row["site"])
            paths = sorted(manifest.unchecked_paths(f"{SCORES_FOLDERS[kind]}/{folder}"))
            of_scope = files.setdefault((row["pooling"], layer, site), {})
            of_scope.setdefault(name, []).extend(paths)
    names = ("pooling", "layer", "site")
    return [(dict(zip(names, scope, strict=True)), found) for scope, found in files.items()]


def compute_similarities(
    connection: duckdb.DuckDBPyConnection,
    concepts: Sequence[str],
    poolings: Sequence[str],
    measures: Sequence[str],
    scopes: Sequence[str],
    thresholds: Sequence[float],
    top: Sequence[int],
) -> list[pa.Table]:
    """Similarities of all pairs of concepts, from the view `experts` of a connection.

    `scopes` are among model, layer and site (ignored for a single kind of site). Experts are the neurons
    with an AP above each of the `thresholds`, and the `top` neurons by AP of each concept and scope, as
    far as the view `experts` has them.
    """
    sql.create_table(connection, "names", {"concept": concepts})
    sql.create_table(connection, "measures", {"measure": measures})
    sql.create_table(connection, "poolings", {"pooling": poolings})
    _replace_table(connection, "concepts", "concept_numbers")
    _replace_table(connection, "sites", "sites")
    results = []
    for scope in scopes:
        _replace_table(connection, "scopes", "scopes", scope=scope)
        _replace_table(connection, "candidates", "scoped_experts")
        for threshold in sorted(thresholds):
            results.append(
                _compare_sets(connection, min_strength=threshold, threshold=threshold, top=None)
            )
        if top:
            _replace_table(connection, "ranked", "ranked_experts")
            connection.execute("DROP TABLE candidates; ALTER TABLE ranked RENAME TO candidates")
        for k in sorted(top):
            # The top k are the neurons whose rank is below k + 1/2.
            results.append(_compare_sets(connection, min_strength=-k - 0.5, threshold=None, top=k))
    return results


def _compare_sets(connection: duckdb.DuckDBPyConnection, **cutoff: float | None) -> pa.Table:
    _replace_table(connection, "shared", "shared_experts", **cutoff)
    return connection.sql(sql.read_query("set_similarity")).to_arrow_table()


def _replace_table(connection: duckdb.DuckDBPyConnection, table: str, query: str, **params: Any) -> None:
    """Create a table from a query's result, replacing a table of that name."""
    connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.sql(sql.read_query(query), params=params or None).create(table)


@contextmanager
def connect_duckdb() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that is limited to MEMORY_LIMIT and spills to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="neuralign-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": folder,
            "preserve_insertion_order": False,
            "perfect_ht_threshold": _PERFECT_HASH_BITS,
        }
        with duckdb.connect(config=config) as connection:
            yield connection


def is_control(stage: Stage) -> bool:
    """Whether a similarity stage compares the experts of a control."""
    return "experts" in stage.inputs and "control" in stage.inputs["experts"].params


def fill_columns(rows: pa.Table, constants: dict[str, Any]) -> pa.Table:
    """`rows` with all columns of the table `similarity`: missing ones are constant or null."""
    columns = {}
    for field in tables.SIMILARITY.schema:
        if field.name in rows.column_names:
            columns[field.name] = rows.column(field.name).cast(field.type)
        else:
            value = pa.scalar(constants.get(field.name), field.type)
            columns[field.name] = pa.repeat(value, rows.num_rows)
    return pa.table(columns, tables.SIMILARITY.schema)


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("similarity")
