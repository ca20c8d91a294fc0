"""What of a store can be deleted without losing an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.database import is_activations
from storage.store import layout, manifest
from storage.store.lease import is_held
from storage.store.manifest import Manifest
from storage.store.paths import files_below, remove, size

SCORED = "its activations were scored by every stage that reads them"
SUPERSEDED = "no newest report of a sweep is made of it"


@dataclass(frozen=True)
class Garbage:
    """Something that can be deleted: a whole stage, or only its raw activations."""

    stage: Manifest
    whole: bool
    bytes: int

    @property
    def why(self) -> str:
        return SUPERSEDED if self.whole else SCORED

    def delete(self) -> None:
        """Delete it. A stage's manifest goes first, so that it is never done without its files."""
        if not self.whole:
            manifest.drop(self.stage, is_activations, SCORED)
            return
        remove(self.stage.folder / layout.SUCCESS)
        for path in files_below(self.stage.folder):
            remove(path)


def find_garbage(root: Path) -> Iterator[Garbage]:
    """What can be deleted: stages that the newest report of none of the store's sweeps is made of, and
    raw activations of models that were scored. Stages that are under way, and what they read, stay.

    Raises StoreError when `root` is no store of this version.
    """
    layout.check(root)
    done = {each.folder.name: each for kind in layout.KINDS for each in manifest.done(root, kind)}
    under_way = [
        folder
        for kind in layout.KINDS
        for folder in manifest.stages(root, kind)
        if folder.name not in done or is_held(folder / layout.RUNNING)
    ]
    newest: dict[str, Manifest] = {}
    for each in done.values():
        if each.kind == "report":
            before = newest.get(each.label)
            newest[each.label] = each if before is None else max(before, each, key=_age)
    needed: set[str] = set()
    for each in newest.values():
        needed |= manifest.made_of(each, done)
    for each in done.values():
        if newest and not under_way and each.folder.name not in needed:
            yield Garbage(each, True, sum(record.bytes for record in each.kept))
        elif each.kind == "activations" and not under_way and _is_scored(each, done):
            left = sum(
                record.bytes
                for record in each.files
                if is_activations(record) and size(each.folder / record.path) is not None
            )
            if left:
                yield Garbage(each, False, left)


def _age(stage: Manifest) -> tuple[str, str]:
    return stage.finished, stage.fingerprint


def _is_scored(stage: Manifest, done: dict[str, Manifest]) -> bool:
    readers = [each for each in done.values() if stage.folder.name in each.inputs.values()]
    return any(each.kind == "experts" for each in readers)
