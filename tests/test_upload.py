"""What is sent to a cluster with a submitted sweep, and how it is started there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from jobs.actions import submit, working_dir
from jobs.actions.working_dir import files_to_upload, sweep_identity, write_working_dir
from jobs.config.loader import read_sweep
from storage.errors import UserError
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process

_SECRET = "hunter2"  # noqa: S105


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of concepts as in ml-selfcond, with files that are nobody else's business."""
    folder = tmp_path / "study" / "concepts"
    for name in ("cat", "dog"):
        path = folder / "animal" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [f"A {name} of {number} years." for number in range(6)]
        path.write_text(json.dumps({"sentences": {"positive": texts, "negative": ["No.", "Never."]}}))
    (folder / "concept_list.csv").write_text("group,concept\nanimal,cat\nanimal,dog\n")
    (folder / ".env").write_text(_SECRET)
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text(_SECRET)
    (folder / "animal/notes.json").write_text(_SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/credentials").write_text(_SECRET)
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder)
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    return folder


def _write_sweep(folder: Path) -> Path:
    file = tiny.write_sweep(folder.parent)
    file.write_text(file.read_text().replace("concepts: concepts.csv", "concepts: concepts"))
    return file


def _sent(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_the_files_that_are_read_are_sent(folder: Path, tmp_path: Path) -> None:
    """The folder was sent whole, with `.env`, `.git/config` and what its links point to."""
    sweep = read_sweep(_write_sweep(folder))
    write_working_dir(sweep, tmp_path / "job")
    assert _sent(tmp_path / "job/sweep") == {
        *("concepts/concept_list.csv", "concepts/animal/cat.json", "concepts/animal/dog.json"),
        *("human.csv", "sweep.yaml"),
    }
    contents = (path.read_bytes() for path in (tmp_path / "job/sweep").rglob("*") if path.is_file())
    assert not any(_SECRET.encode() in content for content in contents)
    # nor any file that someone left in a package
    assert not any(part.startswith(".") for name in _sent(tmp_path / "job") for part in name.split("/"))
    identity = sweep_identity(sweep)
    (folder / "animal/notes.json").write_text("other")
    assert sweep_identity(sweep) == identity
    (folder / "animal/cat.json").write_text("other")
    assert sweep_identity(sweep) != identity


def test_the_size_limit_counts_what_links_point_to(folder: Path, tmp_path: Path) -> None:
    """Links were followed when files were copied, but not when they were counted."""
    big = folder / "big.json"
    big.write_bytes(bytes(1 << 20))
    (folder / "animal/cat.json").unlink()
    (folder / "animal/cat.json").symlink_to(big)
    with patch.object(working_dir, "_MAX_BYTES", 1 << 19), pytest.raises(UserError, match="too large"):
        write_working_dir(read_sweep(_write_sweep(folder)), tmp_path / "job")
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    "problem", ["outside", "parent", "detour", "absolute", "dangling", "loop", "fifo", "folder"]
)
def test_what_cannot_be_sent_is_refused(folder: Path, tmp_path: Path, problem: str) -> None:
    """Links out of the folder were followed; the others hung, or ended in a traceback."""
    cat, outside = folder / "animal/cat.json", tmp_path / "outside/secret.json"
    outside.write_text(cat.read_text())
    groups = {
        "parent": "../../outside",
        "detour": f"../{folder.name}/animal",
        "absolute": str(outside.parent),
    }
    if group := groups.get(problem):
        (folder / "concept_list.csv").write_text(
            f"group,concept\n{group},{'cat' if problem == 'detour' else 'secret'}\nanimal,dog\n"
        )
    else:
        cat.unlink()
    if problem == "outside":
        cat.symlink_to(outside)
    elif problem == "dangling":
        cat.symlink_to(tmp_path / "nowhere")
    elif problem == "loop":
        cat.symlink_to(cat)
    elif problem == "fifo":
        os.mkfifo(cat)
    elif problem == "folder":
        cat.mkdir()
    messages = {
        "detour": "has .. in its path",
        "dangling": "is a link to .*: no such file",
        "loop": "Too many levels of symbolic links",
        "fifo": "is not a regular file",
        "folder": "is a folder; give a file",
    }
    with pytest.raises(UserError, match=messages.get(problem, "is outside the folder")) as caught:
        write_working_dir(read_sweep(_write_sweep(folder)), tmp_path / "job")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "job").exists()


def test_a_fifo_or_a_dangling_link_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    """Reading a fifo waits forever."""
    file = tiny.write_sweep(tmp_path)
    concepts = tmp_path / "concepts.csv"
    for target, message in (
        (None, "is not a regular file"),
        ("nowhere", "no such file"),
        ("concepts.csv", "symbolic links"),
    ):
        concepts.unlink()
        if target is None:
            os.mkfifo(concepts)
        else:
            concepts.symlink_to(target)
        with pytest.raises(UserError, match=message):
            sweep_identity(read_sweep(file))


def test_the_files_are_listed_with_their_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Users could not see what leaves their machine."""
    sweep = read_sweep(_write_sweep(folder))
    (folder.parent / "human.csv").rename(folder.parent / "ratings.csv")
    (folder.parent / "human.csv").symlink_to("ratings.csv")
    submit._list_uploads(sweep)
    lines = capsys.readouterr().err.splitlines()
    size = (folder / "animal/cat.json").stat().st_size
    assert f"  uploads concepts/animal/cat.json, {size} bytes" in lines
    assert any(line.startswith("  uploads human.csv -> /") for line in lines)
    with patch.object(submit, "_MAX_FILES_LISTED", 1):
        submit._list_uploads(sweep)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("  uploads ")
    rest = list(files_to_upload(sweep).values())[1:]
    assert last == f"  and 3 more files, {sum(rest):,} bytes"


@pytest.mark.parametrize(
    "name", ["x'; touch owned; '.yaml", "$(touch owned).yaml", "a b&touch owned&.yaml", "-c x\n.yaml"]
)
def test_the_name_of_a_sweep_file_is_not_run_by_the_shell(tmp_path: Path, name: str) -> None:
    """The name was put between quotes, and could close them."""
    file = tiny.write_sweep(tmp_path)
    file = file.rename(file.with_name(name))
    file.write_text("name: study\n" + file.read_text())
    commands: list[str] = []

    class Server:
        address = "http://127.0.0.1:1"

        def jobs(self) -> list[Any]:
            return []

        def submit(self, job_id: str, entrypoint: str, *_: Any) -> tuple[str, bool]:
            commands.append(entrypoint)
            return job_id, True

    submit.submit_sweep(Server(), read_sweep(file))  # type: ignore[arg-type]
    (command,) = commands
    words = f"import sys; print(sys.argv[1:] == {[f'sweep/{name}']!r})"
    prefix = "python -m jobs.sweep "
    assert command.startswith(prefix)
    line = f"{sys.executable} -c {shlex.quote(words)} {command.removeprefix(prefix)}"
    # as Ray's job server does
    shell = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shell.stdout == "True\n"
    assert not (tmp_path / "owned").exists()


def test_a_home_folder_means_the_same_to_run_and_to_submit(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`submit` read ~/concepts.csv; `run` looked for a folder named ~, and wrote results into one."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    file = tiny.write_sweep(tmp_path / "study", model=str(tiny_model), extra="store: ~/results\n")
    (tmp_path / "study/concepts.csv").rename(home / "concepts.csv")
    file.write_text(file.read_text().replace("concepts: concepts.csv", "concepts: ~/concepts.csv"))
    with in_one_process():
        done = neuralign("plan", file)
    assert done.returncode == 0, done.stderr
    sweep = read_sweep(file)
    assert sweep.store_path == home / "results"
    # an absolute path is that of the cluster's file
    assert home / "concepts.csv" not in files_to_upload(sweep)
    name = write_working_dir(sweep, tmp_path / "job")
    monkeypatch.setenv("HOME", "/root")
    copy = read_sweep(tmp_path / "job" / name)
    assert copy.concepts == sweep.concepts
    assert copy.store_path == sweep.store_path
