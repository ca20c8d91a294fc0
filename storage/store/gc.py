"""Find the parts of a store that can be deleted without losing a result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.database import is_activation_file
from storage.store import layout, manifest
from storage.store.lease import is_held
from storage.store.manifest import Manifest
from storage.store.paths import file_size, remove_file, walk_files

SCORED = "every stage that reads these activations has scored them"
SUPERSEDED = "not used by any sweep's latest report"


@dataclass(frozen=True)
class Garbage:
    """Deletable files: an entire stage, or only its raw activations."""

    stage: Manifest
    is_entire_stage: bool
    bytes: int

    @property
    def reason(self) -> str:
        return SUPERSEDED if self.is_entire_stage else SCORED

    def delete(self) -> None:
        """Delete the files. The manifest goes first: a stage must not be complete without its files."""
        if not self.is_entire_stage:
            manifest.drop_files(self.stage, is_activation_file, SCORED)
            return
        remove_file(self.stage.folder / layout.SUCCESS)
        for path in walk_files(self.stage.folder):
            remove_file(path)


def find_garbage(root: Path) -> Iterator[Garbage]:
    """Stages that no sweep's latest report depends on, and raw activations that have been scored.

    Nothing while a stage is in progress, because the stage may need its inputs.

    Raises:
        StoreError: if `root` is not a store of this version.
    """
    layout.check_store(root)
    stages = {stage.folder.name: stage for stage in manifest.completed(root)}
    if any(
        folder.name not in stages or is_held(folder / layout.RUNNING)
        for folder in manifest.stage_folders(root)
    ):
        return
    by_age = sorted(stages.values(), key=lambda stage: (stage.finished, stage.fingerprint))
    reports = {stage.label: stage for stage in by_age if stage.kind == "report"}
    needed = {name for report in reports.values() for name in manifest.ancestors(report, stages)}
    scored = {name for stage in by_age if stage.kind == "experts" for name in stage.inputs.values()}
    for stage in stages.values():
        if reports and stage.folder.name not in needed:
            yield Garbage(stage, True, sum(record.bytes for record in stage.present_records))
        elif stage.kind == "activations" and stage.folder.name in scored:
            size = sum(
                record.bytes
                for record in stage.files
                if is_activation_file(record) and file_size(stage.folder / record.path) is not None
            )
            if size:
                yield Garbage(stage, False, size)
