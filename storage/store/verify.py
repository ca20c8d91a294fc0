"""Check a store against its manifests, byte by byte and row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import tables
from storage.database import is_activation_file
from storage.errors import StoreError
from storage.sql import scan_parquet
from storage.store import layout, manifest
from storage.store.checksums import DAMAGED, MISSING
from storage.store.commit import FileRecord, find_table_problem, key_columns, read_checksummed
from storage.store.manifest import Manifest
from storage.store.paths import file_size, read_bytes, read_parquet, walk_files

_STAGE_FILES = {layout.SUCCESS, layout.RUNNING, layout.FAILED, layout.DROPPED, layout.INPUTS}


def verify(root: Path) -> Iterator[str]:
    """Problems of a store, one line each.

    Reads every listed file and checks its checksum, schema, rows, finite numbers and unique keys; checks
    that the inputs of every stage exist and are those that it was made of; and reports files that no
    manifest lists. Do not run it during a sweep, whose new files are not listed yet.

    Raises:
        StoreError: if `root` is not a store of this version.
    """
    layout.check_store(root)
    referenced = {root / layout.STORE_FILE, *walk_files(root / layout.SCHEDULES)}
    folders = manifest.stage_folders(root)
    stages: dict[str, Manifest] = {}
    for folder in folders:
        try:
            if stage := manifest.read(folder):
                stages[folder.name] = stage
        except StoreError as error:
            yield str(error)
    damaged: dict[str, Path] = {}
    for folder in folders:
        referenced |= {folder / name for name in _STAGE_FILES}
        yield from _check_inputs_file(folder)
        referenced |= {path for path in walk_files(folder / layout.WORK_UNITS) if path.suffix == ".json"}
        stage = stages.get(folder.name)
        if stage is None:
            # Temporary data, which the run that continues checks when it reads them.
            referenced.update(walk_files(folder / layout.HIDDEN_STATES))
            for files, _ in manifest.read_work_units(folder).values():
                yield from dict(_check_files(folder, files)).values()
                referenced |= {folder / record.path for record in files}
            continue
        problems = dict(_check_files(folder, stage.present_records))
        yield from problems.values()
        yield from _check_tables(stage, problems.keys())
        if problems:
            damaged[folder.name] = next(iter(problems))
        referenced |= {folder / record.path for record in stage.files}
        for name in stage.inputs.values():
            if name not in stages:
                yield f"{folder}: its input {name} is missing"
    for stage in stages.values():
        yield from _check_origin(stage, stages, damaged)
    for path in walk_files(root):
        if path not in referenced:
            yield f"{path}: is not listed by any manifest"


def _check_origin(
    stage: Manifest, stages: Mapping[str, Manifest], damaged: Mapping[str, Path]
) -> Iterator[str]:
    """Inputs whose files were replaced since the stage was made of them, or may have been damaged then.

    `damaged` has one path for each stage, by its folder's name, that has damaged or missing files.
    """
    for name, input_name in stage.inputs.items():
        if input_name in stages:
            origin = stages[input_name].origin
            if not manifest.is_current(stage.sources, {name: origin}):
                yield f"{stage.folder}: its input {input_name} was replaced since; rerun its sweep"
                return
    for name in sorted(manifest.ancestors(stage, stages)) if damaged else ():
        # earlier versions did not check what they read
        if stages[name].sources is None:
            suspects = manifest.ancestors(stages[name], stages) & damaged.keys() - {name}
            if suspects:
                path = damaged[min(suspects)]
                yield f"{stage.folder}: may be made of the damaged {path}; rerun its sweep"
                return


def _check_inputs_file(folder: Path) -> Iterator[str]:
    path = folder / layout.INPUTS
    if file_size(path) is not None:
        try:
            read_checksummed(path)
        except ValueError as error:
            yield f"{path}: {error}; delete it and rerun the sweep"


def _check_files(folder: Path, files: list[FileRecord]) -> Iterator[tuple[Path, str]]:
    """Damaged and missing files, and the problem of each."""
    for record in files:
        path = folder / record.path
        try:
            content = read_bytes(path)
        except FileNotFoundError:
            yield path, f"{path}: {MISSING}"
            continue
        except OSError as error:
            yield path, f"{path}: cannot be read: {error.strerror}"
            continue
        if hashlib.sha256(content).hexdigest() != record.sha256:
            yield path, f"{path}: {DAMAGED}"
        elif path.suffix == ".parquet" and (problem := _find_row_problem(content, record)):
            yield path, f"{path}: {problem}"


def _find_row_problem(content: bytes, record: FileRecord) -> str | None:
    rows = pq.read_table(pa.BufferReader(content))
    if rows.num_rows != record.rows:
        return f"has {rows.num_rows} rows; the manifest lists {record.rows}"
    if is_activation_file(record):
        is_finite = bool(np.isfinite(rows.column(0).to_numpy()).all())
        return None if is_finite else "contains non-finite values"
    return find_table_problem(rows)


def _check_tables(stage: Manifest, damaged: Set[Path]) -> Iterator[str]:
    """Problems of a stage's undamaged tables: columns, keys across files, and widths of activations."""
    for table in tables.TABLES.values():
        paths = stage.unchecked_paths(table.file) if table.stage == stage.kind else []
        keys = []
        for path in paths:
            if path in damaged:
                continue
            rows = read_parquet(path)
            if table.matches(rows.schema):
                keys.append(rows.select(key_columns(table.schema)))
            else:
                yield f"{path}: its columns differ from those of the table {table.name} in this version"
        if len(keys) > 1 and (problem := find_table_problem(pa.concat_tables(keys))):
            yield f"{stage.folder / table.file}: {problem}"
    if stage.kind == "activations" and not damaged:
        yield from _check_widths(stage)


def _check_widths(stage: Manifest) -> Iterator[str]:
    """Activation files whose sizes contradict the tables `sites` and `activation_files`."""
    rows = {record.path: record.rows for record in stage.files if is_activation_file(record)}
    try:
        with duckdb.connect() as connection:
            for table in (tables.SITES, tables.ACTIVATION_FILES):
                scan_parquet(connection, stage.unchecked_paths(table.file)).create_view(table.name)
            sizes = connection.sql(
                "SELECT path, sentences * width FROM activation_files JOIN sites "
                "USING (model, revision, concept_set, pooling, layer, site)"
            ).fetchall()
    except duckdb.Error:
        return
    for path, expected in sizes:
        if rows.get(path) != expected:
            yield f"{stage.folder / path}: has {rows.get(path)} values, expected {expected}"
    for path in rows.keys() - {path for path, _ in sizes}:
        yield f"{stage.folder / path}: is not in the table activation_files"
