"""The demo on a cluster, run only by `make test-submitted` because it takes as long as three demos;
`make test` submits a tiny sweep instead (tests/test_cluster.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import yaml

from storage.database import open_store
from storage.store import manifest
from storage.tables import QUERY_VIEWS, TABLES
from tests.ray_head import ray_head

_ROOT = Path(__file__).parent.parent
_SECONDS = 1800


def _clone(folder: Path) -> Path:
    """A clone of the repository, with the demo's store next to it."""
    for name in ("alignment", "cluster", "jobs", "storage", "examples"):
        shutil.copytree(_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "examples/demo.yaml"
    sweep = yaml.safe_load(file.read_text()) | {"store": str(folder.parent / f"{folder.name}-store")}
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return folder


def _run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_submitted_demo_gives_the_rows_of_a_local_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real model could give other numbers in another process or folder or with other threads."""
    cli = [sys.executable, "-c", "from jobs.commands.main import main; main()"]
    ray = str(Path(sys.executable).parent / "ray")
    _run([*cli, "run", "examples/demo.yaml"], _clone(tmp_path / "local"))
    with ray_head() as head:
        commands = {
            "neuralign submit": [*cli, "submit", "--address", head.address, "--follow"],
            "ray job submit": [
                *(ray, "job", "submit", "--address", head.address, "--working-dir", "."),
                *("--", "python", "-m", "jobs.sweep"),
            ],
        }
        for name, command in commands.items():
            clone = _clone(tmp_path / name.split()[0])
            printed = _run([*command, "examples/demo.yaml"], clone)
            assert "men: Spearman's rho, " in printed
            counts = _compare_stores(tmp_path / "local-store", tmp_path / f"{clone.name}-store")
            with capsys.disabled():
                print(f"\n{name}: equal to the local run in all {counts} rows")


def _compare_stores(local: Path, submitted: Path) -> str:
    """Compare all tables and views row by row, and activations by checksum; describe the row counts."""
    files = [
        {
            (stage.folder.name, record.path, record.sha256): record.rows
            for stage in manifest.completed(store, "activations")
            for record in stage.files
        }
        for store in (local, submitted)
    ]
    assert files[0] == files[1]
    compared = 0
    with open_store(local) as ours, open_store(submitted) as theirs, duckdb.connect() as both:
        for view in (*TABLES, *(query_view.name for query_view in QUERY_VIEWS)):
            for name, connection in (("ours", ours), ("theirs", theirs)):
                both.register(name, connection.sql(f"FROM {view}").to_arrow_table())
            for a, b in (("ours", "theirs"), ("theirs", "ours")):
                query = f"SELECT count(*) FROM (FROM {a} EXCEPT ALL FROM {b})"  # noqa: S608
                assert both.sql(query).fetchall() == [(0,)], view
            ((rows,),) = both.sql("SELECT count(*) FROM ours").fetchall()
            compared += rows
    assert compared > 1_000_000
    return f"{compared:,} in tables and {sum(files[0].values()):,} in activation files"
