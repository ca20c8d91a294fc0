"""Manifests: a stage is done when its manifest is there, and readers read only what it lists."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage import __version__
from storage.commit import FileRecord, write_json
from storage.errors import StoreError
from storage.layout import SUCCESS, UNITS

_LIBRARIES = ("torch", "transformers", "ray", "pyarrow", "duckdb", "numpy", "scipy")


@dataclass(frozen=True)
class Manifest:
    """What made a stage and what it holds."""

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

    def commit(self) -> None:
        """Write the manifest: from here on the stage is done."""
        write_json(
            self.folder,
            SUCCESS,
            {
                "kind": self.kind,
                "label": self.label,
                "fingerprint": self.fingerprint,
                "params": self.params,
                "inputs": self.inputs,
                "files": [record.to_json() for record in self.files],
                "seconds": round(self.seconds, 3),
                "notes": self.notes,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": software_versions(),
                "host": socket.gethostname(),
            },
        )

    def lacks(self) -> list[Path]:
        """Listed files that are not there with their size."""
        return [self.folder / each.path for each in self.files if not _is_there(self.folder, each)]

    def check_files(self) -> None:
        """Raise StoreError when a listed file is not there with its size."""
        if lacking := self.lacks():
            raise StoreError(
                f"{lacking[0]}: is missing or was cut, though {SUCCESS} lists it; run the sweep again"
            )

    def paths(self, name: str) -> list[Path]:
        """Paths of the listed files whose own name is `name`, or that lie in the folder `name`."""
        return [
            self.folder / record.path
            for record in self.files
            if record.path == name or record.path.startswith(f"{name}/")
        ]


def read(folder: Path) -> Manifest | None:
    """The manifest of a stage's folder, None while the stage is not done."""
    path = folder / SUCCESS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
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
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}; remove the folder to redo it") from error


def done(root: Path, kind: str) -> Iterator[Manifest]:
    """The manifests of all done stages of one kind, in the order of their folders' names."""
    for path in sorted((root / kind).glob(f"*/{SUCCESS}")):
        manifest = read(path.parent)
        if manifest is not None:
            yield manifest


def write_unit(folder: Path, unit: str, files: Iterable[FileRecord], facts: dict[str, Any]) -> None:
    """Record that a unit of a stage is committed: from here on it is never computed again."""
    content = {"files": [record.to_json() for record in files], "facts": facts}
    write_json(folder / UNITS, f"{unit}.json", content)


def read_units(folder: Path) -> dict[str, tuple[list[FileRecord], dict[str, Any]]]:
    """The recorded units of a stage whose files are all there with their sizes."""
    units = {}
    for path in sorted((folder / UNITS).glob("*.json")):
        content = json.loads(path.read_text())
        files = [FileRecord(**record) for record in content["files"]]
        if all(_is_there(folder, record) for record in files):
            units[path.stem] = (files, content["facts"])
    return units


def software_versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"neuralign": __version__, "python": platform.python_version(), **versions}


def _is_there(folder: Path, record: FileRecord) -> bool:
    path = folder / record.path
    return path.is_file() and path.stat().st_size == record.bytes
