"""The working folder of a submitted job: neuralign's code, the sweep file and the files that it names.

Models, corpora and the store are not uploaded, nor are files with absolute paths (`~` makes one); the
cluster must see them at the same paths.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from jobs.config.comparison import SparseAutoencoderBaseline, WordVectorsBaseline
from jobs.config.concepts import GeneratedSentences, HarvestedSentences, ProvidedSentences
from jobs.config.sweep import Sweep
from storage.errors import UserError
from storage.readers.concept_files import list_concept_files
from storage.readers.wordnet import list_files
from storage.store.fingerprint import fingerprint, hash_file
from storage.store.layout import FORMAT
from storage.store.paths import absolute_path

PACKAGES = ("alignment", "cluster", "jobs", "storage")
_MAX_BYTES = 200 << 20


def sweep_identity(sweep: Sweep) -> str:
    """Hash of a sweep before its models are looked up: its settings, the contents of the files that it
    names, and the path of the store."""
    contents = {
        name: [[str(file.relative_to(path)), hash_file(file)] for file in sorted(files)]
        for name, path, files in _named_files(sweep)
    }
    settings = sweep.model_dump(mode="json", exclude={"store"})
    return fingerprint([FORMAT, settings, contents, absolute_path(sweep.store_path)])


def files_to_upload(sweep: Sweep) -> dict[Path, int]:
    """The files that a cluster gets with a sweep, with their sizes in bytes.

    Raises:
        UserError: for files that are missing, not regular or too large, for links out of a folder that
            the sweep names, and for paths that are not valid elsewhere.
    """
    files = [
        file for name, _, files in _named_files(sweep) if not Path(name).is_absolute() for file in files
    ]
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    if total > _MAX_BYTES:
        raise UserError(
            f"{sweep.file}: the files that it names are {total / 1e6:,.0f} MB, too large to upload; put "
            "them on shared storage and give their absolute paths"
        )
    return sizes


def write_working_dir(sweep: Sweep, folder: Path) -> str:
    """Fill a folder with everything that a cluster needs; return the sweep file's path in it.

    Raises:
        UserError: as `files_to_upload` does.
    """
    files = files_to_upload(sweep)
    code = Path(__file__).parents[2]
    for name in PACKAGES:
        shutil.copytree(code / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    # relative to the common parent, so that ../concepts.csv resolves
    top = Path(os.path.commonpath([sweep.folder, *(file.parent for file in files)]))
    for file in files:
        target = folder / "sweep" / file.relative_to(top)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    copy = folder / "sweep" / sweep.folder.relative_to(top) / sweep.file.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    # the name and the paths must not depend on where the file is
    store, models = absolute_path(sweep.store_path), str(sweep.models_folder)
    settings = sweep.model_dump(mode="json", exclude_unset=True)
    settings |= {"name": sweep.name, "store": store, "models_in": models}
    content = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    copy.write_text(content, encoding="utf-8")
    return str(copy.relative_to(folder))


def _named_files(sweep: Sweep) -> Iterator[tuple[str, Path, list[Path]]]:
    """What a sweep names: the name in the file, its path, and the files that are read there."""
    names: dict[str, Callable[[Path], list[Path]]] = {}
    for config in sweep.concepts:
        names |= _names_of_set(sweep, config)
    for item in sweep.baselines:
        if isinstance(item, WordVectorsBaseline):
            names[item.path] = _file_itself
        elif isinstance(item, SparseAutoencoderBaseline):
            names[item.dictionary] = _file_itself
    for human in sweep.human:
        if human.path is not None:
            names[human.path] = list_files if human.kind == "wordnet" else _file_itself
        if human.items is not None:
            names[human.items] = _file_itself
    for name, list_folder in names.items():
        path = Path(os.path.normpath(sweep.folder / name))
        is_sent = not Path(name).is_absolute()
        if not is_sent and not path.exists():
            # it may exist on the cluster
            continue
        files = list_folder(path) if path.is_dir() else [path]
        for file in files:
            _check_regular(sweep, file)
            if is_sent and path.is_dir():
                _check_inside(sweep, file, path)
        yield name, path, files


def _names_of_set(
    sweep: Sweep, config: ProvidedSentences | HarvestedSentences | GeneratedSentences
) -> Iterator[tuple[str, Callable[[Path], list[Path]]]]:
    if isinstance(config, ProvidedSentences):
        yield config.source, list_concept_files
    elif isinstance(config.words, str):
        yield config.words, list_concept_files
    if isinstance(config, HarvestedSentences):
        corpora = [config.corpus] if isinstance(config.corpus, str) else config.corpus
        for name in corpora:
            if not Path(name).is_absolute():
                raise UserError(
                    f"{sweep.file}: concepts.corpus: {name}: is not uploaded to the cluster; give its "
                    "absolute path on the head node"
                )
    if isinstance(config, GeneratedSentences) and config.wordnet is not None:
        yield config.wordnet, list_files


def _file_itself(path: Path) -> list[Path]:
    return [path]


def _check_regular(sweep: Sweep, file: Path) -> None:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        problem = f"is a link to {file.readlink()}: {problem}" if file.is_symlink() else problem
        raise UserError(f"{sweep.file}: {file}: {problem}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UserError(f"{sweep.file}: {file}: is {kind}; give a file")


def _check_inside(sweep: Sweep, file: Path, folder: Path) -> None:
    target = file.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UserError(
            f"{sweep.file}: {file}: is outside the folder {folder}, at {target}, and is not uploaded; "
            "copy it into the folder, or give the folder's absolute path on the cluster"
        )
    if ".." in file.relative_to(folder).parts:
        raise UserError(f"{sweep.file}: {file}: has .. in its path; name files within {folder}")
