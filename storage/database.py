"""DuckDB views of a store; they read only the files that manifests list.

Almost every view has the column `run`, the fingerprint of the stage that wrote the row, because a store
may hold the same table computed in several ways; the view `runs` says how each was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage import sql, tables
from storage.errors import StoreError, UserError
from storage.store import layout, manifest
from storage.store.commit import FileRecord, new_file
from storage.store.manifest import Manifest
from storage.store.paths import absolute_path, register_with_duckdb

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_READ_STATEMENT = re.compile(
    r"\s*(EXPLAIN\s+(ANALYZE\s+)?)?(SELECT|WITH|FROM|PIVOT|UNPIVOT|VALUES)\b", re.I
)
_SET_VARIABLE = re.compile(r"\s*SET\s+VARIABLE\b", re.I)

_STAGE_PARAMETERS = ("model", "revision", "concept_set")
"""Columns that are parameters of a stage: the same in all rows of a run."""

_SITE_FILES_OF_RUN = """
SELECT
    {model} AS model, {revision} AS revision, {concept_set} AS concept_set,
    url_decode(regexp_extract(v.filename, 'pooling=([^/]*)/[^/]*/[^/]*/[^/]*$', 1)) AS pooling,
    regexp_extract(v.filename, 'layer=([^/]*)/[^/]*/[^/]*$', 1)::INTEGER AS layer,
    url_decode(regexp_extract(v.filename, 'site=([^/]*)/[^/]*$', 1)) AS site,
    {values},
    {run} AS run
FROM read_parquet(
    {files}, filename = true, file_row_number = true, hive_partitioning = false
) AS v
JOIN {joined}
"""

_ACTIVATIONS_OF_RUN = {
    "values": """
    (v.file_row_number // f.sentences)::INTEGER AS unit,
    f.first + v.file_row_number % f.sentences AS sentence_id,
    v.value::FLOAT AS value""",
    "joined": "activation_files AS f ON f.run = {run} AND f.path = substr(v.filename, {path_start})",
}

_SCORES_OF_RUN = {
    "values": """
    (
        regexp_extract(v.filename, '([0-9]*).parquet$', 1)::BIGINT + v.file_row_number // {n_concepts}
    )::INTEGER AS unit,
    c.concept,
    {score}""",
    "joined": "scored_concepts AS c ON c.run = {run} AND c.number = v.file_row_number % {n_concepts}",
}


def open_store(root: Path, runs: Container[str] | None = None) -> duckdb.DuckDBPyConnection:
    """A connection with the views of a store. It can read the store and nothing else.

    `runs` are the fingerprints of the runs to include, by default all.

    Raises:
        StoreError: if `root` is not a store of this version.
    """
    connection = duckdb.connect()
    _create_views(connection, root, runs)
    connection.execute(f"SET allowed_directories = [{_quoted(absolute_path(root))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def export_database(root: Path, file: Path) -> None:
    """Write a DuckDB database whose views work without neuralign as long as the store is not moved.

    Raises:
        UserError: if the file already exists, or its folder does not.
    """
    with new_file(file) as temporary, duckdb.connect(str(temporary)) as connection:
        _create_views(connection, root)


def run_query(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The result of a query.

    Raises:
        UserError: for invalid SQL, and for statements that do more than read.
    """
    try:
        for statement in connection.extract_statements(query):
            if not _is_read_only(statement):
                raise UserError(
                    f"SQL: {statement.type.name} is not allowed: a store is read-only; use SELECT"
                )
        # a SELECT may contain a DELETE
        connection.execute("BEGIN TRANSACTION READ ONLY")
        try:
            result = connection.sql(query)
            if result is None:
                raise UserError("SQL: the query is empty")
            return result.to_arrow_table()
        finally:
            connection.execute("ROLLBACK")
    except duckdb.Error as error:
        raise UserError(f"SQL: {' '.join(str(error).split())}") from error


def _is_read_only(statement: duckdb.Statement) -> bool:
    text = _COMMENT.sub(" ", statement.query)
    if statement.type == duckdb.StatementType.SET:
        return _SET_VARIABLE.match(text) is not None
    if statement.type in (duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI):
        # EXPLAIN ANALYZE executes its statement; a PIVOT is several statements, even when nested
        return _READ_STATEMENT.match(text) is not None
    return bool(statement.type == duckdb.StatementType.SELECT)


def is_activation_file(record: FileRecord) -> bool:
    """Whether a file of a stage `activations` holds raw activations."""
    return record.path.startswith("pooling=")


def check_tables(stage: Manifest) -> None:
    """Raise StoreError if a table of a stage is missing or damaged. Activations and scores, which are
    large, are not read for it."""
    stage.check([record for record in stage.present_records if "pooling=" not in record.path])


def explain_damage(root: Path, error: duckdb.Error, stages: Iterable[Manifest]) -> StoreError:
    """The error of a reader whose query failed because a file of these stages is damaged."""
    for stage in stages:
        check_tables(stage)
    message = " ".join(str(error).split())
    return StoreError(f"{root}: cannot be read: {message}; run `neuralign verify`")


def _create_views(
    connection: duckdb.DuckDBPyConnection, root: Path, runs: Container[str] | None = None
) -> None:
    layout.check_store(root)
    register_with_duckdb(connection, [root])
    stages: dict[str, list[Manifest]] = {kind: [] for kind in layout.STAGE_KINDS}
    for stage in manifest.completed(root):
        if runs is None or stage.fingerprint in runs:
            stage.check_files()
            stages[stage.kind].append(stage)
    try:
        for name, table in tables.TABLES.items():
            rows = _select_rows(stages[table.stage], table)
            if table is tables.EXPERTS:
                rows = _join_attributions(rows, stages["experts"], stages["attributions"])
            connection.execute(f"CREATE VIEW {name} AS {rows}")
        for view in tables.QUERY_VIEWS:
            connection.execute(f"CREATE VIEW {view.name} AS {sql.read_query(view.name)}")
        _create_activations(connection, stages["activations"])
        for view, score in (
            (tables.SCORES, "v.value AS ap"),
            (tables.AUROC, "(v.value + 0.5)::FLOAT AS auroc"),
        ):
            _create_scores(connection, stages["experts"], view, score)
    except duckdb.Error as error:
        # columns and sizes are read now, rows by queries
        raise explain_damage(root, error, chain(*stages.values())) from error
    _create_runs(connection, chain(*stages.values()))


def _select_rows(stages: list[Manifest], table: tables.Table) -> str:
    """A query over a table's files in all runs.

    Stage parameters become constants, so that a filter on them skips the files of other runs.
    """
    return _union(
        [
            f"SELECT {_select_columns(table, stage)}, {_quoted(stage.fingerprint)} AS run "
            f"FROM ({_select_files(table, paths)})"
            for stage in stages
            if (paths := stage.unchecked_paths(table.file))
        ],
        table.schema,
    )


def _select_files(table: tables.Table, paths: list[Path]) -> str:
    """The rows of a table's files, with nulls in the columns that files of earlier versions lack."""
    rows = f"FROM read_parquet({_list(paths)}, hive_partitioning = false)"
    if not table.added:
        return rows
    schema = pa.schema([table.schema.field(name) for name in table.added])
    return f"{rows} UNION ALL BY NAME SELECT {_nulls(schema)} WHERE false"


def _select_columns(table: tables.Table, stage: Manifest) -> str:
    return ", ".join(
        f'{_quoted(stage.params[name])} AS "{name}"'
        if name in _STAGE_PARAMETERS and isinstance(stage.params.get(name), str)
        else f'"{name}"'
        for name in table.schema.names
    )


def _join_attributions(rows: str, experts: list[Manifest], attributions: list[Manifest]) -> str:
    """A query over the experts with their attributions: those of the stage that finished last."""
    latest: dict[str, Manifest] = {}
    for stage in sorted(attributions, key=lambda stage: stage.finished):
        latest[stage.inputs["experts"]] = stage
    parts = [
        f"SELECT {_quoted(stage.fingerprint)} AS run, pooling, concept, layer, site, unit, attribution "
        f"FROM read_parquet({_list(paths)}, hive_partitioning = false)"
        for stage in experts
        if stage.folder.name in latest
        and (paths := latest[stage.folder.name].unchecked_paths("attributions"))
    ]
    if not parts:
        return f"SELECT * EXCLUDE (run), NULL::DOUBLE AS attribution, run FROM ({rows})"
    return (
        f"SELECT e.* EXCLUDE (run), a.attribution, e.run FROM ({rows}) AS e "
        f"LEFT JOIN ({' UNION ALL '.join(parts)}) AS a "
        "USING (run, pooling, concept, layer, site, unit)"
    )


def _create_activations(connection: duckdb.DuckDBPyConnection, stages: list[Manifest]) -> None:
    parts = []
    for stage in stages:
        records = filter(is_activation_file, stage.present_records)
        if paths := [stage.folder / record.path for record in records]:
            # SQL counts from 1, and a slash follows the folder
            start = len(absolute_path(stage.folder)) + 2
            parts.append(_select_site_files(stage, paths, _ACTIVATIONS_OF_RUN, path_start=start))
    connection.execute(f"CREATE VIEW activations AS {_union(parts, tables.ACTIVATIONS.schema)}")


def _create_scores(
    connection: duckdb.DuckDBPyConnection, stages: list[Manifest], view: tables.View, score: str
) -> None:
    """Create the view of a kind of scores; its files are in the folder of its name."""
    parts = [
        _select_site_files(stage, paths, _SCORES_OF_RUN, n_concepts=record.rows, score=score)
        for stage in stages
        for record in stage.files
        if record.path == tables.SCORED_CONCEPTS.file and (paths := stage.unchecked_paths(view.name))
    ]
    connection.execute(f"CREATE VIEW {view.name} AS {_union(parts, view.schema)}")


def _select_site_files(
    stage: Manifest, paths: list[Path], clauses: dict[str, str], **terms: int | str
) -> str:
    constants = {name: _quoted(stage.params[name]) for name in _STAGE_PARAMETERS}
    run = _quoted(stage.fingerprint)
    filled = {name: clause.format(run=run, **terms) for name, clause in clauses.items()}
    return _SITE_FILES_OF_RUN.format(**constants, **filled, run=run, files=_list(paths))


def _union(parts: list[str], schema: pa.Schema) -> str:
    """The rows of several queries; none, but with the same columns, if there are no queries."""
    return " UNION ALL ".join(parts) or f"SELECT {_nulls(schema)}, NULL::VARCHAR AS run WHERE false"


def _nulls(schema: pa.Schema) -> str:
    return ", ".join(f'NULL::{sql_type(column.type)} AS "{column.name}"' for column in schema)


def _create_runs(connection: duckdb.DuckDBPyConnection, stages: Iterable[Manifest]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "run": stage.fingerprint,
            "stage": stage.kind,
            "label": stage.label,
            "params": json.dumps(stage.params, sort_keys=True),
            "seconds": stage.seconds,
            "finished": stage.finished,
            "files": len(stage.present_records),
            "bytes": sum(record.bytes for record in stage.present_records),
            "dropped": len(stage.dropped),
        }
        for stage in stages
    ]
    connection.from_arrow(pa.Table.from_pylist(rows, tables.RUNS.schema)).create("runs")


def _list(paths: list[Path]) -> str:
    return "[" + ", ".join(_quoted(absolute_path(path)) for path in paths) + "]"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of an Arrow type."""
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    names = {
        pa.string(): "VARCHAR",
        pa.int32(): "INTEGER",
        pa.int64(): "BIGINT",
        pa.float32(): "FLOAT",
        pa.float64(): "DOUBLE",
    }
    return names[kind]
