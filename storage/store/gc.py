"""Find the parts of a store that can be deleted without losing a result, and delete them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.database import is_activation_file
from storage.store import layout, manifest
from storage.store.lease import find_held, hold_free_lease
from storage.store.manifest import Manifest
from storage.store.paths import file_size, file_version, remove_empty_folders, remove_file, walk_files

STOPPED = "hidden states of a stopped run; without them a rerun begins at layer 0"
SCORED = "every stage that reads these activations has scored them"
SUPERSEDED = "not used by any sweep's latest report"

_Versions = Mapping[str, object]
"""The version of each stage's manifest (see `file_version`), by the name of the stage's folder."""


@dataclass(frozen=True)
class Garbage:
    """Deletable files: an entire stage, or only its raw activations.

    `versions` are those of the store's manifests when this was found.
    """

    root: Path
    stage: Manifest
    is_entire_stage: bool
    bytes: int
    versions: _Versions

    @property
    def folder(self) -> Path:
        return self.stage.folder

    @property
    def reason(self) -> str:
        return SUPERSEDED if self.is_entire_stage else SCORED

    def delete(self) -> bool:
        """Delete the files; returns whether they were deleted. They are kept if a stage was started or
        completed since they were found, because it may need them.

        The manifest goes first: a stage must not be complete without its files.
        """
        folder, facts = self.stage.folder, {"kind": self.stage.kind, "label": self.stage.label}
        with hold_free_lease(folder / layout.RUNNING, facts) as is_free:
            if not is_free or not self._is_still_garbage():
                return False
            if not self.is_entire_stage:
                manifest.drop_files(self.stage, is_activation_file, SCORED)
                return True
            remove_file(folder / layout.SUCCESS)
            for path in walk_files(folder):
                if path != folder / layout.RUNNING:
                    remove_file(path)
        remove_empty_folders(folder)
        return True

    def _is_still_garbage(self) -> bool:
        versions = _read_versions(self.root, ignored=self.stage.folder)
        own = file_version(self.stage.folder / layout.SUCCESS)
        if versions is None or own != self.versions[self.stage.folder.name]:
            return False
        # stages that were deleted meanwhile need nothing
        return versions.items() <= self.versions.items()


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states in a stage's folder that no run uses now."""

    folder: Path
    bytes: int

    @property
    def reason(self) -> str:
        return STOPPED

    def delete(self) -> bool:
        """Delete the files; returns whether they were deleted. They are kept if a run has continued."""
        facts = {"kind": self.folder.parent.name, "label": self.folder.name}
        with hold_free_lease(self.folder / layout.RUNNING, facts) as is_free:
            if is_free:
                shutil.rmtree(self.folder / layout.HIDDEN_STATES, ignore_errors=True)
        return is_free


def find_hidden_states(root: Path) -> Iterator[HiddenStates]:
    """Hidden states in stages, complete or not, that no process works on.

    Raises:
        StoreError: if `root` is not a store of this version.
    """
    layout.check_store(root)
    files = {
        folder: found
        for folder in manifest.stage_folders(root)
        if (found := walk_files(folder / layout.HIDDEN_STATES))
    }
    held = find_held(folder / layout.RUNNING for folder in files)
    for folder, found in files.items():
        if folder / layout.RUNNING not in held:
            yield HiddenStates(folder, sum(file_size(path) or 0 for path in found))


def find_garbage(root: Path) -> Iterator[Garbage]:
    """Stages that no sweep's latest report depends on, and raw activations that have been scored.

    Nothing while a stage is in progress, because the stage may need its inputs.

    Raises:
        StoreError: if `root` is not a store of this version.
    """
    layout.check_store(root)
    versions = _read_versions(root)
    if versions is None:
        return
    stages = {stage.folder.name: stage for stage in manifest.completed(root)}
    by_age = sorted(stages.values(), key=lambda stage: (stage.finished, stage.fingerprint))
    reports = {stage.label: stage for stage in by_age if stage.kind == "report"}
    needed = {name for report in reports.values() for name in manifest.ancestors(report, stages)}
    scored = {name for stage in by_age if stage.kind == "experts" for name in stage.inputs.values()}
    for stage in stages.values():
        if reports and stage.folder.name not in needed:
            size = sum(record.bytes for record in stage.present_records)
            yield Garbage(root, stage, True, size, versions)
        elif stage.kind == "activations" and stage.folder.name in scored:
            size = sum(
                record.bytes
                for record in stage.files
                if is_activation_file(record) and file_size(stage.folder / record.path) is not None
            )
            if size:
                yield Garbage(root, stage, False, size, versions)


def _read_versions(root: Path, ignored: Path | None = None) -> _Versions | None:
    """Versions of the manifests of all stages but `ignored`; None if one of these is in progress."""
    folders = [folder for folder in manifest.stage_folders(root) if folder != ignored]
    if not all(file_version(folder / layout.SUCCESS) for folder in folders):
        return None
    if find_held(folder / layout.RUNNING for folder in folders):
        return None
    # last, because stages may start while leases are watched
    folders = [folder for folder in manifest.stage_folders(root) if folder != ignored]
    versions = {folder.name: file_version(folder / layout.SUCCESS) for folder in folders}
    return versions if all(versions.values()) else None
