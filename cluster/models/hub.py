"""Lists revisions of models on the Hugging Face Hub, and downloads the files that are loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any

from cluster.models.checkpoint import checkpoint_files
from cluster.models.model_config import read_config_json
from cluster.models.model_files import (
    PICKLED_WEIGHTS,
    check_no_adapter,
    settings_patterns,
)
from storage.errors import UserError
from storage.readers.strict_json import parse_json

ALL = "all"
_WILDCARDS = "*?["
_configs: dict[str, dict[str, Any]] = {}


@cache
def list_revisions(model: str) -> dict[str, str]:
    """Commits of a model's branches and tags, by name; offline, only the downloaded ones.

    Raises UserError if the model is not available.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        refs = HfApi().list_repo_refs(model)
    except HFValidationError as error:
        raise UserError(f"model {model!r}: is not a folder, a .gguf file or a hub id") from error
    except RepositoryNotFoundError as error:
        raise unavailable_error(model, error) from error
    except OfflineModeIsEnabled:
        return _cached_revisions(model)
    except Exception as error:
        # Any network failure: models downloaded before remain usable.
        revisions = _cached_revisions(model)
        if not revisions:
            raise unavailable_error(model, error) from error
        return revisions
    return {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}


def expand_revisions(model: str, revisions: Sequence[str], local: Sequence[str] | None) -> list[str]:
    """Expand `all` and patterns such as `step*` to the names of branches and tags, in natural order.

    `local` lists the revisions of a model that is not on the hub. Raises UserError for a pattern without
    a match.
    """
    expanded: dict[str, None] = {}
    for revision in revisions:
        if revision != ALL and not any(wildcard in revision for wildcard in _WILDCARDS):
            expanded[revision] = None
            continue
        available = sorted(list_revisions(model) if local is None else local, key=_natural_key)
        matches = [name for name in available if revision == ALL or fnmatchcase(name, revision)]
        if not matches:
            listed = ", ".join(available[:20]) or "none"
            raise UserError(f"model {model!r}: no revision matches {revision!r}; it has {listed}")
        expanded.update(dict.fromkeys(matches))
    return list(expanded)


def is_offline() -> bool:
    """Whether nothing is downloaded from the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def find_commit(model: str, revision: str) -> str:
    """Commit of a branch, a tag, or a full or abbreviated hash. Raises UserError if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    if commit := list_revisions(model).get(revision):
        return commit
    try:
        # Works offline from the cache; the folder is named after the commit.
        return Path(snapshot_download(model, revision=revision, allow_patterns=["config.json"])).name
    except RevisionNotFoundError as error:
        raise UserError(f"model {model!r}: has no revision {revision!r} on the hub") from error
    except (HfHubHTTPError, OSError) as error:
        raise unavailable_error(model, error) from error


def download_settings(model: str, commit: str, allowed: frozenset[str]) -> Path:
    """Download a model's configuration and tokenizer, of its main folder only; returns the local folder.

    Offline, it contains what was downloaded before. Raises UserError for a model with an adapter.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # A pattern also matches names in subfolders, which hold other formats and checkpoints.
    patterns = settings_patterns(allowed)
    try:
        path = snapshot_download(
            model, revision=commit, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except (HfHubHTTPError, OSError) as error:
        raise unavailable_error(model, error) from error
    folder = Path(path)
    check_no_adapter(model, folder)
    return folder


def download(model: str, commit: str, allowed: frozenset[str]) -> Path:
    """Download the files of a model that are loaded; returns the local folder.

    Raises UserError if it has no safetensors files and others are not allowed, or has an adapter.
    """
    from huggingface_hub import snapshot_download

    fetch = partial(snapshot_download, model, revision=commit)
    folder = download_settings(model, commit, allowed)
    fetch(allow_patterns=[*checkpoint_files(folder), *_encoder_settings(folder)])
    if not any(folder.glob("*.safetensors")):
        if PICKLED_WEIGHTS not in allowed:
            raise UserError(
                f"model {model!r}: has no .safetensors file on the hub; pickled weights can execute "
                f"code; if you trust their author, add `allow: [{PICKLED_WEIGHTS}]` to the model"
            )
        fetch(allow_patterns=["pytorch_model*.bin"])
    return folder


def _encoder_settings(folder: Path) -> list[str]:
    """Names of the settings of a sentence encoder's modules; none for other models."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return []
    try:
        paths = [str(module["path"]) for module in parse_json(modules.read_bytes())]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{modules}: cannot be read: {error}; download it again") from error
    return [f"{path}/config.json" for path in paths if path]


def fetch_config(model: str, commit: str) -> dict[str, Any]:
    """Content of a model's config.json. Raises UserError if it has none.

    Fetched once per model, at the first commit requested: all revisions share one architecture.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    if model not in _configs:
        try:
            path = hf_hub_download(model, "config.json", revision=commit)
        except EntryNotFoundError as error:
            raise UserError(f"model {model!r}: has no config.json on the hub") from error
        except (HfHubHTTPError, OSError) as error:
            raise unavailable_error(model, error) from error
        _configs[model] = read_config_json(model, Path(path))
    return _configs[model]


def unavailable_error(model: str, error: Exception) -> UserError:
    """Error for a model that is neither local nor available on the hub."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return UserError(
        f"model {model!r}: is not a local folder or .gguf file, and is not available on the Hugging "
        f"Face Hub: {reason}"
    )


def _cached_revisions(model: str) -> dict[str, str]:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")
    refs = folder / "refs"
    return {
        str(path.relative_to(refs)): path.read_text().strip()
        for path in sorted(refs.rglob("*"))
        if path.is_file()
    }


def _natural_key(name: str) -> list[Any]:
    """Sort key that puts step2 before step10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
