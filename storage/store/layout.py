"""Where things are in a store, and the store's own mark.

STORE/_STORE.json                            format of the store
STORE/<stage>/<label>-<fingerprint>/         one stage, done or under way
    _SUCCESS.json                            the manifest: what is there, and what made it
    _DROPPED.json                            its raw activations were deleted on purpose
    _RUNNING.json, _FAILED.json              a stage under way, or what stopped it
    _units/<unit>.json                       one finished unit of the stage
STORE/_schedules/<name>/                     what was decided of each slot of a schedule
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from storage.errors import StoreError
from storage.store.commit import TEMPORARY_SUFFIX, as_json, put_if_absent, sweep_temporary
from storage.store.paths import entries, is_remote, read_bytes, size

FORMAT = 5
KINDS = (
    "sentences",
    "activations",
    "experts",
    "controls",
    "attributions",
    "steering",
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
DROPPED = "_DROPPED.json"
UNITS = "_units"
SCHEDULES = "_schedules"

_LONGEST_LABEL = 60
_LONGEST_NAME = 150


def create(root: Path) -> Path:
    """Make a store at `root`, or open the one that is there."""
    if size(root / MARK) is None:
        if any(map(_is_of_the_user, entries(root))) or (not is_remote(root) and root.is_file()):
            raise StoreError(f"{root}: is there but is no neuralign store; name an empty or new folder")
        try:
            put_if_absent(root, MARK, as_json({"format": FORMAT}))
        except OSError as error:
            raise StoreError(f"{root}: no store can be made there: {error.strerror}") from error
    sweep_temporary(root)
    return check(root)


def _is_of_the_user(path: Path) -> bool:
    # a store whose making was stopped holds its mark's temporary file
    return path.suffix != TEMPORARY_SUFFIX


def check(root: Path) -> Path:
    """Return `root` when it is a store of this version, else raise StoreError."""
    mark = root / MARK
    if size(mark) is None:
        if not entries(root):
            raise StoreError(f"{root}: no such store; `neuralign run FILE` makes one")
        raise StoreError(f"{root}: is no neuralign store (it has no {MARK})")
    try:
        found = json.loads(read_bytes(mark))["format"]
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


def escaped(name: str) -> str:
    """A name as one part of a path, different for different names, on every file system.

    What is not a lower-case letter, a digit or one of `._-` becomes %XX, as in a URL, so that two names
    never differ in case alone; a name that is too long becomes its hash.
    """
    safe = "".join(
        chr(byte) if re.match(rb"[a-z0-9._-]", bytes([byte])) else f"%{byte:02X}"
        for byte in name.encode(errors="surrogatepass")
    )
    if safe.startswith("."):
        safe = f"%2E{safe[1:]}"
    if len(safe) > _LONGEST_NAME:
        safe = f"~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:32]}"
    return safe


def stage_folder(root: Path, kind: str, label: str, fingerprint: str) -> Path:
    """Folder of one stage."""
    return root / kind / f"{slug(label)}-{fingerprint}"
