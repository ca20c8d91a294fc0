"""A command that starts Ray on this machine may be ended by it; a supervisor starts it again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

_ROOT = Path(__file__).parent.parent
_SECONDS = 60

_COMMAND = """
import os, sys, time
from jobs.commands.supervisor import LOST, ORDERLY, supervise
supervisor = supervise()
print("started", flush=True)
match sys.argv[1]:
    case "succeed":
        supervisor.report(ORDERLY)
    case "fail":
        supervisor.report(ORDERLY)
        sys.exit(3)
    case "lose":
        supervisor.report(LOST if supervisor.restarts_left else ORDERLY)
        sys.exit(1)
    case "abort":
        os.abort()
    case "end":
        os._exit(1)
    case "kill":
        os.kill(os.getpid(), 9)
    case "sleep":
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            supervisor.report(ORDERLY)
            sys.exit(130)
"""


def _start(what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, what],
        env={"PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("what", "starts", "code", "message"),
    [
        ("succeed", 1, 0, ""),
        ("fail", 1, 3, ""),
        ("lose", 3, 1, ""),
        ("abort", 3, 1, "was killed by signal 6 (memory may have run out); run it again to resume"),
        ("end", 3, 1, "was ended by Ray with exit code 1 (memory may have run out); run it again"),
        ("kill", 1, 1, "was killed by signal 9 (memory may have run out); run it again to resume"),
    ],
)
def test_a_command_is_started_again_if_it_died_with_ray(
    what: str, starts: int, code: int, message: str
) -> None:
    """Ray ended a run without a word when its GCS server or raylet had been killed."""
    process = _start(what)
    out, err = process.communicate(timeout=_SECONDS)
    assert (out.count("started"), process.returncode) == (starts, code)
    assert err.count("starting it again to go on") == (0 if what == "lose" else starts - 1)
    assert message in err


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_a_stopped_command_stops(sent: signal.Signals, code: int) -> None:
    """The command would go on in its child process, or be started again."""
    process = _start("sleep")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    (child,) = psutil.Process(process.pid).children()
    time.sleep(0.5)
    process.send_signal(sent)
    process.communicate(timeout=_SECONDS)
    assert process.returncode == code
    psutil.wait_procs([child], timeout=_SECONDS)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
