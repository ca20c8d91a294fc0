"""Stages: the steps of a sweep, each identified by a fingerprint.

A stage is a pure function of its parameters and of its inputs' fingerprints. Its own fingerprint is part
of its folder's name, so a finished stage is never recomputed and configurations never mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.engine.progress import print_line
from storage.errors import NeuralignError
from storage.store import layout, manifest
from storage.store.commit import FileRecord, remove_temporary_files, write_json
from storage.store.fingerprint import fingerprint
from storage.store.lease import acquire_lease, remove_stale_lease, update_lease
from storage.store.manifest import Manifest, Origin
from storage.store.paths import remove_file


class Resource(Enum):
    """Where a stage runs. Stages that share a resource run one at a time, others concurrently; on a
    cluster without GPUs, GPU stages use the CPUs."""

    DRIVER = auto()  # this process
    CPUS = auto()  # tasks on the cluster's CPUs
    GPUS = auto()  # actors that hold models


@dataclass(frozen=True)
class Stage:
    """One step of a sweep for one configuration.

    `params` and `inputs` determine the fingerprint; `run(stage, store)` writes into the stage's folder
    and returns the files it committed. `set_name` labels the concept set in messages when a sweep has
    several.
    """

    kind: str
    label: str
    params: Mapping[str, Any]
    run: Callable[[Stage, Path], StageOutput]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    resource: Resource = Resource.DRIVER
    set_name: str = ""

    @cached_property
    def fingerprint(self) -> str:
        inputs = {name: stage.fingerprint for name, stage in self.inputs.items()}
        return fingerprint([self.kind, layout.FORMAT, dict(self.params), inputs])

    @property
    def name(self) -> str:
        """Display name, for messages."""
        suffix = "" if self.label.endswith(self.concept_set_name) else f" ({self.concept_set_name})"
        return f"{self.kind} {self.label}{suffix}"

    @cached_property
    def concept_set_name(self) -> str:
        """`set_name` of the sentences at the root of this stage's inputs."""
        return next((parent.concept_set_name for parent in self.inputs.values()), self.set_name)

    @cached_property
    def concept_set(self) -> str:
        """Label of the sentences at the root of this stage's inputs."""
        label = str(self.params.get("concept_set", ""))
        return next((parent.concept_set for parent in self.inputs.values()), label)

    def folder(self, store: Path) -> Path:
        return layout.stage_folder(store, self.kind, self.label, self.fingerprint)

    def ancestors(self) -> Iterator[Stage]:
        """This stage and, recursively, its inputs."""
        yield self
        for parent in self.inputs.values():
            yield from parent.ancestors()

    def is_done(self, store: Path) -> bool:
        """Whether the stage is complete, and was made of what its inputs contain now."""
        record = manifest.read(self.folder(store))
        if record is None or record.missing_files():
            return False
        return manifest.is_current(record.sources, self.read_origins(store))

    def read_origins(self, store: Path) -> dict[str, Origin]:
        """The origins of the complete inputs."""
        folders = {name: parent.folder(store) for name, parent in self.inputs.items()}
        return manifest.read_origins(folders)

    def read_manifest(self, store: Path) -> Manifest:
        """The manifest of a finished stage. Raises NeuralignError if the stage has not finished."""
        record = manifest.read(self.folder(store))
        if record is None:
            raise NeuralignError(f"{self.name} has not finished")
        return record

    def read_table(self, store: Path, name: str) -> pa.Table:
        """A table of a finished stage: the file `name`, or all files in the folder `name`.

        Raises:
            StoreError: if a file is missing or damaged.
        """
        return self.read_manifest(store).read_table(name)


@dataclass(frozen=True)
class StageOutput:
    """Files that a stage committed, and notes for the user."""

    files: list[FileRecord]
    notes: list[str] = field(default_factory=list)


def run_if_needed(stage: Stage, store: Path) -> bool:
    """Run a stage unless it is done; return whether it was run.

    A lease admits one process at a time; others wait and then find the stage done. Inputs whose files
    were dropped (see `storage.store.manifest.drop_files`) are recomputed first.
    """
    if find_done(stage, store):
        return False
    for parent in stage.inputs.values():
        if parent.read_manifest(store).dropped:
            _run_locked(parent, store, force=True)
    return _run_locked(stage, store)


def find_done(stage: Stage, store: Path) -> bool:
    """Whether a stage is done. Removes the lease of a run that was killed after it had completed it."""
    is_done = stage.is_done(store)
    if is_done:
        remove_stale_lease(stage.folder(store) / layout.RUNNING)
    return is_done


def _run_locked(stage: Stage, store: Path, force: bool = False) -> bool:
    folder = stage.folder(store)
    identity = {"kind": stage.kind, "label": stage.label, "concept_set": stage.concept_set}

    def report_wait(holder: Mapping[str, Any]) -> None:
        process = f"process {holder['pid']} on {holder['host']}" if holder["host"] else "unknown process"
        print_line(f"{stage.name}: waiting for another run, {process}")

    with acquire_lease(folder / layout.RUNNING, identity, report_wait) as lease:
        is_done = stage.is_done(store)
        restored = stage.read_manifest(store) if is_done and force else None
        if is_done and not (restored and restored.dropped):
            return False
        origins = stage.read_origins(store)
        manifest.begin_work_units(folder, origins)
        # an outdated manifest or error, and temporary files of killed writers
        for name in (layout.SUCCESS, layout.FAILED):
            remove_file(folder / name)
        remove_temporary_files(folder, "**/*")
        started = time.monotonic()
        try:
            output = stage.run(stage, store)
        except Exception as error:
            # on a full disk, recording the error fails too; raise the original one
            with suppress(NeuralignError):
                failure = {**identity, "error": f"{type(error).__name__}: {error}"}
                write_json(folder, layout.FAILED, failure)
            raise
        lease.check()
        completed = Manifest(
            folder=folder,
            kind=stage.kind,
            label=stage.label,
            fingerprint=stage.fingerprint,
            params=dict(stage.params),
            inputs={name: parent.folder(store).name for name, parent in stage.inputs.items()},
            files=output.files,
            seconds=time.monotonic() - started,
            notes=output.notes,
            sources={name: origin.contents for name, origin in origins.items()},
        )
        if restored is not None:
            # what was made of the deleted files stays current
            completed = replace(completed, sources=restored.sources, contents=restored.contents)
        completed.commit()
    return True


def run_missing_units(
    folder: Path,
    units: Mapping[str, Any],
    run: Callable[[Iterable[Any]], Iterator[tuple[str, list[FileRecord], dict[str, Any]]]],
) -> tuple[list[FileRecord], list[dict[str, Any]]]:
    """Run the work units of a stage that are not recorded yet, recording each as it is committed.

    `run` takes the missing units and yields (name, files, facts) for each. Returns the files and facts
    of all units, in the order of `units`.
    """
    update_lease(folder / layout.RUNNING, units=len(units))
    done = manifest.read_work_units(folder)
    missing = [unit for name, unit in units.items() if name not in done]
    for name, files, facts in run(missing) if missing else ():
        manifest.write_work_unit(folder, name, files, facts)
        done[name] = (files, facts)
    return [record for name in units for record in done[name][0]], [done[name][1] for name in units]
