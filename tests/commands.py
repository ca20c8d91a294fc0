"""Runs the command line for tests, and reads the tables of a store."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import traceback
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jobs.commands.main import main
from storage.database import open_store

_TIMEOUT_SECONDS = 600

CommandResult = subprocess.CompletedProcess[str]


def neuralign(*arguments: object, cwd: Path | None = None) -> CommandResult:
    """Run a command that starts no cluster, in this process, which has imported its modules."""
    argv = ["neuralign", *map(str, arguments)]
    threshold = gc.get_threshold()
    # text streams over bytes, as in a process
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        patch.object(sys, "argv", argv),
        patch("jobs.commands.main.supervise", return_value=None),
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit_request:
            code = exit_request.code
        except Exception:
            traceback.print_exc()
            code = 1
    gc.set_threshold(*threshold)
    assert isinstance(code, int)
    outputs = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return CommandResult(argv, code, *outputs)


def process(*arguments: object, cwd: Path | None = None) -> CommandResult:
    """Run a command in its own process, as users do."""
    return _run(["-c", "from jobs.commands.main import main; main()", *map(str, arguments)], cwd)


def python_m(module: str, *arguments: object) -> CommandResult:
    """Run `python -m MODULE`."""
    return _run(["-m", module, *map(str, arguments)], None)


def _run(arguments: list[str], cwd: Path | None) -> CommandResult:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        cwd=cwd,
        check=False,
    )


def rows(store: Path) -> dict[str, list[Any]]:
    """The sorted rows of a store's views, whichever run wrote them."""
    views = (
        "concepts sentences memberships sites activations experts similarity alignment human_pairs "
        "human_triplets human_dropped hierarchy_summary hierarchy_domains hierarchy_cuts "
        "hierarchy_merges control_experts reliability chance_counts chance expert_places "
        "expert_stability training"
    )
    with open_store(store) as connection:
        return {
            view: sorted(connection.sql(f"SELECT * FROM {view}").fetchall(), key=repr)  # noqa: S608
            for view in views.split()
        }
