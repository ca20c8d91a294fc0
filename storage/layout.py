"""Where things are in a store, and the store's own mark.

STORE/_STORE.json                            format of the store
STORE/<stage>/<label>-<fingerprint>/         one stage, done or under way
    _SUCCESS.json                            the manifest: what is there, and what made it
    _RUNNING.json, _FAILED.json              a stage under way, or what stopped it
    _units/<unit>.json                       one finished unit of a stage under way
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from storage.commit import write_json
from storage.errors import StoreError

FORMAT = 2
KINDS = (
    "sentences",
    "activations",
    "experts",
    "controls",
    "similarity",
    "reliability",
    "alignment",
    "hierarchy",
    "report",
)
MARK = "_STORE.json"
SUCCESS = "_SUCCESS.json"
RUNNING = "_RUNNING.json"
FAILED = "_FAILED.json"
UNITS = "_units"

_LONGEST_LABEL = 60


def create(root: Path) -> Path:
    """Make a store at `root`, or open the one that is there."""
    if not (root / MARK).is_file():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StoreError(f"{root}: is there but is no neuralign store; name an empty or new folder")
        try:
            write_json(root, MARK, {"format": FORMAT})
        except OSError as error:
            raise StoreError(f"{root}: no store can be made there: {error.strerror}") from error
    return check(root)


def check(root: Path) -> Path:
    """Return `root` when it is a store of this version, else raise StoreError."""
    if not root.is_dir():
        raise StoreError(f"{root}: no such store; `neuralign run FILE` makes one")
    mark = root / MARK
    if not mark.is_file():
        raise StoreError(f"{root}: is no neuralign store (it has no {MARK})")
    try:
        found = json.loads(mark.read_text())["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{mark}: cannot be read: {error}") from error
    if found != FORMAT:
        raise StoreError(
            f"{root}: was made by another version of neuralign (store format {found}, "
            f"this one reads {FORMAT}); name another store"
        )
    return root


def slug(name: str) -> str:
    """A name that is safe as part of a file name; two names may share one."""
    safe = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")
    return safe[:_LONGEST_LABEL] or "unnamed"


def stage_folder(root: Path, kind: str, label: str, fingerprint: str) -> Path:
    """Folder of one stage."""
    return root / kind / f"{slug(label)}-{fingerprint}"
