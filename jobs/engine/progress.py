"""Progress: bars with rate and time left on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from jobs.engine.terminal import DataConsole
from storage.printable import printable

_SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]
"""Reports that a number of further items are done."""
UpdateDisplay = Callable[[int, float], None]
"""Shows the number of items done and the rate per second."""

console = DataConsole(stderr=True, soft_wrap=not sys.stderr.isatty())


def print_line(line: str) -> None:
    """Print a line to stderr, above any progress bars."""
    console.print(line)


@contextmanager
def progress(label: str, total: int, unit_name: str, done_before: int = 0) -> Iterator[Advance]:
    """Report progress over `total` items called `unit_name`, to the user and as metrics.

    `done_before` of the items were done by earlier runs. Concurrent work gets one bar each.
    """
    # it imports Ray, which commands that only print do not need
    from cluster.runtime.metrics import progress_counter

    counter = progress_counter(label, unit_name, total, done_before)
    display = _bar if console.is_terminal else _lines
    started, done = time.monotonic(), done_before
    with display(label, total, unit_name, done_before) as update_display:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            counter(count)
            update_display(done, (done - done_before) / max(time.monotonic() - started, 1e-9))

        yield advance


@contextmanager
def _bar(label: str, total: int, unit_name: str, done: int) -> Iterator[UpdateDisplay]:
    with _bars_lock:
        task = _bars.add_task(printable(label), total=total, completed=done, rate="")
        _bars.start()
    try:
        yield lambda done, rate: _bars.update(
            task, completed=done, rate=f"{_format_rate(rate)} {unit_name}/s"
        )
    finally:
        with _bars_lock:
            _bars.remove_task(task)
            if not _bars.tasks:
                _bars.stop()


_bars = Progress(
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=20),
    TaskProgressColumn(),
    TextColumn("{task.fields[rate]}"),
    TimeRemainingColumn(compact=True),
    console=console,
    transient=True,
)
_bars_lock = threading.Lock()


@contextmanager
def _lines(label: str, total: int, unit_name: str, _: int) -> Iterator[UpdateDisplay]:
    """Print a line with rate and time left, at most every 10 s and at the end."""
    last_line = time.monotonic()

    def update_display(done: int, rate: float) -> None:
        nonlocal last_line
        if time.monotonic() - last_line < _SECONDS_BETWEEN_LINES and done < total:
            return
        last_line = time.monotonic()
        print_line(
            f"{label}: {done:,} of {total:,} {unit_name}, {_format_rate(rate)}/s, "
            f"{(total - done) / rate:.0f} s left"
        )

    yield update_display


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def format_duration(seconds: float) -> str:
    """A duration in the largest unit of which it has at least two: 90 s, 5 min, 3 h, 2 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"
