"""Stages: what every step of a sweep has in common.

A stage is a pure function of its parameters and of its inputs' fingerprints. Its own fingerprint
names its folder, so a finished stage is never computed twice and two configurations never mix.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from storage import layout, manifest
from storage.commit import FileRecord, write_json
from storage.errors import NeuralignError
from storage.fingerprint import fingerprint
from storage.manifest import Manifest

HEARTBEAT_SECONDS = 5.0
_LEFTOVER_SECONDS = 3600.0


@dataclass(frozen=True)
class Stage:
    """One step for one configuration.

    `params` and `inputs` make the fingerprint; `run(stage, store)` does the work, writing into the
    stage's folder, and returns the files that it committed.
    """

    kind: str
    label: str
    params: Mapping[str, Any]
    run: Callable[[Stage, Path], Outcome]
    inputs: Mapping[str, Stage] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        inputs = {name: stage.fingerprint for name, stage in self.inputs.items()}
        return fingerprint([self.kind, layout.FORMAT, dict(self.params), inputs])

    @property
    def name(self) -> str:
        return f"{self.kind} {self.label}"

    def folder(self, store: Path) -> Path:
        return layout.stage_folder(store, self.kind, self.label, self.fingerprint)

    def is_done(self, store: Path) -> bool:
        found = manifest.read(self.folder(store))
        return found is not None and not found.lacks()

    def result(self, store: Path) -> Manifest:
        """The manifest of the stage, which must be done."""
        found = manifest.read(self.folder(store))
        if found is None:
            raise NeuralignError(f"{self.name} is not done")
        return found


@dataclass(frozen=True)
class Outcome:
    """What a stage committed, and what the user should know about it."""

    files: list[FileRecord]
    notes: list[str] = field(default_factory=list)


def ensure(stage: Stage, store: Path) -> bool:
    """Run a stage unless it is done; return whether it was run."""
    if stage.is_done(store):
        return False
    folder = stage.folder(store)
    folder.mkdir(parents=True, exist_ok=True)
    # a manifest whose files are gone no longer tells the truth
    (folder / layout.SUCCESS).unlink(missing_ok=True)
    _sweep_leftovers(folder)
    started = time.monotonic()
    with _marked_running(stage, folder):
        outcome = stage.run(stage, store)
    Manifest(
        folder=folder,
        kind=stage.kind,
        label=stage.label,
        fingerprint=stage.fingerprint,
        params=dict(stage.params),
        inputs={name: each.folder(store).name for name, each in stage.inputs.items()},
        files=outcome.files,
        seconds=time.monotonic() - started,
        notes=outcome.notes,
    ).commit()
    return True


def run_missing_units(
    folder: Path,
    units: Mapping[str, Any],
    run: Callable[[Iterable[Any]], Iterator[tuple[str, list[FileRecord], dict[str, Any]]]],
) -> tuple[list[FileRecord], list[dict[str, Any]]]:
    """Run the units of a stage that are not recorded yet, recording each as it is committed.

    `run` takes the missing units and gives (name, files, facts) for each. Returns the files and facts
    of all units, in the order of `units`.
    """
    mark = read_mark(folder / layout.RUNNING)
    write_json(folder, layout.RUNNING, {**mark, "units": len(units)})
    done = manifest.read_units(folder)
    missing = [unit for name, unit in units.items() if name not in done]
    for name, files, facts in run(missing) if missing else ():
        manifest.write_unit(folder, name, files, facts)
        done[name] = (files, facts)
    return [record for name in units for record in done[name][0]], [done[name][1] for name in units]


@contextmanager
def _marked_running(stage: Stage, folder: Path) -> Iterator[None]:
    """Leave a mark with a heartbeat while the stage runs, and the error when it fails."""
    mark = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "kind": stage.kind,
        "label": stage.label,
    }
    running, failed = folder / layout.RUNNING, folder / layout.FAILED
    write_json(folder, layout.RUNNING, mark)
    failed.unlink(missing_ok=True)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            with suppress(FileNotFoundError):
                os.utime(running)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    except Exception as error:
        write_json(folder, layout.FAILED, {**mark, "error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        stop.set()
        heart.join()
        running.unlink(missing_ok=True)


def _sweep_leftovers(folder: Path) -> None:
    """Remove temporary files of a writer that was killed, once they are too old to be in use."""
    for path in folder.rglob("*.tmp"):
        if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
            path.unlink(missing_ok=True)


def read_mark(path: Path) -> dict[str, Any]:
    """What a running or failed stage left in its folder."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content
