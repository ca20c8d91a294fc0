"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cluster.runtime.metrics import counted

_SECONDS_BETWEEN_LINES = 10.0

console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


class Advance(Protocol):
    """Called with how much was done."""

    def __call__(self, done: int, /) -> None: ...


def say(line: str) -> None:
    """One line to the user, beside whatever bar is shown."""
    console.print(line, markup=False)


@contextmanager
def progress(label: str, total: int, of: str, already: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` things called `of`, of which `already` were done before, to the user
    and as metrics. Work that goes on side by side has its bars below one another."""
    count = counted(label, of, total, already)
    with (_bar if console.is_terminal else _lines)(label, total, of, already) as shown:

        def advance(done: int, /) -> None:
            count(done)
            shown(done)

        yield advance


@contextmanager
def _lines(label: str, total: int, of: str, already: int) -> Iterator[Advance]:
    yield _Lines(label, total, of, already)


@contextmanager
def _bar(label: str, total: int, of: str, already: int) -> Iterator[Advance]:
    started = time.monotonic()
    with _bars_lock:
        task = _bars.add_task(label, total=total, completed=already, rate="")
        _bars.start()
    done = 0

    def advance(count: int, /) -> None:
        nonlocal done
        done += count
        rate = done / (time.monotonic() - started)
        _bars.update(task, advance=count, rate=f"{_shown(rate)} {of}/s")

    try:
        yield advance
    finally:
        with _bars_lock:
            _bars.remove_task(task)
            if not _bars.tasks:
                _bars.stop()


_bars = Progress(
    TextColumn("{task.description}"),
    BarColumn(bar_width=20),
    TaskProgressColumn(),
    TextColumn("{task.fields[rate]}"),
    TimeRemainingColumn(compact=True),
    console=console,
    transient=True,
)
_bars_lock = threading.Lock()


class _Lines:
    def __init__(self, label: str, total: int, of: str, already: int) -> None:
        self._label, self._total, self._of, self._done = label, total, of, already
        self._before = already
        self._started = self._last = time.monotonic()

    def __call__(self, count: int, /) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and self._done < self._total:
            return
        self._last = now
        rate = (self._done - self._before) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate
        say(
            f"{self._label}: {self._done:,} of {self._total:,} {self._of}, "
            f"{_shown(rate)}/s, {left:.0f} s left"
        )


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
