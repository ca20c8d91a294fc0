"""On a cluster started as users start one, a submitted sweep must run once, give the numbers of a local
run and return its exit code; each slot must be one job even if schedulers are killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.runtime.job_server import JobServer
from jobs.actions.schedule import Cron, JobServerSubmitter, Scheduler
from jobs.actions.submit import submit_sweep
from jobs.config.loader import read_sweep
from storage.errors import UserError
from storage.store import layout
from storage.store.schedule_slots import ScheduleSlots
from tests import tiny
from tests.commands import neuralign, process, rows
from tests.faults import in_one_process
from tests.ray_head import Head, ray_head

_SECONDS = 600
_MAX_SECONDS_TO_FAIL = 60
"""On a busy machine; Ray itself would retry for minutes or forever."""

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as started:
        yield started


@pytest.fixture(scope="module")
def address(head: Head) -> str:
    return head.address


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, head: Head) -> dict[str, Any]:
    """One sweep run in this process, submitted with `neuralign submit`, and with `ray job submit`."""
    folder, address = tmp_path_factory.mktemp("studies"), head.address
    shutil.copytree(tiny_model, folder / "model")
    # a clone of the repository with a user's sweep file in it
    clone = folder / "clone"
    for name in ("alignment", "cluster", "jobs", "storage"):
        shutil.copytree(_ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "results").mkdir()
    (clone / "results/huge.bin").write_bytes(bytes(1 << 20))
    shutil.copy(_ROOT / ".gitignore", clone)
    extra = f"resamples: 100\nname: study\nmodels_in: {folder}\n"
    files = {name: tiny.write_sweep(folder / name, extra=extra) for name in ("here", "submitted")}
    files["ray"] = tiny.write_sweep(clone, extra=extra)
    for name, file in files.items():
        text = file.read_text().replace("[max, concept, context]", "[max]")
        file.write_text(f"{text}store: {folder / 'results' / name}\n")
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "RAY_AUTH_MODE": "token"}
    cli = [sys.executable, "-c", "from jobs.commands.main import main; main()"]
    ray = str(Path(sys.executable).parent / "ray")
    commands = {
        "submitted": [*cli, "submit", "sweep.yaml", "--address", address, "--follow"],
        "ray": [
            *(ray, "job", "submit", "--address", address, "--working-dir", "."),
            *("--", "python", "-m", "jobs.sweep", "sweep.yaml"),
        ],
    }
    # Ray's own client uses the token only if the environment says so
    started = {
        name: subprocess.Popen(
            command,
            cwd=files[name].parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, command in commands.items()
    }
    with in_one_process():
        here = neuralign("run", files["here"])
    assert here.returncode == 0, here.stderr
    output = {name: job.communicate(timeout=_SECONDS) for name, job in started.items()}
    for name, job in started.items():
        assert job.returncode == 0, (name, output[name])
    return {"files": files, "folder": folder, "output": output}


def test_a_submitted_sweep_gives_the_rows_of_a_local_run(studies: dict[str, Any]) -> None:
    results = studies["folder"] / "results"
    here = rows(results / "here")
    assert len(here["experts"]) > 10
    assert rows(results / "submitted") == here
    assert rows(results / "ray") == here
    for name in ("submitted", "ray"):
        output = "".join(studies["output"][name])
        assert "activations model@main: done" in output
        assert "mine: Spearman's rho, 12 pairs of 6 concepts" in output


_COUNTS = """
import time, ray
from cluster.runtime.metrics import progress_counter
ray.init(log_to_driver=False)
count = progress_counter("counted by itself", "sentences", total=100, already=10)
for _ in range(5):
    time.sleep(1)
    count(1)
time.sleep(600)
"""


def test_progress_is_exported_to_prometheus(head: Head, tmp_path: Path) -> None:
    """`left` must fall as `done_total` rises."""
    (tmp_path / "counts.py").write_text(_COUNTS)
    server = JobServer(head.address)
    server.submit("counts", "python counts.py", tmp_path, {}, lambda _: False)
    values: dict[str, float] = {}
    deadline = time.monotonic() + _SECONDS
    # Ray sends each metric separately; between two steps of the job they are consistent
    while not _are_consistent(values) and time.monotonic() < deadline:
        time.sleep(0.3)
        for line in _metrics(head):
            if line.startswith("ray_neuralign_") and 'stage="counted by itself"' in line:
                values[line.split("{")[0]] = float(line.split()[-1])
    server._client.stop_job("counts")
    assert _are_consistent(values), values
    assert values["ray_neuralign_done_total"] > 0
    assert 0 < values["ray_neuralign_per_second"] < 3


def _metrics(head: Head) -> list[str]:
    """The lines of all metrics endpoints that respond."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        for group in json.loads(head.metrics.read_text()):
            for target in group["targets"]:
                with contextlib.suppress(OSError, HTTPException):
                    url = f"http://{target}/metrics"
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        lines += answer.read().decode().splitlines()
    return lines


def _are_consistent(values: dict[str, float]) -> bool:
    return len(values) == 3 and values["ray_neuralign_done_total"] + values["ray_neuralign_left"] == 90


def test_submitting_the_same_sweep_again_returns_the_same_job(
    studies: dict[str, Any], address: str
) -> None:
    """Also concurrently or after it has finished; but not if its store is gone."""
    server = JobServer(address)
    sweep = read_sweep(studies["files"]["submitted"])
    (first,) = (job.submission_id for job in server.jobs() if job.submission_id.startswith("neuralign-"))
    assert submit_sweep(server, sweep) == (first, False)
    other = sweep.model_copy(update={"store": str(studies["folder"] / "results/other")})
    names: list[tuple[str, bool]] = []
    threads = [
        threading.Thread(target=lambda: names.append(submit_sweep(JobServer(address), other)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_SECONDS)
    assert len({name for name, _ in names}) == 1
    assert sorted(new for _, new in names) == [False, False, False, True]
    # a different sweep of that name into that store, while it runs
    with pytest.raises(UserError, match="another sweep named 'study' is writing to"):
        submit_sweep(server, other.model_copy(update={"seed": 1}))
    server._client.stop_job(names[0][0])


def test_a_failed_job_returns_its_exit_code_and_can_be_submitted_again(
    address: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    file = tiny.write_sweep(tmp_path, extra=f"models_in: {tmp_path / 'empty'}\nname: lost\n")
    file.write_text(file.read_text().replace("id: model", "id: ./model"))
    names = []
    for attempt in ("", "-2"):
        done = process("submit", file, "--address", address, "--follow")
        assert done.returncode == 2, done.stderr
        assert "no such file or folder" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
        names += [
            job.submission_id
            for job in JobServer(address).jobs()
            if job.submission_id.startswith("neuralign-lost-")
        ]
        assert any(name.endswith(attempt) for name in names)
    assert len(set(names)) == 2
    logs = process("logs", names[0], "--address", address)
    assert "no such file or folder" in logs.stdout
    assert process("logs", "nonsense", "--address", address).returncode == 2


_KILLED_TICK = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from cluster.runtime.job_server import JobServer
from jobs.config.loader import read_sweep
from jobs.actions.schedule import Cron, JobServerSubmitter, Scheduler
from storage.store import layout
from storage.store.schedule_slots import ScheduleSlots
file, address, since, now = sys.argv[1:]
sweep = read_sweep(Path(file))
slots = ScheduleSlots(layout.create_store(sweep.store_path), sweep.name)
slots.mark_done = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
server = JobServerSubmitter(Path(file), sweep, JobServer(address))
scheduler = Scheduler(slots, Cron("* * * * *"), "slot", server)
scheduler.tick(datetime.fromisoformat(since), datetime.fromisoformat(now))
"""


@pytest.mark.filterwarnings("ignore:ssl=None")  # Ray's client passes it to aiohttp
def test_three_slots_are_three_jobs_if_the_scheduler_is_killed_before_recording_them(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The jobs fail at once, because their model does not exist; a slot counts whatever its outcome."""
    file = tiny.write_sweep(tmp_path, model="./nowhere")
    server = JobServer(address)
    since = datetime(2026, 6, 1, tzinfo=UTC)
    sweep = read_sweep(file)
    recorded = ScheduleSlots(layout.create_store(sweep.store_path), sweep.name)
    scheduler = Scheduler(recorded, Cron("* * * * *"), "slot", JobServerSubmitter(file, sweep, server))

    def killed_tick(now: datetime) -> int:
        words = [str(file), address, since.isoformat(), now.isoformat()]
        return subprocess.run(
            [sys.executable, "-c", _KILLED_TICK, *words],
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            timeout=_SECONDS,
            check=False,
        ).returncode

    def slots() -> list[str]:
        return sorted(
            job.submission_id for job in server.jobs() if job.submission_id.startswith("slot-")
        )

    for minute in (1, 2, 3):
        now = since + timedelta(minutes=minute)
        assert killed_tick(now) == -signal.SIGKILL
        assert len(slots()) == minute
        scheduler.tick(since, now)
        assert "already submitted" in capsys.readouterr().err
        assert server.follow(slots()[-1], lambda _: None) == 2
    assert slots() == [f"slot-20260601T000{minute}Z" for minute in (1, 2, 3)]


def test_the_doctor_reports_problems_and_fixes(address: str, tmp_path: Path, tiny_model: Path) -> None:
    file = tiny.write_sweep(tmp_path, model=str(tiny_model))
    output = process("doctor", file, "--address", address).stdout
    for line in ("ok    packages: all installed", "ok    job server: ", "ok    sweep ", "ok    store: "):
        assert line in output
    done = process("doctor", file.parent / "none.yaml", "--address", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "FAIL  job server: " in done.stdout
    assert "connection failed" in done.stdout
    assert "none.yaml: no such file" in done.stdout


@contextlib.contextmanager
def _answers(content: bytes, code: int = 200) -> Iterator[str]:
    """A server that sends the same response to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_an_address_that_is_not_a_compatible_head_fails_quickly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.runtime.job_server._TIMEOUT_SECONDS", 3.0)
    started = time.monotonic()
    versions = b'{"ray_version": "2.9.0", "data": {"pythonVersion": "3.9.1"}}'
    message = r"runs Ray 2.9.0 and Python 3.9, but this machine runs Ray \d"
    with _answers(versions) as other, pytest.raises(UserError, match=message):
        JobServer(other)
    with _answers(b"<html>") as page, pytest.raises(UserError, match="is not a Ray job server"):
        JobServer(page)
    with _answers(b"", 403) as guarded, pytest.raises(UserError, match="requires a token"):
        JobServer(guarded)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(UserError, match="connection failed"):
            JobServer(f"127.0.0.1:{port}")
        silent.listen()
        with pytest.raises(UserError, match="connection failed"):
            JobServer(f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="expected http://HOST:PORT"):
        JobServer("ftp://somewhere")
    assert time.monotonic() - started < _MAX_SECONDS_TO_FAIL


def test_run_fails_quickly_if_the_cluster_is_unreachable(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> None:
    """Ray itself would retry for minutes, also at the port of the job server."""
    file = tiny.write_sweep(tmp_path, model=str(tiny_model))
    for wrong, message in ((address, "is not a Ray GCS address"), ("127.0.0.1:9", "connection failed")):
        monkeypatch.setenv("RAY_ADDRESS", wrong.removeprefix("http://"))
        started = time.monotonic()
        done = process("run", file)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert time.monotonic() - started < _MAX_SECONDS_TO_FAIL
