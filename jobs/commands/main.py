"""The command line: the application with all commands, and exit codes."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.commands.supervisor import LOST, ORDERLY, supervise
from storage.errors import NeuralignError, SessionLost, UserError, one_line

app = typer.Typer(
    help="Find the neurons of a language model that respond to concepts, and test how well the overlap "
    "of these neurons matches human similarity judgments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS = (
    *("demo", "run", "plan", "submit", "schedule", "logs", "status", "doctor", "sql", "verify", "gc"),
    *("sentences", "compare", "export", "report", "serve", "human", "schema", "version"),
)
"""Commands in the order of the help; each is a function in the module of its name."""
_ON_RAY = {"demo", "run", "sentences"}
_DEBUG = "--debug"
_GC_THRESHOLD = 30_000
"""Python's default of 700 new objects costs a quarter of the time on large concept sets."""

_INTERRUPTED = 130


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error.")] = False,
) -> None: ...


for _name in COMMANDS:
    app.command(_name)(getattr(import_module(f"jobs.commands.{_name}"), _name))


def main() -> None:
    """Entry point of the console script."""
    # they may start Ray on this machine
    is_supervised = bool(_ON_RAY.intersection(sys.argv[1:2]))
    _run_with_exit_code(
        lambda arguments: app(arguments or ["--help"], standalone_mode=False), is_supervised
    )


def run_stage(until: str | None = None) -> None:
    """Entry point of `python -m jobs.<stage> FILE`: run a sweep, or its stages up to one kind."""

    def work(arguments: list[str]) -> None:
        if len(arguments) != 1 or arguments[0].startswith("-"):
            raise UserError(f"usage: python -m jobs.{until or 'sweep'} FILE [--debug]")
        from jobs.actions.run import run_sweep_file

        run_sweep_file(Path(arguments[0]), until)

    _run_with_exit_code(work, is_supervised=True)


def _run_with_exit_code(work: Callable[[list[str]], Any], is_supervised: bool) -> None:
    """Exit with the code that `work(arguments)` returns, or that of an expected error."""
    supervisor = supervise() if is_supervised and not os.environ.get("RAY_ADDRESS") else None
    ending = ORDERLY
    for stream in (sys.stdout, sys.stderr):
        # on a terminal that lacks a character, its escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # typer would accept the option only before the command
    arguments = [argument for argument in sys.argv[1:] if argument != _DEBUG]
    gc.set_threshold(_GC_THRESHOLD)
    try:
        code = work(arguments)
    except BaseException as error:
        report = _message_and_code(error)
        if report is None:
            if supervisor:
                supervisor.report(ORDERLY)
            raise
        if _DEBUG in sys.argv:
            traceback.print_exc()
        message, code = report
        if supervisor and supervisor.restarts_left and isinstance(error, SessionLost):
            ending, message = LOST, f"{message.partition(';')[0]}; starting Ray again to go on"
        print(f"neuralign: {message}", file=sys.stderr)
    if supervisor:
        supervisor.report(ending)
    sys.exit(code if isinstance(code, int) else 0)


def _message_and_code(error: BaseException) -> tuple[str, int] | None:
    """Message and exit code of an expected error; None for a bug."""
    if isinstance(error, NeuralignError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted; run the same command to resume", _INTERRUPTED
    if isinstance(error, OSError) and error.filename is not None:
        kind = UserError if error.errno == errno.ENAMETOOLONG else NeuralignError
        return one_line(f"{error.filename}: {error.strerror}"), kind.exit_code
    if hasattr(error, "format_message"):  # usage errors of typer
        return one_line(error.format_message()), UserError.exit_code
    return None
