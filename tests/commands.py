"""The command line as tests call it, and what a store then holds."""

from __future__ import annotations

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

_SECONDS = 600

Done = subprocess.CompletedProcess[str]


def neuralign(*arguments: object, cwd: Path | None = None) -> Done:
    """Run a command in this process, which has loaded already what the command needs: for those that
    start no cluster."""
    words = ["neuralign", *map(str, arguments)]
    # streams of text over bytes, as a process has them
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        patch.object(sys, "argv", words),
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except Exception:
            traceback.print_exc()
            code = 1
    assert isinstance(code, int)
    written = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return Done(words, code, *written)


def process(*arguments: object, cwd: Path | None = None) -> Done:
    """Run a command in a process of its own, as users do."""
    return _run(["-c", "from jobs.commands.main import main; main()", *map(str, arguments)], cwd)


def python_m(module: str, *arguments: object) -> Done:
    """Run `python -m MODULE`."""
    return _run(["-m", module, *map(str, arguments)], None)


def _run(words: list[str], cwd: Path | None) -> Done:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        cwd=cwd,
        check=False,
    )


def rows(store: Path) -> dict[str, list[Any]]:
    """Everything that a store's views hold, whatever made it and whenever."""
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
