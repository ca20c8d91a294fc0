"""On a cluster that was started as users start one: what is submitted must run once, give the numbers of
a local run and end with its own exit code; a slot must be one job, though schedulers are killed."""

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
from jobs.commands.schedule import Cron, Scheduler, _ToServer
from jobs.commands.submit import submit
from jobs.config import read_sweep
from storage.errors import UserError
from storage.store import layout
from storage.store.schedule_slots import Slots
from tests import tiny
from tests.commands import neuralign, process, rows
from tests.faults import in_one_process
from tests.ray_head import Head, ray_head

_SECONDS = 600
_AT_ONCE = 60
"""Seconds of a busy machine, where Ray itself would try for minutes or without end."""

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as found:
        yield found


@pytest.fixture(scope="module")
def address(head: Head) -> str:
    return head.address


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, head: Head) -> dict[str, Any]:
    """One sweep run in this process, submitted with `neuralign submit`, and with `ray job submit`."""
    folder, address = tmp_path_factory.mktemp("studies"), head.address
    shutil.copytree(tiny_model, folder / "model")
    # as a clone of the repository with a sweep of the user's beside it
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
    # Ray's own client tells a cluster with a token from one without by the environment alone
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
    ended = {name: each.communicate(timeout=_SECONDS) for name, each in started.items()}
    for name, each in started.items():
        assert each.returncode == 0, (name, ended[name])
    return {"files": files, "folder": folder, "output": ended}


def test_a_submitted_sweep_gives_the_rows_of_a_local_run(studies: dict[str, Any]) -> None:
    results = studies["folder"] / "results"
    here = rows(results / "here")
    assert len(here["experts"]) > 10
    assert rows(results / "submitted") == here
    assert rows(results / "ray") == here
    for name in ("submitted", "ray"):
        output = "".join(studies["output"][name])
        assert "activations model@main: done" in output
        assert "Alignment with mine" in output


_COUNTS = """
import time, ray
from cluster.runtime.metrics import counted
ray.init(log_to_driver=False)
count = counted("counted by itself", "sentences", total=100, already=10)
for _ in range(5):
    time.sleep(1)
    count(1)
time.sleep(600)
"""


def test_progress_is_shown_to_prometheus(head: Head, tmp_path: Path) -> None:
    """What is left falls as what is done rises."""
    (tmp_path / "counts.py").write_text(_COUNTS)
    server = JobServer(head.address)
    server.submit("counts", "python counts.py", tmp_path, {}, lambda _: False)
    shown: dict[str, float] = {}
    deadline = time.monotonic() + _SECONDS
    # Ray sends each metric by itself: between two steps of the job, or after all, they are of one moment
    while not _of_one_moment(shown) and time.monotonic() < deadline:
        time.sleep(0.3)
        for line in _metrics(head):
            if line.startswith("ray_neuralign_") and 'stage="counted by itself"' in line:
                shown[line.split("{")[0]] = float(line.split()[-1])
    server._client.stop_job("counts")
    assert _of_one_moment(shown), shown
    assert shown["ray_neuralign_done_total"] > 0
    assert 0 < shown["ray_neuralign_per_second"] < 3


def _metrics(head: Head) -> list[str]:
    """What all that show metrics show; of those that answer."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        for found in json.loads(head.metrics.read_text()):
            for target in found["targets"]:
                with contextlib.suppress(OSError, HTTPException):
                    url = f"http://{target}/metrics"
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        lines += answer.read().decode().splitlines()
    return lines


def _of_one_moment(shown: dict[str, float]) -> bool:
    return len(shown) == 3 and shown["ray_neuralign_done_total"] + shown["ray_neuralign_left"] == 90


def test_the_same_sweep_submitted_again_is_the_same_job(studies: dict[str, Any], address: str) -> None:
    """At once by many, or after it is done; but not once its store is gone."""
    server = JobServer(address)
    sweep = read_sweep(studies["files"]["submitted"])
    (first,) = (job.submission_id for job in server.jobs() if job.submission_id.startswith("neuralign-"))
    assert submit(server, sweep) == (first, False)
    other = sweep.model_copy(update={"store": str(studies["folder"] / "results/other")})
    names: list[tuple[str, bool]] = []
    threads = [
        threading.Thread(target=lambda: names.append(submit(JobServer(address), other)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_SECONDS)
    assert len({name for name, _ in names}) == 1
    assert sorted(new for _, new in names) == [False, False, False, True]
    # another sweep of that name into that store, while it runs
    with pytest.raises(UserError, match="another sweep named 'study' runs into"):
        submit(server, other.model_copy(update={"seed": 1}))
    server._client.stop_job(names[0][0])


def test_a_job_ends_with_its_own_exit_code_and_can_be_submitted_again(
    address: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    file = tiny.write_sweep(tmp_path, extra=f"models_in: {tmp_path / 'empty'}\nname: lost\n")
    file.write_text(file.read_text().replace("id: model", "id: ./model"))
    found = []
    for attempt in ("", "-2"):
        done = process("submit", file, "--address", address, "--follow")
        assert done.returncode == 2, done.stderr
        assert "there is no file or folder" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
        found += [
            job.submission_id
            for job in JobServer(address).jobs()
            if job.submission_id.startswith("neuralign-lost-")
        ]
        assert any(name.endswith(attempt) for name in found)
    assert len(set(found)) == 2
    logs = process("logs", found[0], "--address", address)
    assert "there is no file or folder" in logs.stdout
    assert process("logs", "nonsense", "--address", address).returncode == 2


_KILLED_TICK = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from cluster.runtime.job_server import JobServer
from jobs.config import read_sweep
from jobs.commands.schedule import Cron, Scheduler, _ToServer
from storage import layout
from storage.store.schedule_slots import Slots
file, address, since, now = sys.argv[1:]
sweep = read_sweep(Path(file))
slots = Slots(layout.create(sweep.store_path), sweep.name)
slots.mark_done = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
server = _ToServer(Path(file), sweep, JobServer(address))
keeper = Scheduler(slots, Cron("* * * * *"), "slot", server)
keeper.tick(datetime.fromisoformat(since), datetime.fromisoformat(now))
"""


@pytest.mark.filterwarnings("ignore:ssl=None")  # Ray's client says it to aiohttp
def test_three_slots_are_three_jobs_though_the_scheduler_is_killed_between_submit_and_record(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs that end at once, as their model is nowhere: a slot is a slot whatever becomes of it."""
    file = tiny.write_sweep(tmp_path, model="./nowhere")
    server = JobServer(address)
    since = datetime(2026, 6, 1, tzinfo=UTC)
    sweep = read_sweep(file)
    slots_kept = Slots(layout.create(sweep.store_path), sweep.name)
    keeper = Scheduler(slots_kept, Cron("* * * * *"), "slot", _ToServer(file, sweep, server))

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
        keeper.tick(since, now)
        assert "was submitted before" in capsys.readouterr().err
        assert server.follow(slots()[-1], lambda _: None) == 2
    assert slots() == [f"slot-20260601T000{minute}Z" for minute in (1, 2, 3)]


def test_the_doctor_says_what_is_wrong_and_what_to_do(
    address: str, tmp_path: Path, tiny_model: Path
) -> None:
    file = tiny.write_sweep(tmp_path, model=str(tiny_model))
    found = process("doctor", file, "--address", address).stdout
    for line in ("well   packages: all there", "well   job server: ", "well   sweep ", "well   store: "):
        assert line in found
    done = process("doctor", file.parent / "none.yaml", "--address", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "WRONG  job server: " in done.stdout
    assert "nobody answers" in done.stdout
    assert "none.yaml: no such file" in done.stdout


@contextlib.contextmanager
def _answers(content: bytes, code: int = 200) -> Iterator[str]:
    """A server that answers everything with the same."""

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


def test_a_head_that_is_none_or_of_another_version_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.runtime.job_server._ANSWER_SECONDS", 3.0)
    started = time.monotonic()
    versions = b'{"ray_version": "2.9.0", "data": {"pythonVersion": "3.9.1"}}'
    told = r"runs Ray 2.9.0 and Python 3.9, here is Ray \d"
    with _answers(versions) as other, pytest.raises(UserError, match=told):
        JobServer(other)
    with _answers(b"<html>") as page, pytest.raises(UserError, match="is no Ray job server"):
        JobServer(page)
    with _answers(b"", 403) as guarded, pytest.raises(UserError, match="asks for a token"):
        JobServer(guarded)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(UserError, match="nobody answers"):
            JobServer(f"127.0.0.1:{port}")
        silent.listen()
        with pytest.raises(UserError, match="nobody answers"):
            JobServer(f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="expected http://HOST:PORT"):
        JobServer("ftp://somewhere")
    assert time.monotonic() - started < _AT_ONCE


def test_drivers_are_told_of_a_cluster_that_does_not_answer(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> None:
    """Ray itself tries for minutes, also at the port of the job server."""
    file = tiny.write_sweep(tmp_path, model=str(tiny_model))
    for wrong, told in ((address, "is not where a cluster takes drivers"), ("127.0.0.1:9", "nobody")):
        monkeypatch.setenv("RAY_ADDRESS", wrong.removeprefix("http://"))
        started = time.monotonic()
        done = process("run", file)
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
        assert time.monotonic() - started < _AT_ONCE
