"""DuckDB over a store: one view a table, reading just the files that manifests list.

Every view has the column `run`, the fingerprint of the stage that wrote the row: a store may hold
the same table made in several ways, and the view `runs` says how each was made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage import layout, manifest, schemas, sql
from storage.errors import UserError
from storage.manifest import Manifest

TABLES: dict[str, tuple[str, str, pa.Schema]] = {
    "concepts": ("sentences", "concepts.parquet", schemas.CONCEPTS),
    "sentences": ("sentences", "sentences.parquet", schemas.SENTENCES),
    "memberships": ("sentences", "memberships.parquet", schemas.MEMBERSHIPS),
    "sites": ("activations", "sites.parquet", schemas.SITES),
    "activation_files": ("activations", "files.parquet", schemas.ACTIVATION_FILES),
    "experts": ("experts", "experts", schemas.EXPERTS),
    "similarity": ("similarity", "similarity.parquet", schemas.SIMILARITY),
    "alignment": ("alignment", "alignment.parquet", schemas.ALIGNMENT),
    "control_experts": ("controls", "experts", schemas.CONTROL_EXPERTS),
    "reliability": ("reliability", "reliability.parquet", schemas.RELIABILITY),
    "human_pairs": ("alignment", "human-pairs.parquet", schemas.HUMAN_PAIRS),
    "human_triplets": ("alignment", "human-triplets.parquet", schemas.HUMAN_TRIPLETS),
    "human_dropped": ("alignment", "human-dropped.parquet", schemas.HUMAN_DROPPED),
    "hierarchy_summary": ("hierarchy", "summary.parquet", schemas.HIERARCHY_SUMMARY),
    "hierarchy_domains": ("hierarchy", "domains.parquet", schemas.HIERARCHY_DOMAINS),
    "hierarchy_cuts": ("hierarchy", "cuts.parquet", schemas.HIERARCHY_CUTS),
    "hierarchy_merges": ("hierarchy", "merges.parquet", schemas.HIERARCHY_MERGES),
}

VIEWS = ("expert_places", "expert_stability")
"""What the tables say of where experts sit and when they settle."""

_RUN = "^/[a-z]+/[^/]*-([0-9a-f]{16})/"

_ACTIVATIONS = """
CREATE VIEW activations AS
SELECT
    f.model, f.revision, f.concept_set, v.pooling, v.layer, v.site,
    (v.file_row_number // f.sentences)::INTEGER AS unit,
    f.first + v.file_row_number % f.sentences AS sentence_id,
    v.value::FLOAT AS value,
    f.run
FROM {values} AS v
JOIN activation_files AS f
    ON f.path = regexp_extract(v.filename, 'pooling=.*$')
    AND f.run = {run}
"""


def open_store(root: Path) -> duckdb.DuckDBPyConnection:
    """A connection with the store's views that can read the store and nothing else.

    Raises StoreError when `root` is no store of this version.
    """
    layout.check(root)
    connection = duckdb.connect()
    done = {kind: list(manifest.done(root, kind)) for kind in layout.KINDS}
    for each in [each for kind in layout.KINDS for each in done[kind]]:
        each.check_files()
    for view, (kind, name, schema) in TABLES.items():
        paths = [path for each in done[kind] for path in each.paths(name)]
        connection.execute(f"CREATE VIEW {view} AS {_select(paths, schema, root)}")
    for view in VIEWS:
        connection.execute(f"CREATE VIEW {view} AS {sql.query(view)}")
    _create_activations(connection, done["activations"], root)
    _create_runs(connection, [each for kind in layout.KINDS for each in done[kind]])
    connection.execute(f"SET allowed_directories = [{_quoted(str(root.resolve()))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Rows that a query gives. Raises UserError for SQL that is wrong or does more than read."""
    try:
        for statement in connection.extract_statements(query):
            if statement.type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
                raise UserError(
                    f"SQL: {statement.type.name} is not allowed; a store is only read (SELECT)"
                )
        rows = connection.sql(query)
        if rows is None:
            raise UserError("SQL: the query is empty")
        return rows.to_arrow_table()
    except duckdb.Error as error:
        raise UserError(f"SQL: {' '.join(str(error).split())}") from error


def _run_of(filename: str, root: Path) -> str:
    """SQL for the fingerprint of the stage that a file of the store belongs to."""
    return f"regexp_extract(substr({filename}, {len(str(root.resolve())) + 1}), '{_RUN}', 1)"


def _select(paths: list[Path], schema: pa.Schema, root: Path) -> str:
    """A query over the files, with the run that each row comes from; empty without files."""
    names = ", ".join(f'"{name}"' for name in schema.names)
    if paths:
        run = _run_of("filename", root)
        return f"SELECT {names}, {run} AS run FROM read_parquet({_list(paths)}, filename = true)"
    columns = ", ".join(f'NULL::{_sql_type(field.type)} AS "{field.name}"' for field in schema)
    return f"SELECT {columns}, NULL::VARCHAR AS run WHERE false"


def _create_activations(connection: duckdb.DuckDBPyConnection, done: list[Manifest], root: Path) -> None:
    paths = [
        each.folder / record.path
        for each in done
        for record in each.files
        if record.path.startswith("pooling=")
    ]
    if paths:
        types = "{'pooling': VARCHAR, 'layer': INTEGER, 'site': VARCHAR}"
        values = (
            f"read_parquet({_list(paths)}, filename = true, file_row_number = true, "
            f"hive_partitioning = true, hive_types = {types})"
        )
    else:
        values = (
            "(SELECT NULL::VARCHAR AS pooling, NULL::INTEGER AS layer, NULL::VARCHAR AS site, "
            "NULL::VARCHAR AS filename, 0 AS file_row_number, NULL::FLOAT AS value WHERE false)"
        )
    connection.execute(_ACTIVATIONS.format(values=values, run=_run_of("v.filename", root)))


def _create_runs(connection: duckdb.DuckDBPyConnection, done: list[Manifest]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "run": each.fingerprint,
            "stage": each.kind,
            "label": each.label,
            "params": json.dumps(each.params, sort_keys=True),
            "seconds": each.seconds,
            "finished": each.finished,
            "files": len(each.files),
            "bytes": sum(record.bytes for record in each.files),
        }
        for each in done
    ]
    connection.from_arrow(pa.Table.from_pylist(rows, schemas.RUNS)).create("runs")


def _list(paths: list[Path]) -> str:
    return "[" + ", ".join(_quoted(str(path.resolve())) for path in paths) + "]"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _sql_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"{_sql_type(kind.value_type)}[]"
    names = {
        pa.string(): "VARCHAR",
        pa.int32(): "INTEGER",
        pa.int64(): "BIGINT",
        pa.float32(): "FLOAT",
        pa.float64(): "DOUBLE",
    }
    return names[kind]
