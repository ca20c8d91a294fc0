"""Kills processes of sweeps at random times, and compares the finished stores with an undisturbed one.

Each sweep reads several models on a Ray of its own, and is killed up to six times: the supervisor, the
driver, actors, tasks, idle workers, agents, the raylet and the GCS server. `make soak` prints a table of
what happened.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from storage.store import layout
from tests import tiny
from tests.commands import neuralign, rows

KINDS = ("supervisor", "driver", "actor", "task", "idle worker", "agent", "raylet", "GCS server")
_RAY_KINDS = {"Agent": "agent", "IDLE": "idle worker", "Actor": "actor"}
"""Kinds of Ray's workers by a word in their title; a task has none of these."""
WENT_ON, RUN_AGAIN, LOST = "went on", "run again", "session lost"

_MAX_KILLS_PER_SWEEP = 6
_MODELS = 2
_COPIES = 4
"""Sentences are repeated with a number so often that each model has several work units."""

_SECONDS = 900
_POLL_SECONDS = 0.25
_EXCERPT = 2000
_EXIT_SECONDS = 300
"""After a SIGKILL of the driver, Ray's agents take a minute to exit."""

_ROOT = Path(__file__).parent.parent
_COMMAND = "from jobs.commands.main import main; main()"


@dataclass
class Outcome:
    """What a soak saw: kills by kind and by what the sweep did then, sweeps, and problems."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    sweeps: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The counts as lines of text."""
        columns = (WENT_ON, LOST, RUN_AGAIN)
        lines = [f"{'killed':12}{'kills':>7}" + "".join(f"{column:>14}" for column in columns)]
        for kind in KINDS:
            counts = [self.kills[kind, column] for column in columns]
            lines.append(f"{kind:12}{sum(counts):7}" + "".join(f"{count:14}" for count in counts))
        lines.append(
            f"{self.kills.total()} kills in {self.sweeps} sweeps, {self.seconds:.0f} s: "
            f"{len(self.problems)} problems"
        )
        return "\n".join([*lines, *self.problems])


def soak(folder: Path, kills: int, seed: int) -> Outcome:
    """Run sweeps until `kills` processes were killed; compare each with an undisturbed run."""
    outcome, chance, seen = Outcome(), random.Random(seed), set[psutil.Process]()
    models = [tiny.make_model(folder / f"model-{number}", seed=number) for number in range(_MODELS)]
    started = time.monotonic()
    undisturbed = _run_undisturbed(folder / "undisturbed", models)
    length = time.monotonic() - started
    expected = rows(undisturbed.parent / "store")
    order = _kinds(chance)
    while outcome.kills.total() < kills:
        number = outcome.sweeps
        sweep = _write_sweep(folder / f"sweep-{number:03d}", models)
        n_kills = min(chance.randint(1, _MAX_KILLS_PER_SWEEP), kills - outcome.kills.total())
        victims = [(next(order), chance.uniform(0, length / 2)) for _ in range(n_kills)]
        problems = [*_disturb(sweep, victims, outcome, seen, chance)]
        problems += find_problems(sweep.parent / "store", expected) if not problems else []
        outcome.problems += [f"sweep {number} (killed: {victims}): {problem}" for problem in problems]
        for problem in problems:
            print(f"sweep {number}: {problem}", flush=True)
        outcome.sweeps += 1
        outcome.seconds = time.monotonic() - started
        print(f"sweep {number}: {outcome.kills.total()} of {kills} kills so far", flush=True)
        if not problems:
            shutil.rmtree(sweep.parent)
    deadline = time.monotonic() + _EXIT_SECONDS
    while (alive := [process for process in seen if process.is_running()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(1)
    outcome.problems += [f"process {process.pid} is still running" for process in alive]
    return outcome


def _kinds(chance: random.Random) -> Iterator[str]:
    """All kinds equally often, in random order."""
    while True:
        yield from chance.sample(KINDS, len(KINDS))


def _write_sweep(folder: Path, models: list[Path]) -> Path:
    file = tiny.write_sweep(folder)
    lines = (folder / "concepts.csv").read_text().splitlines()
    more = [line[:-2] + f' {number}."' for number in range(_COPIES) for line in lines[1:]]
    (folder / "concepts.csv").write_text("\n".join([lines[0], *more]) + "\n")
    listed = "".join(
        f"  - {{id: {model}, dtype: float32, shards: {1 + number % 2}}}\n"
        for number, model in enumerate(models)
    )
    file.write_text(
        f"concepts: concepts.csv\nmodels:\n{listed}"
        "human: [{name: mine, path: human.csv}]\nname: soak\nstore: store\nresamples: 100\n"
        "neurons: {pooling: [max, concept]}\nbaselines: [contextual, shuffled]\ncontrols: [split-half]\n"
    )
    return file


def _start(file: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", _COMMAND, "run", str(file)],
            env={**environment, "PYTHONPATH": str(_ROOT)},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def _run_undisturbed(folder: Path, models: list[Path]) -> Path:
    file = _write_sweep(folder, models)
    code = _start(file, folder / "log").wait(timeout=_SECONDS)
    assert code == 0, (folder / "log").read_text()
    return file


def _disturb(
    file: Path,
    victims: list[tuple[str, float]],
    outcome: Outcome,
    seen: set[psutil.Process],
    chance: random.Random,
) -> Iterator[str]:
    """Run a sweep to its end, killing each victim some seconds after the last kill or start; yield what
    went wrong."""
    log, deadline = file.parent / "log", time.monotonic() + _SECONDS
    supervisor, started = _start(file, log), time.monotonic()
    pending, killed, log_size = list(victims), "", 0
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        seen.update(processes := _processes(supervisor.pid))
        code = supervisor.poll()
        text = log.read_text(errors="replace")
        is_due = bool(pending) and time.monotonic() > started + pending[0][1]
        candidates = [
            process
            for process in processes
            if is_due and _kind(process, supervisor.pid) == pending[0][0]
        ]
        if killed and (code is not None or candidates):
            outcome.kills[killed, _verdict(code, text[log_size:])] += 1
        if code is not None:
            if problem := _find_failure(code, bool(killed), text):
                yield problem
            if code == 0 or problem:
                return
            supervisor, started, killed, log_size = _start(file, log), time.monotonic(), "", 0
        elif candidates:
            chance.choice(candidates).kill()
            killed, log_size, started = pending.pop(0)[0], len(text), time.monotonic()
    supervisor.kill()
    yield f"did not finish within {_SECONDS} s: {log.read_text(errors='replace')[-_EXCERPT:]}"


def _verdict(code: int | None, log: str) -> str:
    """What a run did after a kill, by its exit code (None while it runs) and what it printed since."""
    if code:
        return RUN_AGAIN
    return LOST if "again to go on" in log else WENT_ON


def _find_failure(code: int, was_killed: bool, log: str) -> str | None:
    """What is wrong with how a run ended: after a kill it may end with the advice to run it again."""
    is_right = code == 0 or (
        was_killed and (code == -signal.SIGKILL or (code == 1 and "to resume" in log))
    )
    if is_right and "Traceback" not in log:
        return None
    return f"exit code {code}: {log[-_EXCERPT:]}"


def _processes(supervisor: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(supervisor)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kind(process: psutil.Process, supervisor: int) -> str | None:
    """The kind of a process of a run; None if it is of no kind that is killed."""
    if process.pid == supervisor:
        return "supervisor"
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    if _COMMAND in command:
        return "driver"
    name = command[0] if command else ""
    if name.startswith("ray::"):
        return next((kind for word, kind in _RAY_KINDS.items() if word in name), "task")
    return {"raylet": "raylet", "gcs_server": "GCS server"}.get(Path(name).name)


def find_problems(store: Path, expected: dict[str, list[object]]) -> Iterator[str]:
    """Differences of a finished store from the undisturbed one, and whatever kills left behind."""
    found = rows(store)
    for view, wanted in expected.items():
        if found[view] != wanted:
            yield f"{view}: {len(found[view])} rows differ from the {len(wanted)} of the undisturbed run"
    checked = neuralign("verify", store)
    if checked.returncode != 0:
        yield f"verify: {checked.stdout}{checked.stderr}"
    for pattern in (f"*/*/{layout.RUNNING}", "**/*.tmp"):
        for path in store.glob(pattern):
            yield f"left behind: {path}"


def main() -> int:
    """Kill as many processes as the command line says; exit with 1 after a problem."""
    kills, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    folder = Path(tempfile.mkdtemp())
    outcome = soak(folder, kills, seed)
    print(outcome.table())
    if outcome.problems:
        print(f"the stores are in {folder}")
    else:
        shutil.rmtree(folder)
    return int(bool(outcome.problems))


if __name__ == "__main__":
    sys.exit(main())
