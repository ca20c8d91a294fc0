"""The working folder of a submitted job: neuralign's code, the sweep file and the files that it names.

Models, corpora and the store are not uploaded; the cluster must see them at the same paths.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jobs.config.comparison import SparseAutoencoderBaseline, WordVectorsBaseline
from jobs.config.concepts import GeneratedSentences, HarvestedSentences, ProvidedSentences
from jobs.config.sweep import Sweep
from storage.errors import UserError
from storage.store.fingerprint import fingerprint, hash_file
from storage.store.layout import FORMAT
from storage.store.paths import absolute_path

PACKAGES = ("alignment", "cluster", "jobs", "storage")
_MAX_BYTES = 200 << 20


def sweep_identity(sweep: Sweep) -> str:
    """Hash of a sweep before its models are looked up: its settings, the contents of the files that it
    names, and the path of the store."""
    contents = {
        name: [[str(file.relative_to(path)), hash_file(file)] for file in _list_files(path)]
        for name, path in _named_files(sweep)
    }
    settings = sweep.model_dump(mode="json", exclude={"store"})
    return fingerprint([FORMAT, settings, contents, absolute_path(sweep.store_path)])


def write_working_dir(sweep: Sweep, folder: Path) -> str:
    """Fill a folder with everything that a cluster needs; return the sweep file's path in it.

    Raises:
        UserError: for files that are missing or too large, and for paths that are not valid elsewhere.
    """
    code = Path(__file__).parents[2]
    for name in PACKAGES:
        shutil.copytree(code / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    paths = [path for name, path in _named_files(sweep) if not Path(name).is_absolute()]
    _check_size(sweep, paths)
    # relative to the common parent, so that ../concepts.csv resolves
    top = Path(os.path.commonpath([sweep.folder, *(path.parent for path in paths)]))
    for path in paths:
        target = folder / "sweep" / path.relative_to(top)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy: Any = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, target)
    file = folder / "sweep" / sweep.folder.relative_to(top) / sweep.file.name
    file.parent.mkdir(parents=True, exist_ok=True)
    # the name and the paths must not depend on where the file is
    store, models = absolute_path(sweep.store_path), str(sweep.models_folder)
    settings = sweep.model_dump(mode="json", exclude_unset=True)
    settings |= {"name": sweep.name, "store": store, "models_in": models}
    content = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    file.write_text(content, encoding="utf-8")
    return str(file.relative_to(folder))


def _named_files(sweep: Sweep) -> Iterator[tuple[str, Path]]:
    """Files and folders that a sweep names: the name in the file, and the path."""
    names = [name for config in sweep.concepts for name in _files_of_set(sweep, config)]
    names += [item.path for item in sweep.baselines if isinstance(item, WordVectorsBaseline)]
    names += [item.dictionary for item in sweep.baselines if isinstance(item, SparseAutoencoderBaseline)]
    names += [name for human in sweep.human for name in (human.path, human.items) if name is not None]
    for name in dict.fromkeys(names):
        path = sweep.folder / Path(name).expanduser()
        if Path(name).is_absolute() and not path.exists():
            # it may exist on the cluster
            continue
        if not path.exists():
            raise UserError(f"{sweep.file}: {path}: no such file")
        yield name, Path(os.path.normpath(path))


def _files_of_set(
    sweep: Sweep, config: ProvidedSentences | HarvestedSentences | GeneratedSentences
) -> Iterator[str]:
    if isinstance(config, ProvidedSentences):
        yield config.source
    elif isinstance(config.words, str):
        yield config.words
    if isinstance(config, HarvestedSentences):
        corpora = [config.corpus] if isinstance(config.corpus, str) else config.corpus
        for name in corpora:
            if not Path(name).is_absolute():
                raise UserError(
                    f"{sweep.file}: concepts.corpus: {name}: is not uploaded to the cluster; give its "
                    "absolute path on the head node"
                )
    if isinstance(config, GeneratedSentences) and config.wordnet is not None:
        yield config.wordnet


def _check_size(sweep: Sweep, paths: list[Path]) -> None:
    total = sum(file.stat().st_size for path in paths for file in _list_files(path))
    if total > _MAX_BYTES:
        raise UserError(
            f"{sweep.file}: the files that it names are {total / 1e6:,.0f} MB, too large to upload; put "
            "them on shared storage and give their absolute paths"
        )


def _list_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
