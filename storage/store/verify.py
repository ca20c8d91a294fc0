"""Is a store what its manifests say, byte by byte and row by row?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.database import TABLES, is_activations
from storage.errors import StoreError
from storage.store import layout, manifest
from storage.store.commit import FileRecord, key_columns, table_problem
from storage.store.manifest import Manifest
from storage.store.paths import files_below, let_read, read_bytes, read_table

_MARKS = {layout.SUCCESS, layout.RUNNING, layout.FAILED, layout.DROPPED}


def verify(root: Path) -> Iterator[str]:
    """What is wrong with a store, one line a problem; nothing for a store in which all is well.

    Every file that a manifest lists is read and must be there, with its checksum, its schema, its rows,
    finite numbers and no key twice; what a stage was made of must be there; and every file that nothing
    lists is named. Not to be run beside a sweep, whose new files nothing lists yet.

    Raises StoreError when `root` is no store of this version.
    """
    layout.check(root)
    known = {root / layout.MARK, *files_below(root / layout.SCHEDULES)}
    folders = [folder for kind in layout.KINDS for folder in manifest.stages(root, kind)]
    done: dict[str, Manifest] = {}
    for folder in folders:
        try:
            found = manifest.read(folder)
        except StoreError as error:
            yield str(error)
            continue
        if found is not None:
            done[folder.name] = found
    for folder in folders:
        known |= {folder / name for name in _MARKS}
        known |= {path for path in files_below(folder / layout.UNITS) if path.suffix == ".json"}
        stage = done.get(folder.name)
        if stage is None:
            for files, _ in manifest.read_units(folder).values():
                yield from _files(folder, files)
                known |= {folder / record.path for record in files}
            continue
        yield from _files(folder, stage.kept)
        yield from _tables(stage)
        known |= {folder / record.path for record in stage.files}
        for name in stage.inputs.values():
            if name not in done:
                yield f"{folder}: was made of {name}, which is not there"
    for path in files_below(root):
        if path not in known:
            yield f"{path}: is listed by no manifest"


def _files(folder: Path, files: list[FileRecord]) -> Iterator[str]:
    """What is wrong with single files."""
    for record in files:
        path = folder / record.path
        try:
            content = read_bytes(path)
        except FileNotFoundError:
            yield f"{path}: is missing; run the sweep again"
            continue
        except OSError as error:
            yield f"{path}: cannot be read: {error.strerror}"
            continue
        if hashlib.sha256(content).hexdigest() != record.sha256:
            yield f"{path}: is not what was written (its checksum); delete it and run the sweep"
        elif path.suffix == ".parquet" and (problem := _rows(content, record)):
            yield f"{path}: {problem}"


def _rows(content: bytes, record: FileRecord) -> str | None:
    table = pq.read_table(pa.BufferReader(content))
    if table.num_rows != record.rows:
        return f"has {table.num_rows} rows; the manifest says {record.rows}"
    if is_activations(record):
        finite = bool(np.isfinite(table.column(0).to_numpy()).all())
        return None if finite else "has values that are not finite"
    return table_problem(table)


def _tables(stage: Manifest) -> Iterator[str]:
    """What is wrong with the tables of a stage as a whole: their columns, keys over all their files, and
    the widths of the activations."""
    for view, (kind, name, schema) in TABLES.items():
        paths = stage.paths(name) if kind == stage.kind else []
        tables = []
        for path in paths:
            try:
                table = read_table(path)
                tables.append(table.select(key_columns(schema)))
            except (OSError, KeyError, StoreError):
                # a file that cannot be read was told of already
                continue
            if not table.schema.equals(schema):
                yield f"{path}: has other columns than the table {view} of this version"
        if len(tables) > 1 and (problem := table_problem(pa.concat_tables(tables))):
            yield f"{stage.folder / name}: {problem}"
    if stage.kind == "activations":
        yield from _widths(stage)


def _widths(stage: Manifest) -> Iterator[str]:
    """Files of activations that the tables `sites` and `activation_files` tell otherwise of."""
    rows = {record.path: record.rows for record in stage.files if is_activations(record)}
    try:
        with duckdb.connect() as connection:
            for name in ("sites", "activation_files"):
                paths = let_read(connection, stage.paths(TABLES[name][1]))
                connection.from_parquet(paths, hive_partitioning=False).create_view(name)
            told = connection.sql(
                "SELECT path, sentences * width FROM activation_files JOIN sites "
                "USING (model, revision, concept_set, pooling, layer, site)"
            ).fetchall()
    except duckdb.Error:
        return
    for path, expected in told:
        if rows.get(path) != expected:
            yield f"{stage.folder / path}: has {rows.get(path)} values, not {expected}"
    for path in rows.keys() - {path for path, _ in told}:
        yield f"{stage.folder / path}: is not in the table activation_files"
