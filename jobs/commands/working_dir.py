"""What a sweep needs on a cluster, in one folder: neuralign's own code, the sweep file and the small
files that it names. Models, corpora and the store stay where they are: the cluster must see them there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jobs.config import Brought, Generate, Harvest, Latents, Sweep, WordVectors
from storage.errors import UserError
from storage.store.fingerprint import fingerprint, hash_file
from storage.store.layout import FORMAT
from storage.store.paths import absolute

PACKAGES = ("alignment", "cluster", "jobs", "storage")
_MOST_BYTES = 200 << 20
_NOT_CODE = shutil.ignore_patterns("__pycache__")


def identity(sweep: Sweep) -> str:
    """What stands for a sweep before its models are looked up: what its file asks for, what is in the
    files that it names, and where the results go."""
    named = {name: _content(path) for name, path in _named_files(sweep)}
    asked = sweep.model_dump(mode="json", exclude={"store"})
    return fingerprint([FORMAT, asked, named, absolute(sweep.store_path)])


def make_bundle(sweep: Sweep, folder: Path) -> str:
    """Fill a folder with all that a cluster is given of a sweep; the sweep file's path in it.

    Raises UserError for files that are missing or too big to be sent, and for paths that mean nothing
    elsewhere.
    """
    code = Path(__file__).parents[2]
    for name in PACKAGES:
        shutil.copytree(code / name, folder / name, ignore=_NOT_CODE)
    named = [path for name, path in _named_files(sweep) if not Path(name).is_absolute()]
    _check_size(sweep, named)
    # the tree from the folder that all have in common, so that ../concepts.csv is found too
    top = Path(os.path.commonpath([sweep.folder, *(path.parent for path in named)]))
    for path in named:
        target = folder / "sweep" / path.relative_to(top)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy: Any = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, target)
    file = folder / "sweep" / sweep.folder.relative_to(top) / sweep.file.name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        yaml.safe_dump(_settled(sweep), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    return str(file.relative_to(folder))


def _settled(sweep: Sweep) -> dict[str, Any]:
    """The sweep as its file asks for it, but with a name and places that mean the same elsewhere."""
    asked: dict[str, Any] = sweep.model_dump(mode="json", exclude_unset=True)
    return asked | {
        "name": sweep.name,
        "store": absolute(sweep.store_path),
        "models_in": str(sweep.models_folder),
    }


def _named_files(sweep: Sweep) -> Iterator[tuple[str, Path]]:
    """The files and folders that a sweep names, as they are named and where they are."""
    names = [name for wanted in sweep.concepts for name in _files_of_set(sweep, wanted)]
    names += [each.path for each in sweep.baselines if isinstance(each, WordVectors)]
    names += [each.dictionary for each in sweep.baselines if isinstance(each, Latents)]
    for human in sweep.human:
        names += [name for name in (human.path, human.items) if name is not None]
    for name in dict.fromkeys(names):
        path = sweep.folder / Path(name).expanduser()
        if Path(name).is_absolute() and not path.exists():
            # the cluster may see it there
            continue
        if not path.exists():
            raise UserError(f"{sweep.file}: {path}: no such file")
        yield name, Path(os.path.normpath(path))


def _files_of_set(sweep: Sweep, wanted: Brought | Harvest | Generate) -> Iterator[str]:
    if isinstance(wanted, Brought):
        yield wanted.source
    elif isinstance(wanted.words, str):
        yield wanted.words
    if isinstance(wanted, Harvest):
        corpora = [wanted.corpus] if isinstance(wanted.corpus, str) else wanted.corpus
        for name in corpora:
            if not Path(name).is_absolute():
                raise UserError(
                    f"{sweep.file}: concepts.corpus: {name}: is not sent to a cluster; give the "
                    "absolute path by which its head sees it"
                )
    if isinstance(wanted, Generate) and wanted.wordnet is not None:
        yield wanted.wordnet


def _check_size(sweep: Sweep, paths: list[Path]) -> None:
    total = sum(file.stat().st_size for path in paths for file in _files(path))
    if total > _MOST_BYTES:
        raise UserError(
            f"{sweep.file}: the files that it names have {total / 1e6:,.0f} MB, too many to be sent; "
            "put them where the cluster sees them and give their absolute paths"
        )


def _content(path: Path) -> list[list[str]]:
    return [[str(file.relative_to(path)), hash_file(file)] for file in _files(path)]


def _files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
