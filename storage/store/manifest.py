"""Manifests: a stage is complete once its manifest exists; readers read only the files that it lists."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreError
from storage.store.checksums import check_file, read_checked
from storage.store.commit import (
    TEMPORARY_SUFFIX,
    FileRecord,
    encode_json,
    read_checksummed,
    write_checksummed,
)
from storage.store.layout import DROPPED, FORMAT, INPUTS, STAGE_KINDS, SUCCESS, WORK_UNITS
from storage.store.paths import file_size, file_version, is_remote, list_dir, remove_file
from storage.version import __version__

_STORED_AS_IS = ("kind", "label", "fingerprint", "params", "inputs", "notes")
"""Fields of a manifest that are the same in its file."""

_LIBRARIES = ("torch", "transformers", "ray", "pyarrow", "duckdb", "numpy", "scipy")
_MAX_NUMBER = 2**63
_MAX_PARALLEL_REQUESTS = 16
_MAX_CACHED_ORIGINS = 1 << 14
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Manifest:
    """The provenance and contents of a stage.

    `inputs` are the folders of the stages that it read; `dropped` the paths of listed files that were
    deleted on purpose (see `drop_files`). `sources` are the `contents` of each input when it was read;
    None in manifests of earlier versions. `contents` identifies the files and what they were made of.
    """

    folder: Path
    kind: str
    label: str
    fingerprint: str
    params: dict[str, Any]
    inputs: dict[str, str]
    files: list[FileRecord]
    seconds: float
    notes: list[str] = field(default_factory=list)
    finished: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    sources: dict[str, str] | None = None
    contents: str = ""

    def commit(self) -> None:
        """Write the manifest, which completes the stage."""
        remove_file(self.folder / DROPPED)
        write_checksummed(
            self.folder,
            SUCCESS,
            {
                **{name: getattr(self, name) for name in _STORED_AS_IS},
                "format": FORMAT,
                "sources": self.sources,
                "contents": self.contents or _identify_contents(self.files, self.sources),
                "files": [vars(record) for record in self.files],
                "rows": sum(record.rows for record in self.files),
                "seconds": round(self.seconds, 3),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": software_versions(),
                "host": socket.gethostname(),
            },
        )

    @property
    def origin(self) -> Origin:
        return Origin(self.contents, self.sources)

    @property
    def present_records(self) -> list[FileRecord]:
        """The files that must exist: those listed and not dropped."""
        return [record for record in self.files if record.path not in self.dropped]

    def missing_files(self) -> list[Path]:
        """Files that must exist but are missing or have another size."""
        records = self.present_records
        is_present = _map(partial(_is_present, self.folder), records, self.folder)
        return [
            self.folder / record.path
            for record, present in zip(records, is_present, strict=True)
            if not present
        ]

    def check_files(self) -> None:
        """Raise StoreError if a file that must exist is missing or has another size."""
        if missing := self.missing_files():
            raise StoreError(
                f"{missing[0]}: is missing or truncated, but listed in {SUCCESS}; rerun the sweep"
            )

    def check(self, records: Iterable[FileRecord]) -> None:
        """Raise StoreError if one of these files is missing or damaged."""
        _map(lambda record: check_file(self.folder / record.path, record.sha256), records, self.folder)

    def read_table(self, name: str) -> pa.Table:
        """The rows of the listed file `name`, or of the listed files in the folder `name`.

        Raises:
            StoreError: if one of them is missing or damaged.
        """
        return read_rows(self.folder, self.records(name))

    def records(self, name: str) -> list[FileRecord]:
        """The listed file `name`, or the listed files in the folder `name`."""
        records = [
            record for record in self.files if record.path == name or record.path.startswith(f"{name}/")
        ]
        if dropped := self.dropped.intersection(record.path for record in records):
            raise StoreError(f"{self.folder / min(dropped)}: was deleted after scoring")
        return records

    def paths(self, name: str) -> list[Path]:
        """Paths of the listed file `name`, or of the listed files in the folder `name`.

        Raises:
            StoreError: if one of them is missing or damaged.
        """
        self.check(self.records(name))
        return self.unchecked_paths(name)

    def unchecked_paths(self, name: str) -> list[Path]:
        """The same paths, of files that may be damaged."""
        return [self.folder / record.path for record in self.records(name)]


def read(folder: Path) -> Manifest | None:
    """The manifest of a stage; None if the stage is not complete."""
    path = folder / SUCCESS
    if file_size(path) is None:
        return None
    try:
        content = read_checksummed(path)
        _check_fields(content)
        dropped = folder / DROPPED
        dropped_paths = read_checksummed(dropped)["files"] if file_size(dropped) is not None else ()
        return Manifest(
            folder=folder,
            **{name: content[name] for name in (*_STORED_AS_IS, "seconds", "finished", "versions")},
            files=(files := _parse_records(content["files"])),
            dropped=frozenset(dropped_paths),
            sources=(sources := content.get("sources")),
            contents=content.get("contents") or _identify_contents(files, sources),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: cannot be read: {error}; remove the folder and rerun the sweep"
        ) from error


def read_rows(folder: Path, records: Iterable[FileRecord]) -> pa.Table:
    """The rows of Parquet files of a stage. Raises StoreError if one is missing or damaged."""
    contents = (read_checked(folder / record.path, record.sha256) for record in records)
    return pa.concat_tables([pq.read_table(pa.BufferReader(content)) for content in contents])


class Origin(NamedTuple):
    """The `contents` and `sources` of a complete stage (see `Manifest`)."""

    contents: str
    sources: dict[str, str] | None


def read_origins(folders: Mapping[str, Path]) -> dict[str, Origin]:
    """The origins of those of the stages that are complete, by the same names."""
    origins = _map(_read_origin, folders.values(), next(iter(folders.values()), None))
    pairs = zip(folders, origins, strict=True)
    return {name: origin for name, origin in pairs if origin is not None}


def is_current(sources: Mapping[str, str] | None, inputs: Mapping[str, Origin]) -> bool:
    """Whether something that was made of inputs with the contents `sources` would be made of the same
    `inputs` now. Earlier versions did not record sources: then no input may have been made since."""
    if sources is None:
        return all(origin.sources is None for origin in inputs.values())
    return all(sources.get(name) == origin.contents for name, origin in inputs.items())


def completed(root: Path, *kinds: str) -> Iterator[Manifest]:
    """The manifests of the complete stages of these kinds (default: all), in order of their folders."""
    return filter(None, map(read, stage_folders(root, *kinds)))


def stage_folders(root: Path, *kinds: str) -> list[Path]:
    """The folders of the stages of these kinds (default: all), complete or not, sorted within a kind."""
    paths = (path for kind in kinds or STAGE_KINDS for path in list_dir(root / kind))
    return [path for path in paths if path.suffix != TEMPORARY_SUFFIX]


def ancestors(stage: Manifest, stages: Mapping[str, Manifest]) -> set[str]:
    """Folder names of a stage and all its direct and indirect inputs, as far as they are in `stages`."""
    names, waiting = {stage.folder.name}, [stage]
    while waiting:
        new = {name for name in waiting.pop().inputs.values() if name in stages} - names
        names |= new
        waiting += [stages[name] for name in new]
    return names


def drop_files(manifest: Manifest, is_dropped: Callable[[FileRecord], bool], why: str) -> int:
    """Delete some files of a complete stage on purpose; returns the number of bytes freed.

    The stage stays complete. The list of files is committed first, so an interrupted deletion can be
    repeated.
    """
    records = [record for record in manifest.files if is_dropped(record)]
    if not manifest.dropped.issuperset(record.path for record in records):
        paths = sorted({*manifest.dropped, *(record.path for record in records)})
        write_checksummed(manifest.folder, DROPPED, {"why": why, "files": paths})
    present = [record for record in records if file_size(manifest.folder / record.path) is not None]
    for record in present:
        remove_file(manifest.folder / record.path)
    return sum(record.bytes for record in present)


def begin_work_units(folder: Path, inputs: Mapping[str, Origin]) -> None:
    """Record the inputs that a stage's work units are made of; discard units made of other contents."""
    path = folder / INPUTS
    try:
        recorded = read_checksummed(path)["sources"] if file_size(path) is not None else None
        if not (recorded is None or _maps_texts(recorded)):
            raise ValueError("invalid sources")
    except (ValueError, KeyError):
        # damaged: the units may be made of anything
        recorded = {}
    if not is_current(recorded, inputs):
        for unit in list_dir(folder / WORK_UNITS):
            remove_file(unit)
    sources = {name: origin.contents for name, origin in inputs.items()}
    write_checksummed(folder, INPUTS, {"sources": sources})


def write_work_unit(
    folder: Path, work_unit: str, files: Iterable[FileRecord], facts: dict[str, Any]
) -> None:
    """Record that a work unit of a stage is committed, so that it is not computed again."""
    content = {"files": [vars(record) for record in files], "facts": facts}
    write_checksummed(folder / WORK_UNITS, f"{work_unit}.json", content)


def read_work_units(folder: Path) -> dict[str, tuple[list[FileRecord], dict[str, Any]]]:
    """The recorded work units of a stage, except those with unreadable records or missing files."""
    work_units = {}
    for path in list_dir(folder / WORK_UNITS):
        if path.suffix == TEMPORARY_SUFFIX:
            continue
        try:
            content = read_checksummed(path)
            files = _parse_records(content["files"])
        except (ValueError, KeyError, TypeError):
            continue
        if all(_is_present(folder, record) for record in files):
            work_units[path.stem] = (files, content["facts"])
    return work_units


@cache
def software_versions() -> dict[str, str]:
    """Versions of Python, neuralign and the libraries that compute the results."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"neuralign": __version__, "python": platform.python_version(), **versions}


def _check_fields(content: Mapping[str, Any]) -> None:
    """Raise ValueError for a field of a manifest that no version has written."""
    sources, seconds = content.get("sources"), content["seconds"]
    is_valid = {
        "kind": content["kind"] in STAGE_KINDS,
        **{name: isinstance(content[name], str) for name in ("label", "fingerprint", "finished")},
        **{name: isinstance(content[name], dict) for name in ("params", "versions")},
        "inputs": _maps_texts(content["inputs"]),
        "notes": isinstance(content["notes"], list),
        "seconds": isinstance(seconds, int | float) and 0 <= seconds < _MAX_NUMBER,
        "sources": sources is None or _maps_texts(sources),
        "contents": isinstance(content.get("contents", ""), str),
    }
    for name, valid in is_valid.items():
        if not valid:
            raise ValueError(f"invalid {name}")


def _parse_records(values: Iterable[Mapping[str, Any]]) -> list[FileRecord]:
    """The listed files. Raises ValueError or TypeError for what no version has written."""
    records = [FileRecord(**value) for value in values]
    for record in records:
        numbers, texts = (record.rows, record.bytes), (record.path, record.sha256)
        is_valid = (
            all(type(number) is int and 0 <= number < _MAX_NUMBER for number in numbers)
            and all(isinstance(text, str) and text.isprintable() for text in texts)
            # below the stage's folder
            and {"", ".", ".."}.isdisjoint(record.path.split("/"))
        )
        if not is_valid:
            raise ValueError(f"invalid file {record.path!r}")
    return records


def _maps_texts(value: object) -> bool:
    """Whether a value is a mapping of texts to texts; the keys of JSON objects are texts."""
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_present(folder: Path, record: FileRecord) -> bool:
    return file_size(folder / record.path) == record.bytes


def _identify_contents(files: Iterable[FileRecord], sources: Mapping[str, str] | None) -> str:
    """Equal for stages with equal files that were made of equal inputs."""
    hashes = {record.path: record.sha256 for record in files}
    return hashlib.sha256(encode_json([hashes, sources or {}])).hexdigest()


def _read_origin(folder: Path) -> Origin | None:
    version = file_version(folder / SUCCESS)
    return None if version is None else _read_origin_of_version(folder, version)


@lru_cache(_MAX_CACHED_ORIGINS)
def _read_origin_of_version(folder: Path, _: object) -> Origin | None:
    # a manifest can have thousands of files, and all stages that read a stage ask for its origin
    stage = read(folder)
    return None if stage is None else stage.origin


def _map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], folder: Path | None
) -> list[_Result]:
    """The results for all items, in parallel where each is a request to an object store."""
    if not is_remote(folder):
        return list(map(function, items))
    with ThreadPoolExecutor(_MAX_PARALLEL_REQUESTS) as threads:
        return list(threads.map(function, items))
