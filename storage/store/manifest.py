"""Manifests: a stage is done when its manifest is there, and readers read only what it lists."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from storage import __version__
from storage.errors import StoreError
from storage.store.commit import TEMPORARY_SUFFIX, FileRecord, read_sealed, write_sealed
from storage.store.layout import DROPPED, FORMAT, SUCCESS, UNITS
from storage.store.paths import entries, is_remote, remove, size

_LIBRARIES = ("torch", "transformers", "ray", "pyarrow", "duckdb", "numpy", "scipy")
_REQUESTS_AT_ONCE = 16


@dataclass(frozen=True)
class Manifest:
    """What made a stage and what it holds.

    `inputs` are the folders of the stages that it read; `dropped` the paths of listed files that were
    deleted on purpose (see `drop`).
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

    def commit(self) -> None:
        """Write the manifest: from here on the stage is done."""
        remove(self.folder / DROPPED)
        write_sealed(
            self.folder,
            SUCCESS,
            {
                "format": FORMAT,
                "kind": self.kind,
                "label": self.label,
                "fingerprint": self.fingerprint,
                "params": self.params,
                "inputs": self.inputs,
                "files": [record.to_json() for record in self.files],
                "rows": sum(record.rows for record in self.files),
                "seconds": round(self.seconds, 3),
                "notes": self.notes,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": software_versions(),
                "host": socket.gethostname(),
            },
        )

    @property
    def kept(self) -> list[FileRecord]:
        """The files that must be there: those listed and not dropped."""
        return [record for record in self.files if record.path not in self.dropped]

    def lacks(self) -> list[Path]:
        """Files that must be there and are not, with their size."""
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
            there = (threads.map if is_remote(self.folder) else map)(
                lambda record: _is_there(self.folder, record), self.kept
            )
            return [
                self.folder / record.path
                for record, is_there in zip(self.kept, there, strict=True)
                if not is_there
            ]

    def check_files(self) -> None:
        """Raise StoreError when a file that must be there is not, with its size."""
        if lacking := self.lacks():
            raise StoreError(
                f"{lacking[0]}: is missing or was cut, though {SUCCESS} lists it; run the sweep again"
            )

    def paths(self, name: str) -> list[Path]:
        """Paths of the listed files whose own name is `name`, or that lie in the folder `name`."""
        found = [
            record.path
            for record in self.files
            if record.path == name or record.path.startswith(f"{name}/")
        ]
        if gone := self.dropped.intersection(found):
            raise StoreError(f"{self.folder / min(gone)}: was dropped after it had been scored")
        return [self.folder / path for path in found]


def read(folder: Path) -> Manifest | None:
    """The manifest of a stage's folder, None while the stage is not done."""
    path = folder / SUCCESS
    if size(path) is None:
        return None
    try:
        found = read_sealed(path)
        dropped = folder / DROPPED
        return Manifest(
            folder=folder,
            kind=found["kind"],
            label=found["label"],
            fingerprint=found["fingerprint"],
            params=found["params"],
            inputs=found["inputs"],
            files=[FileRecord(**record) for record in found["files"]],
            seconds=found["seconds"],
            notes=found["notes"],
            finished=found["finished"],
            versions=found["versions"],
            dropped=frozenset(read_sealed(dropped)["files"] if size(dropped) is not None else ()),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}; remove the folder to redo it") from error


def done(root: Path, kind: str) -> Iterator[Manifest]:
    """The manifests of all done stages of one kind, in the order of their folders' names."""
    for folder in stages(root, kind):
        manifest = read(folder)
        if manifest is not None:
            yield manifest


def stages(root: Path, kind: str) -> list[Path]:
    """The folders of all stages of one kind, done or not, in the order of their names."""
    return [path for path in entries(root / kind) if path.suffix != TEMPORARY_SUFFIX]


def made_of(stage: Manifest, done: Mapping[str, Manifest]) -> set[str]:
    """Names of the folders of a stage and of all that it was made of, among those that are done."""
    found = {stage.folder.name}
    for name in stage.inputs.values():
        if name in done:
            found |= made_of(done[name], done)
    return found


def drop(manifest: Manifest, is_dropped: Callable[[FileRecord], bool], why: str) -> int:
    """Delete some files of a done stage on purpose; returns how many bytes that freed.

    The stage counts as done, and says what it lost: the list is committed before anything is deleted,
    and deleting again what is gone already does nothing.
    """
    gone = [record for record in manifest.files if is_dropped(record)]
    if not manifest.dropped.issuperset(record.path for record in gone):
        content = {"why": why, "files": sorted({*manifest.dropped, *(each.path for each in gone)})}
        write_sealed(manifest.folder, DROPPED, content)
    there = [record for record in gone if size(manifest.folder / record.path) is not None]
    for record in there:
        remove(manifest.folder / record.path)
    return sum(record.bytes for record in there)


def write_unit(folder: Path, unit: str, files: Iterable[FileRecord], facts: dict[str, Any]) -> None:
    """Record that a unit of a stage is committed: from here on it is never computed again."""
    content = {"files": [record.to_json() for record in files], "facts": facts}
    write_sealed(folder / UNITS, f"{unit}.json", content)


def read_units(folder: Path) -> dict[str, tuple[list[FileRecord], dict[str, Any]]]:
    """The recorded units of a stage whose files are all there with their sizes. A record that cannot
    be read is none: its unit is done again."""
    units = {}
    for path in entries(folder / UNITS):
        if path.suffix == TEMPORARY_SUFFIX:
            continue
        try:
            content = read_sealed(path)
            files = [FileRecord(**record) for record in content["files"]]
        except (ValueError, KeyError, TypeError):
            continue
        if all(_is_there(folder, record) for record in files):
            units[path.stem] = (files, content["facts"])
    return units


@cache
def software_versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"neuralign": __version__, "python": platform.python_version(), **versions}


def _is_there(folder: Path, record: FileRecord) -> bool:
    return size(folder / record.path) == record.bytes
