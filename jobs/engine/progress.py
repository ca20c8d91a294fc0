"""Progress: bars with rate and time left on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cluster.runtime.metrics import progress_counter

_SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]
"""Reports that a number of further items are done."""

console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def print_line(line: str) -> None:
    """Print a line to stderr, above any progress bars."""
    console.print(line, markup=False)


@contextmanager
def progress(label: str, total: int, unit_name: str, done_before: int = 0) -> Iterator[Advance]:
    """Report progress over `total` items called `unit_name`, to the user and as metrics.

    `done_before` of the items were done by earlier runs. Concurrent work gets one bar each.
    """
    counter = progress_counter(label, unit_name, total, done_before)
    display = _bar if console.is_terminal else _lines
    with display(label, total, unit_name, done_before) as update_display:

        def advance(count: int) -> None:
            counter(count)
            update_display(count)

        yield advance


@contextmanager
def _bar(label: str, total: int, unit_name: str, done_before: int) -> Iterator[Advance]:
    started = time.monotonic()
    with _bars_lock:
        task = _bars.add_task(label, total=total, completed=done_before, rate="")
        _bars.start()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        rate = done / (time.monotonic() - started)
        _bars.update(task, advance=count, rate=f"{_format_rate(rate)} {unit_name}/s")

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


@contextmanager
def _lines(label: str, total: int, unit_name: str, done_before: int) -> Iterator[Advance]:
    """Print a line with rate and time left, at most every 10 s and at the end."""
    started = last_line = time.monotonic()
    done = done_before

    def advance(count: int) -> None:
        nonlocal done, last_line
        done += count
        now = time.monotonic()
        if now - last_line < _SECONDS_BETWEEN_LINES and done < total:
            return
        last_line = now
        rate = (done - done_before) / max(now - started, 1e-9)
        print_line(
            f"{label}: {done:,} of {total:,} {unit_name}, {_format_rate(rate)}/s, "
            f"{(total - done) / rate:.0f} s left"
        )

    yield advance


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def format_duration(seconds: float) -> str:
    """A duration in the largest unit of which it has at least two: 90 s, 5 min, 3 h, 2 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"
