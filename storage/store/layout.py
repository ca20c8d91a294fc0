"""Paths within a store.

STORE/_STORE.json                            format of the store
STORE/<stage>/<label>-<fingerprint>/         one stage, complete or in progress
    _SUCCESS.json                            the manifest: files and provenance
    _DROPPED.json                            the raw activations were deleted on purpose
    _RUNNING.json, _FAILED.json              lease of a running stage, or the cause of its failure
    _INPUTS.json                             the contents of the inputs that its work units were made of
    _units/<unit>.json                       one finished work unit of the stage
    _hidden_states/                          of a pass that has not ended, which a rerun continues
STORE/_schedules/<name>/                     decisions about the slots of a schedule
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from storage.errors import StoreError
from storage.readers.strict_json import parse_json
from storage.store.commit import TEMPORARY_SUFFIX, encode_json, put_if_absent, remove_temporary_files
from storage.store.paths import file_size, is_remote, list_dir, read_bytes

FORMAT = 7
STAGE_KINDS = (
    "sentences",
    "activations",
    "experts",
    "controls",
    "top_tokens",
    "attributions",
    "steering",
    "similarity",
    "reliability",
    "pseudo_concepts",
    "alignment",
    "hierarchy",
    "report",
)
STORE_FILE = "_STORE.json"
SUCCESS = "_SUCCESS.json"
RUNNING = "_RUNNING.json"
FAILED = "_FAILED.json"
DROPPED = "_DROPPED.json"
INPUTS = "_INPUTS.json"
WORK_UNITS = "_units"
HIDDEN_STATES = "_hidden_states"
SCHEDULES = "_schedules"

_MAX_LABEL = 60
_MAX_NAME = 150


def create_store(root: Path) -> Path:
    """Create a store at `root`, or open the existing one."""
    if file_size(root / STORE_FILE) is None:
        # an interrupted creation leaves a temporary file
        has_other_files = any(path.suffix != TEMPORARY_SUFFIX for path in list_dir(root))
        if has_other_files or (not is_remote(root) and root.is_file()):
            raise StoreError(f"{root}: exists but is not a neuralign store; name an empty or new folder")
        try:
            put_if_absent(root, STORE_FILE, encode_json({"format": FORMAT}))
        except OSError as error:
            raise StoreError(f"{root}: cannot create a store: {error.strerror}") from error
    remove_temporary_files(root)
    return check_store(root)


def check_store(root: Path) -> Path:
    """Return `root`; raise StoreError if it is not a store of this version."""
    path = root / STORE_FILE
    if file_size(path) is None:
        if not list_dir(root):
            raise StoreError(f"{root}: no such store; `neuralign run FILE` creates one")
        raise StoreError(f"{root}: is not a neuralign store ({STORE_FILE} is missing)")
    try:
        store_format = parse_json(read_bytes(path))["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    if store_format != FORMAT:
        raise StoreError(
            f"{root}: was made by another version of neuralign (store format {store_format}, "
            f"this one reads {FORMAT}); name another store"
        )
    return root


def slug(name: str) -> str:
    """A name made safe for use in a file name; not unique."""
    safe = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")
    return safe[:_MAX_LABEL] or "unnamed"


def escape_name(name: str) -> str:
    """A name as one path component, unique on every file system.

    Characters other than lower-case letters, digits and `._-` become %XX, as in URLs, so names never
    differ only in case. A name that is too long becomes its hash.
    """
    safe = "".join(
        chr(byte) if re.match(rb"[a-z0-9._-]", bytes([byte])) else f"%{byte:02X}"
        for byte in name.encode(errors="surrogatepass")
    )
    if safe.startswith("."):
        safe = f"%2E{safe[1:]}"
    if len(safe) > _MAX_NAME:
        safe = f"~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:32]}"
    return safe


def stage_folder(root: Path, kind: str, label: str, fingerprint: str) -> Path:
    """Folder of one stage."""
    return root / kind / f"{slug(label)}-{fingerprint}"
