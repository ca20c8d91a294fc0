"""Models on the Hugging Face hub: which revisions there are, with one request a model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from storage.errors import UserError

ALL = "all"
_PATTERN_MARKS = "*?["


@cache
def commits(model: str) -> dict[str, str]:
    """The commit of each branch and tag of a model. Without a network, of those downloaded before.

    Raises UserError where the hub does not give the model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        refs = HfApi().list_repo_refs(model)
    except HFValidationError as error:
        raise UserError(f"model {model!r}: is no folder, no .gguf file and no hub id") from error
    except RepositoryNotFoundError as error:
        raise not_given(model, error) from error
    except OfflineModeIsEnabled:
        return _downloaded(model)
    except Exception as error:
        # whatever the network does; what was downloaded before can be used without it
        found = _downloaded(model)
        if not found:
            raise not_given(model, error) from error
        return found
    return {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}


def expand(model: str, revisions: Sequence[str], local: Sequence[str] | None) -> list[str]:
    """The revisions that are asked for, with `all` and patterns such as `step*` written out: the names
    of branches and tags that match, their numbers in order.

    `local` are the revisions of a model that is not on the hub. Raises UserError for a pattern that
    matches none.
    """
    found: dict[str, None] = {}
    for asked in revisions:
        if asked != ALL and not any(mark in asked for mark in _PATTERN_MARKS):
            found[asked] = None
            continue
        known = sorted(commits(model) if local is None else local, key=_in_numbers)
        matching = [name for name in known if asked == ALL or fnmatchcase(name, asked)]
        if not matching:
            has = ", ".join(known[:20]) or "none"
            raise UserError(f"model {model!r}: no revision matches {asked!r}; it has {has}")
        found.update(dict.fromkeys(matching))
    return list(found)


def config_of(model: str, commit: str) -> dict[str, Any]:
    """The content of a model's config.json, at the commit that is asked for first: the revisions of a
    model are of one architecture. Raises UserError where there is none."""
    return _read_config(model, _first_commit.setdefault(model, commit))


_first_commit: dict[str, str] = {}


@cache
def _read_config(model: str, commit: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        path = hf_hub_download(model, "config.json", revision=commit)
    except EntryNotFoundError as error:
        raise UserError(f"model {model!r}: the hub has no config.json of it") from error
    except (HfHubHTTPError, OSError) as error:
        raise not_given(model, error) from error
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


def not_given(model: str, error: Exception) -> UserError:
    """What to tell of a model that the hub does not give."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return UserError(
        f"model {model!r}: is no folder or .gguf file here, and the Hugging Face hub does not give it: "
        f"{reason}"
    )


def _downloaded(model: str) -> dict[str, str]:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")
    refs = folder / "refs"
    return {
        str(path.relative_to(refs)): path.read_text().strip()
        for path in sorted(refs.rglob("*"))
        if path.is_file()
    }


def _in_numbers(name: str) -> list[Any]:
    """A key by which step2 comes before step10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
