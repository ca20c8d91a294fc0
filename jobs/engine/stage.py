"""Stages: what every step of a sweep has in common.

A stage is a pure function of its parameters and of its inputs' fingerprints. Its own fingerprint
names its folder, so a finished stage is never computed twice and two configurations never mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.engine.progress import say
from storage.errors import NeuralignError
from storage.store import layout, manifest
from storage.store.commit import FileRecord, sweep_temporary, write_json
from storage.store.fingerprint import fingerprint
from storage.store.lease import forget_gone, held, note
from storage.store.manifest import Manifest
from storage.store.paths import remove


class Resource(Enum):
    """What a stage works with. Stages on one lane run one after another, those on different lanes side
    by side; where the cluster has no GPUs, that lane is the CPUs'."""

    HERE = auto()  # this process
    CPUS = auto()  # tasks on the cluster's CPUs
    GPUS = auto()  # actors that hold models


@dataclass(frozen=True)
class Stage:
    """One step for one configuration.

    `params` and `inputs` make the fingerprint; `run(stage, store)` does the work, writing into the
    stage's folder, and returns the files that it committed. `set_name` tells sentences of one concept
    set from those of another in messages, where a sweep has several.
    """

    kind: str
    label: str
    params: Mapping[str, Any]
    run: Callable[[Stage, Path], Outcome]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    lane: Resource = Resource.HERE
    set_name: str = ""

    @cached_property
    def fingerprint(self) -> str:
        inputs = {name: stage.fingerprint for name, stage in self.inputs.items()}
        return fingerprint([self.kind, layout.FORMAT, dict(self.params), inputs])

    @property
    def name(self) -> str:
        """What messages call it."""
        told = "" if self.label.endswith(self.of_set) else f" ({self.of_set})"
        return f"{self.kind} {self.label}{told}"

    @cached_property
    def of_set(self) -> str:
        """The `set_name` of the sentences that it is made of."""
        first = next(iter(self.inputs.values()), None)
        return self.set_name if first is None else first.of_set

    @cached_property
    def concept_set(self) -> str:
        """The label of the sentences that it is made of."""
        first = next(iter(self.inputs.values()), None)
        return str(self.params.get("concept_set", "")) if first is None else first.concept_set

    def folder(self, store: Path) -> Path:
        return layout.stage_folder(store, self.kind, self.label, self.fingerprint)

    def ancestors(self) -> Iterator[Stage]:
        """The stage and all that it is made of."""
        yield self
        for each in self.inputs.values():
            yield from each.ancestors()

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
    """Run a stage unless it is done; return whether it was run.

    One run at a time works on a stage: another waits, and finds it done. What the stage reads and was
    dropped (see `storage.store.manifest.drop`) is made again first.
    """
    if stage.is_done(store):
        # of a run that was killed right after the manifest
        forget_gone(stage.folder(store) / layout.RUNNING)
        return False
    for each in stage.inputs.values():
        if each.result(store).dropped:
            _make(each, store, again=True)
    return _make(stage, store)


def _make(stage: Stage, store: Path, again: bool = False) -> bool:
    folder = stage.folder(store)
    facts = {"kind": stage.kind, "label": stage.label, "concept_set": stage.concept_set}

    def waiting(holder: Mapping[str, Any]) -> None:
        say(f"{stage.name}: waiting for another run, process {holder['pid']} on {holder['host']}")

    with held(folder / layout.RUNNING, facts, waiting) as lease:
        if stage.is_done(store) and not (again and stage.result(store).dropped):
            return False
        _clean(folder)
        started = time.monotonic()
        try:
            outcome = stage.run(stage, store)
        except Exception as error:
            # a disk that is full takes no word of it either
            with suppress(NeuralignError):
                told = {**facts, "error": f"{type(error).__name__}: {error}"}
                write_json(folder, layout.FAILED, told)
            raise
        lease.check()
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
    note(folder / layout.RUNNING, units=len(units))
    done = manifest.read_units(folder)
    missing = [unit for name, unit in units.items() if name not in done]
    for name, files, facts in run(missing) if missing else ():
        manifest.write_unit(folder, name, files, facts)
        done[name] = (files, facts)
    return [record for name in units for record in done[name][0]], [done[name][1] for name in units]


def _clean(folder: Path) -> None:
    """Make a stage's folder ready for a run: without a manifest or an error that no longer tell the
    truth, and without the temporary files of writers that were killed: this run alone works here now."""
    for name in (layout.SUCCESS, layout.FAILED):
        remove(folder / name)
    sweep_temporary(folder, "**/*")
