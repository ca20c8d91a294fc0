"""DuckDB over a store: one view a table, reading just the files that manifests list.

Every view has the column `run`, the fingerprint of the stage that wrote the row: a store may hold
the same table made in several ways, and the view `runs` says how each was made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage import sql, tables
from storage.errors import UserError
from storage.store import layout, manifest
from storage.store.commit import FileRecord, temporary_sibling
from storage.store.manifest import Manifest
from storage.store.paths import absolute, let_read

TABLES: dict[str, tuple[str, str, pa.Schema]] = {
    "concepts": ("sentences", "concepts.parquet", tables.CONCEPTS),
    "sentences": ("sentences", "sentences.parquet", tables.SENTENCES),
    "memberships": ("sentences", "memberships.parquet", tables.MEMBERSHIPS),
    "dropped": ("sentences", "dropped.parquet", tables.DROPPED),
    "sites": ("activations", "sites.parquet", tables.SITES),
    "activation_files": ("activations", "files.parquet", tables.ACTIVATION_FILES),
    "experts": ("experts", "experts", tables.EXPERTS),
    "chance_counts": ("experts", "chance", tables.CHANCE),
    "scored_concepts": ("experts", "scored-concepts.parquet", tables.SCORED_CONCEPTS),
    "similarity": ("similarity", "similarity.parquet", tables.SIMILARITY),
    "alignment": ("alignment", "alignment.parquet", tables.ALIGNMENT),
    "control_experts": ("controls", "experts", tables.CONTROL_EXPERTS),
    "attributions": ("attributions", "attributions", tables.ATTRIBUTIONS),
    "steering": ("steering", "steering", tables.STEERING),
    "steering_doses": ("steering", "doses.parquet", tables.STEERING_DOSES),
    "steering_prompts": ("steering", "prompts", tables.STEERING_PROMPTS),
    "steering_neurons": ("steering", "neurons", tables.STEERING_NEURONS),
    "reliability": ("reliability", "reliability.parquet", tables.RELIABILITY),
    "human_pairs": ("alignment", "human-pairs.parquet", tables.HUMAN_PAIRS),
    "human_triplets": ("alignment", "human-triplets.parquet", tables.HUMAN_TRIPLETS),
    "human_dropped": ("alignment", "human-dropped.parquet", tables.HUMAN_DROPPED),
    "hierarchy_summary": ("hierarchy", "summary.parquet", tables.HIERARCHY_SUMMARY),
    "hierarchy_domains": ("hierarchy", "domains.parquet", tables.HIERARCHY_DOMAINS),
    "hierarchy_cuts": ("hierarchy", "cuts.parquet", tables.HIERARCHY_CUTS),
    "hierarchy_merges": ("hierarchy", "merges.parquet", tables.HIERARCHY_MERGES),
}

VIEWS = ("expert_places", "expert_stability", "training", "chance")
"""Where experts sit, when they come and settle, and how many there are by chance."""

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_READING = re.compile(r"\s*(EXPLAIN\s+(ANALYZE\s+)?)?(SELECT|WITH|FROM|PIVOT|UNPIVOT|VALUES)\b", re.I)

_VARIABLE = re.compile(r"\s*SET\s+VARIABLE\b", re.I)

_CONSTANT = ("model", "revision", "concept_set")
"""Columns that are parameters of a stage: the same in all rows of a run."""

_ACTIVATIONS_OF_RUN = """
SELECT
    {model} AS model, {revision} AS revision, {concept_set} AS concept_set,
    url_decode(regexp_extract(v.filename, 'pooling=([^/]*)/[^/]*/[^/]*/[^/]*$', 1)) AS pooling,
    regexp_extract(v.filename, 'layer=([^/]*)/[^/]*/[^/]*$', 1)::INTEGER AS layer,
    url_decode(regexp_extract(v.filename, 'site=([^/]*)/[^/]*$', 1)) AS site,
    (v.file_row_number // f.sentences)::INTEGER AS unit,
    f.first + v.file_row_number % f.sentences AS sentence_id,
    v.value::FLOAT AS value,
    {run} AS run
FROM read_parquet(
    {files}, filename = true, file_row_number = true, hive_partitioning = false
) AS v
JOIN activation_files AS f ON f.run = {run} AND f.path = substr(v.filename, {prefix})
"""

_SCORES_OF_RUN = """
SELECT
    {model} AS model, {revision} AS revision, {concept_set} AS concept_set,
    url_decode(regexp_extract(v.filename, 'pooling=([^/]*)/[^/]*/[^/]*/[^/]*$', 1)) AS pooling,
    regexp_extract(v.filename, 'layer=([^/]*)/[^/]*/[^/]*$', 1)::INTEGER AS layer,
    url_decode(regexp_extract(v.filename, 'site=([^/]*)/[^/]*$', 1)) AS site,
    (
        regexp_extract(v.filename, '([0-9]*).parquet$', 1)::BIGINT + v.file_row_number // {concepts}
    )::INTEGER AS unit,
    c.concept,
    v.value AS ap,
    {run} AS run
FROM read_parquet(
    {files}, filename = true, file_row_number = true, hive_partitioning = false
) AS v
JOIN scored_concepts AS c ON c.run = {run} AND c.number = v.file_row_number % {concepts}
"""

_NO_SCORES = """
SELECT
    NULL::VARCHAR AS model, NULL::VARCHAR AS revision, NULL::VARCHAR AS concept_set,
    NULL::VARCHAR AS pooling, NULL::INTEGER AS layer, NULL::VARCHAR AS site, NULL::INTEGER AS unit,
    NULL::VARCHAR AS concept, NULL::FLOAT AS ap, NULL::VARCHAR AS run
WHERE false
"""

_NO_ACTIVATIONS = """
SELECT
    NULL::VARCHAR AS model, NULL::VARCHAR AS revision, NULL::VARCHAR AS concept_set,
    NULL::VARCHAR AS pooling, NULL::INTEGER AS layer, NULL::VARCHAR AS site, NULL::INTEGER AS unit,
    NULL::BIGINT AS sentence_id, NULL::FLOAT AS value, NULL::VARCHAR AS run
WHERE false
"""


def open_store(root: Path, among: Container[str] | None = None) -> duckdb.DuckDBPyConnection:
    """A connection with the store's views that can read the store and nothing else. With `among`, the
    fingerprints of some runs, the views hold these alone.

    Raises StoreError when `root` is no store of this version.
    """
    connection = duckdb.connect()
    _create_views(connection, root, among)
    connection.execute(f"SET allowed_directories = [{_quoted(absolute(root))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def export(root: Path, file: Path) -> None:
    """Write a DuckDB database whose views work without neuralign, where the store is where it is now.

    Raises UserError when the file is there already.
    """
    if file.exists():
        raise UserError(f"{file}: is there already; name another file")
    with temporary_sibling(file) as temporary:
        with duckdb.connect(str(temporary)) as connection:
            _create_views(connection, root)
        temporary.replace(file)


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Rows that a query gives. Raises UserError for SQL that is wrong or does more than read."""
    try:
        for statement in connection.extract_statements(query):
            if not _only_reads(statement):
                raise UserError(
                    f"SQL: {statement.type.name} is not allowed; a store is only read (SELECT)"
                )
        with _only_reading(connection):
            rows = connection.sql(query)
            if rows is None:
                raise UserError("SQL: the query is empty")
            return rows.to_arrow_table()
    except duckdb.Error as error:
        raise UserError(f"SQL: {' '.join(str(error).split())}") from error


@contextmanager
def _only_reading(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """A transaction that refuses what a statement would write: a SELECT may hold a DELETE."""
    connection.execute("BEGIN TRANSACTION READ ONLY")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _only_reads(statement: duckdb.Statement) -> bool:
    text = _COMMENT.sub(" ", statement.query)
    if statement.type == duckdb.StatementType.SET:
        return _VARIABLE.match(text) is not None
    if statement.type in (duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI):
        # EXPLAIN ANALYZE does what it explains; a PIVOT is several statements, also within another
        return _READING.match(text) is not None
    return bool(statement.type == duckdb.StatementType.SELECT)


def is_activations(record: FileRecord) -> bool:
    """Whether a listed file of a stage `activations` holds raw activations."""
    return record.path.startswith("pooling=")


def _create_views(
    connection: duckdb.DuckDBPyConnection, root: Path, among: Container[str] | None = None
) -> None:
    layout.check(root)
    let_read(connection, [root])
    done = {
        kind: [each for each in manifest.done(root, kind) if among is None or each.fingerprint in among]
        for kind in layout.KINDS
    }
    for each in [each for kind in layout.KINDS for each in done[kind]]:
        each.check_files()
    for view, (kind, name, schema) in TABLES.items():
        rows = _select(done[kind], name, schema)
        if view == "experts":
            rows = _with_attributions(rows, done["experts"], done["attributions"])
        connection.execute(f"CREATE VIEW {view} AS {rows}")
    for view in VIEWS:
        connection.execute(f"CREATE VIEW {view} AS {sql.query(view)}")
    _create_activations(connection, done["activations"])
    _create_scores(connection, done["experts"])
    _create_runs(connection, [each for kind in layout.KINDS for each in done[kind]])


def _select(done: list[Manifest], name: str, schema: pa.Schema) -> str:
    """A query over a table's files in all runs; empty without files.

    What is the same in all rows of a run is a constant there, so a filter on it leaves the files of
    other runs unread.
    """
    parts = [
        f"SELECT {_columns(schema, each)}, {_quoted(each.fingerprint)} AS run "
        f"FROM read_parquet({_list(paths)}, hive_partitioning = false)"
        for each in done
        if (paths := each.paths(name))
    ]
    if parts:
        return " UNION ALL ".join(parts)
    columns = ", ".join(f'NULL::{_sql_type(field.type)} AS "{field.name}"' for field in schema)
    return f"SELECT {columns}, NULL::VARCHAR AS run WHERE false"


def _with_attributions(rows: str, experts: list[Manifest], attributions: list[Manifest]) -> str:
    """A query over the experts with what steering estimates of them: null where no stage did, and by the
    stage that was finished last where several did."""
    latest: dict[str, Manifest] = {}
    for each in sorted(attributions, key=lambda each: each.finished):
        latest[each.inputs["experts"]] = each
    parts = [
        f"SELECT {_quoted(of.fingerprint)} AS run, pooling, concept, layer, site, unit, attribution "
        f"FROM read_parquet({_list(paths)}, hive_partitioning = false)"
        for of in experts
        if of.folder.name in latest and (paths := latest[of.folder.name].paths("attributions"))
    ]
    if not parts:
        return f"SELECT * EXCLUDE (run), NULL::DOUBLE AS attribution, run FROM ({rows})"
    return (
        f"SELECT e.* EXCLUDE (run), a.attribution, e.run FROM ({rows}) AS e "
        f"LEFT JOIN ({' UNION ALL '.join(parts)}) AS a "
        "USING (run, pooling, concept, layer, site, unit)"
    )


def _columns(schema: pa.Schema, of: Manifest) -> str:
    return ", ".join(
        f'{_quoted(of.params[name])} AS "{name}"'
        if name in _CONSTANT and isinstance(of.params.get(name), str)
        else f'"{name}"'
        for name in schema.names
    )


def _create_activations(connection: duckdb.DuckDBPyConnection, done: list[Manifest]) -> None:
    parts = [
        _ACTIVATIONS_OF_RUN.format(
            **{name: _quoted(each.params[name]) for name in _CONSTANT},
            run=_quoted(each.fingerprint),
            files=_list(paths),
            # SQL counts from 1, and a slash stands between
            prefix=len(absolute(each.folder)) + 2,
        )
        for each in done
        if (paths := [each.folder / record.path for record in each.kept if is_activations(record)])
    ]
    connection.execute(f"CREATE VIEW activations AS {' UNION ALL '.join(parts) or _NO_ACTIVATIONS}")


def _create_scores(connection: duckdb.DuckDBPyConnection, done: list[Manifest]) -> None:
    parts = []
    for each in done:
        listed = [record.rows for record in each.files if record.path == "scored-concepts.parquet"]
        if listed:
            described = {name: _quoted(each.params[name]) for name in _CONSTANT}
            files = _list(each.paths("scores"))
            of_run = {"run": _quoted(each.fingerprint), "files": files, "concepts": listed[0]}
            parts.append(_SCORES_OF_RUN.format(**described, **of_run))
    connection.execute(f"CREATE VIEW scores AS {' UNION ALL '.join(parts) or _NO_SCORES}")


def _create_runs(connection: duckdb.DuckDBPyConnection, done: list[Manifest]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "run": each.fingerprint,
            "stage": each.kind,
            "label": each.label,
            "params": json.dumps(each.params, sort_keys=True),
            "seconds": each.seconds,
            "finished": each.finished,
            "files": len(each.kept),
            "bytes": sum(record.bytes for record in each.kept),
            "dropped": len(each.dropped),
        }
        for each in done
    ]
    connection.from_arrow(pa.Table.from_pylist(rows, tables.RUNS)).create("runs")


def _list(paths: list[Path]) -> str:
    return "[" + ", ".join(_quoted(absolute(path)) for path in paths) + "]"


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
