"""Resolves a model to exact weights and makes them available locally.

Every source becomes a folder with a configuration, a tokenizer and safetensors files. GGUF files are
converted, and random-init models initialized, once per machine, into a cache keyed by the identity.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from cluster.models import gguf, hub, random_init
from cluster.models.gguf_header import find_parts
from cluster.models.model_cache import build_in_cache, find_settings
from cluster.models.model_config import REMOTE_CODE, check_causal_lm, read_config, read_config_json
from cluster.models.model_files import check_folder, hash_encoder, hash_model
from storage.assets import ASSETS
from storage.errors import UserError
from storage.store.fingerprint import fingerprint, hash_file

RANDOM_INIT = "random-init"
"""Revision with randomly initialized weights; `random-init-2`, `random-init-3`, ... have other seeds."""
MAIN = "main"
_RANDOM_INIT = re.compile(rf"{RANDOM_INIT}(?:-([2-9]|[1-9]\d+))?", re.ASCII)


def random_init_number(revision: str | None) -> int | None:
    """The number, from 1, of a revision with randomly initialized weights; None for other revisions."""
    match = _RANDOM_INIT.fullmatch(revision or "")
    return int(match[1] or 1) if match else None


def is_random_init(revision: str | None) -> bool:
    """Whether a revision has randomly initialized weights."""
    return random_init_number(revision) is not None


@dataclass(frozen=True)
class Weights:
    """A model resolved at one revision; equal `identity` means identical weights."""

    model: str
    revision: str
    identity: str
    source: str  # "folder", "gguf" or "hub"
    location: str  # folder, file or hub id
    commit: str | None = None
    allowed: frozenset[str] = frozenset()

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code shipped with the model may run."""
        return REMOTE_CODE in self.allowed

    @property
    def is_random_init(self) -> bool:
        return is_random_init(self.revision)

    @property
    def label(self) -> str:
        return f"{self.model}@{self.revision}"


def resolve(model: str, revision: str, base_dir: Path, allowed: frozenset[str] = frozenset()) -> Weights:
    """Resolve a model: a known asset, a folder, a GGUF file, or a Hugging Face Hub id.

    Downloads only the configuration. Paths are relative to `base_dir`. `allowed` may contain
    PICKLED_WEIGHTS and REMOTE_CODE, both of which execute code by the model's author.

    Raises:
        UserError: if the model is not found, is not a causal language model, or needs something that is
            not allowed.
    """
    return replace(_resolve_source(model, revision, base_dir, allowed), allowed=allowed)


def _resolve_source(model: str, revision: str, base_dir: Path, allowed: frozenset[str]) -> Weights:
    path = _local_path(model, base_dir)
    is_asset = model in ASSETS and ASSETS[model].file.endswith(".gguf")
    if is_asset or (path.is_file() and path.suffix == ".gguf"):
        if revision != MAIN and not is_random_init(revision):
            raise _unknown_revision_error(model, revision, [])
        if is_asset:
            return _gguf_weights(model, revision, [ASSETS[model].path()], [ASSETS[model].sha256])
        parts = find_parts(path)
        return _gguf_weights(model, revision, parts, list(map(hash_file, parts)))
    if path.is_dir():
        if revision != MAIN and not is_random_init(revision):
            checkpoints = _checkpoint_names(path)
            if revision not in checkpoints:
                raise _unknown_revision_error(model, revision, checkpoints)
            path /= revision
        check_folder(model, path, allowed)
        identity = _identity(f"sha256:{hash_model(path, allowed)}", revision)
        return Weights(model, revision, identity, "folder", str(path))
    if model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1:
        raise UserError(f"model {model!r}: no such file or folder: {path}")
    return _resolve_on_hub(model, revision, allowed)


def _local_path(model: str, base_dir: Path) -> Path:
    # Unlike Path.resolve, it raises no error at a symbolic link to itself.
    return Path(os.path.realpath(base_dir / Path(model).expanduser()))


def local_revisions(model: str, base_dir: Path) -> list[str] | None:
    """Revisions of an asset, file or folder; None for a model on the hub."""
    path = base_dir / Path(model).expanduser()
    if model in ASSETS or not path.is_dir():
        return [MAIN] if model in ASSETS or path.exists() else None
    return [MAIN, *_checkpoint_names(path)]


def resolve_encoder(model: str, revision: str, base_dir: Path) -> Weights:
    """Resolve a sentence encoder: a known asset, a folder (hashed recursively), or a hub id.

    Raises UserError if it is not found.
    """
    path = _local_path(model, base_dir)
    if model in ASSETS:
        path = ASSETS[model].path().parent
    if path.is_dir():
        identity = _identity(f"sha256:{hash_encoder(path)}", revision)
        return Weights(model, revision, identity, "folder", str(path))
    commit = hub.find_commit(model, revision)
    return Weights(model, revision, f"commit:{commit}", "hub", model, commit)


def ensure_local(weights: Weights) -> Path:
    """Return the local folder of the weights, creating it if needed."""
    if not weights.is_random_init:
        return _ensure_source(weights)
    name = fingerprint({"random": weights.identity})
    return build_in_cache(name, partial(_initialize, weights))


def _initialize(weights: Weights, target: Path) -> None:
    number = random_init_number(weights.revision) or 1
    random_init.init_random_weights(
        _ensure_source(weights), target, weights.trust_remote_code, seed=number - 1
    )


def _ensure_source(weights: Weights) -> Path:
    """The folder of the model, of a random-init model that of the trained one."""
    if weights.source == "hub":
        return hub.download(weights.location, weights.commit or MAIN, weights.allowed)
    if weights.source == "folder":
        return Path(weights.location)
    return build_in_cache(_gguf_cache_name(weights), partial(_convert, weights))


def _convert(weights: Weights, target: Path) -> None:
    file = Path(weights.location)
    gguf.convert_gguf(file, target)
    if _gguf_identity(list(map(hash_file, find_parts(file)))) != _trained_identity(weights):
        raise UserError(f"{file}: changed while it was converted; run the command again")


def available_config(weights: Weights) -> dict[str, Any]:
    """Content of config.json, or empty if slow to obtain (custom code, or GGUF not yet converted)."""
    if weights.trust_remote_code:
        return {}
    if weights.source == "hub":
        return hub.fetch_config(weights.location, weights.commit or MAIN)
    folder = Path(weights.location) if weights.source == "folder" else converted_settings(weights)
    path = folder and folder / "config.json"
    return read_config_json(weights.model, path) if path and path.is_file() else {}


def converted_settings(weights: Weights) -> Path | None:
    """Folder with the configuration and tokenizer of a converted GGUF model, if it is in the cache."""
    return find_settings(_gguf_cache_name(weights))


def load_config(weights: Weights) -> Any:
    """Load the model's configuration without its weights. Raises UserError if it is unreadable."""
    if weights.source == "gguf":
        return gguf.read_gguf_config(Path(weights.location))
    return _load_config(weights.location, weights.commit, weights.trust_remote_code)


@cache
def _load_config(location: str, commit: str | None, trust_remote_code: bool) -> Any:
    return read_config(location, trust_remote_code, commit)


def _checkpoint_names(folder: Path) -> list[str]:
    return sorted(config.parent.name for config in folder.glob("*/config.json"))


def _unknown_revision_error(model: str, revision: str, checkpoints: list[str]) -> UserError:
    revisions = ", ".join([MAIN, RANDOM_INIT, *checkpoints])
    return UserError(f"model {model!r}: has no revision {revision!r}; this local model has {revisions}")


def _gguf_weights(model: str, revision: str, parts: list[Path], hashes: list[str]) -> Weights:
    identity = _identity(_gguf_identity(hashes), revision)
    return Weights(model, revision, identity, "gguf", str(parts[0]))


def _gguf_identity(hashes: list[str]) -> str:
    digest = hashes[0] if len(hashes) == 1 else fingerprint(hashes)
    return f"sha256:{digest}+conversion:{gguf.CONVERSION}"


def _identity(source_identity: str, revision: str) -> str:
    number = random_init_number(revision)
    return source_identity if number is None else f"{source_identity}+{RANDOM_INIT}:{number - 1}"


def _resolve_on_hub(model: str, revision: str, allowed: frozenset[str]) -> Weights:
    commit = hub.find_commit(model, MAIN if is_random_init(revision) else revision)
    check_causal_lm(model, hub.fetch_config(model, commit), allowed)
    return Weights(model, revision, _identity(f"commit:{commit}", revision), "hub", model, commit)


def _gguf_cache_name(weights: Weights) -> str:
    # The random-init control shares the conversion.
    return fingerprint({"gguf": _trained_identity(weights)})


def _trained_identity(weights: Weights) -> str:
    """The identity of the weights, of a random-init model that of the trained ones."""
    return weights.identity.removesuffix(_identity("", weights.revision))
