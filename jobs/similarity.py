"""Stage `similarity`: how similar two concepts' experts are, by DuckDB SQL over the experts: those of
the whole model, of each layer and of each kind of site, or of a control; and how similar the APs of all
neurons there are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from jobs import activations, sentences
from jobs.config import VECTOR_MEASURES
from jobs.engine.stage import Outcome, Stage
from jobs.experts import SCORES_FOLDER, SITES_FOLDER
from jobs.representations.score_vectors import score_similarities
from storage import sql, tables
from storage.store.activation_files import RESIDUAL, activation_folder
from storage.store.commit import write_table
from storage.store.paths import let_read

KIND = "similarity"
FILE = "similarity.parquet"
EXPERTS = "experts"

MEMORY = "4GB"
"""What DuckDB may use; beyond it, it works on the disk."""

COUNTED_BITS = 22
"""Up to 4 million pairs are counted in an array, of 40 MB a thread."""


def plan(
    experts: Stage,
    measures: Sequence[str],
    scopes: Sequence[str],
    thresholds: Sequence[float],
    top: Sequence[int] = (),
) -> Stage:
    """The stage that compares the experts of one model, for each of its poolings."""
    params = {
        **{name: experts.params[name] for name in ("model", "revision", "concept_set")},
        "representation": _representation(experts),
        "measures": list(measures),
        "scopes": sorted(scopes),
        "thresholds": sorted(thresholds),
        "top": sorted(top),
    }
    return Stage(KIND, experts.label, params, _run, {"experts": experts})


def _run(stage: Stage, store: Path) -> Outcome:
    experts = stage.inputs["experts"]
    read = experts.inputs["activations"]
    paths = experts.result(store).paths(SITES_FOLDER)
    concepts = sentences.read_concept_names(read.inputs["sentences"], store)
    measures = stage.params["measures"]
    with connect() as connection:
        connection.from_parquet(let_read(connection, paths), hive_partitioning=False).create_view(
            "experts"
        )
        tables = similarities(
            connection,
            concepts,
            read.params["poolings"],
            [each for each in measures if each not in VECTOR_MEASURES],
            **{name: stage.params[name] for name in ("scopes", "thresholds", "top")},
        )
    of_vectors = [each for each in measures if each in VECTOR_MEASURES]
    if of_vectors:
        files = _score_files(experts, store, stage.params["scopes"])
        tables += score_similarities(files, concepts, of_vectors)
    constant = {
        **{name: stage.params[name] for name in ("model", "revision", "concept_set")},
        "representation": stage.params["representation"],
    }
    rows = pa.concat_tables([complete(table, constant) for table in tables])
    return Outcome([write_table(stage.folder(store), FILE, rows)])


def _score_files(
    experts: Stage, store: Path, scopes: Sequence[str]
) -> list[tuple[dict[str, Any], list[Path]]]:
    """The files of scores of each place that the scopes name, with the place's columns."""
    sites = [
        row
        for row in activations.read_sites(experts.inputs["activations"], store)
        if row["site"] != RESIDUAL
    ]
    several = len({row["site"] for row in sites}) > 1
    made = experts.result(store)
    places: dict[tuple[Any, ...], list[Path]] = {}
    for scope, row in product(scopes, sites):
        if scope == "site" and not several:
            continue
        layer = row["layer"] if scope == "layer" else None
        site = row["site"] if scope == "site" else None
        folder = activation_folder(row["pooling"], row["layer"], row["site"])
        found = sorted(made.paths(f"{SCORES_FOLDER}/{folder}"))
        places.setdefault((row["pooling"], layer, site), []).extend(found)
    names = ("pooling", "layer", "site")
    return [(dict(zip(names, place, strict=True)), paths) for place, paths in places.items()]


def similarities(
    connection: duckdb.DuckDBPyConnection,
    concepts: Sequence[str],
    poolings: Sequence[str],
    measures: Sequence[str],
    scopes: Sequence[str],
    thresholds: Sequence[float],
    top: Sequence[int],
) -> list[pa.Table]:
    """The measures between each two concepts, from the view `experts` of a connection.

    `scopes` are of model, layer and site; site gives something only where there are several kinds of it,
    for else it is the model. Experts are the neurons whose AP is above each of the
    thresholds, and those of the `top` highest APs of each concept and scope (as far as the view
    `experts` has so many).
    """
    sql.provide(connection, "names", {"concept": concepts})
    sql.provide(connection, "measures", {"measure": measures})
    sql.provide(connection, "poolings", {"pooling": poolings})
    _create(connection, "concepts", "numbered")
    _create(connection, "places", "places")
    tables = []
    for scope in scopes:
        _create(connection, "scopes", "scopes", scope=scope)
        _create(connection, "scored", "scored")
        for each in sorted(thresholds):
            tables.append(_compare(connection, least=each, threshold=each, top=None))
        if top:
            _create(connection, "ranked", "ranked")
            connection.execute("DROP TABLE scored; ALTER TABLE ranked RENAME TO scored")
        for each in sorted(top):
            # a neuron is among the top k when its rank is below k + 1/2
            tables.append(_compare(connection, least=-each - 0.5, threshold=None, top=each))
    return tables


def _compare(connection: duckdb.DuckDBPyConnection, **cut: float | None) -> pa.Table:
    _create(connection, "shared", "shared_experts", **cut)
    return connection.sql(sql.query("set_similarity")).to_arrow_table()


def _create(connection: duckdb.DuckDBPyConnection, table: str, query: str, **params: Any) -> None:
    """Make a query's result a table, in the place of one of that name."""
    connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.sql(sql.query(query), params=params or None).create(table)


@contextmanager
def connect() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that works within MEMORY and spills to a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="neuralign-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY,
            "temp_directory": folder,
            "preserve_insertion_order": False,
            "perfect_ht_threshold": COUNTED_BITS,
        }
        with duckdb.connect(config=config) as connection:
            yield connection


def is_control(stage: Stage) -> bool:
    """Whether a similarity stage is of experts that were found as a control."""
    return "experts" in stage.inputs and "control" in stage.inputs["experts"].params


def _representation(experts: Stage) -> str:
    control = experts.params.get("control")
    return f"{EXPERTS}, {control}" if control else EXPERTS


def complete(rows: pa.Table, constant: dict[str, Any]) -> pa.Table:
    """Rows of the `similarity` table: the columns found in `rows`, then the constant ones."""
    columns = {}
    for field in tables.SIMILARITY:
        if field.name in rows.column_names:
            columns[field.name] = rows.column(field.name).cast(field.type)
        else:
            value = pa.scalar(constant.get(field.name), field.type)
            columns[field.name] = pa.repeat(value, rows.num_rows)
    return pa.table(columns, tables.SIMILARITY)


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("similarity")
