"""The command line: the application with all commands, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from storage.errors import NeuralignError

app = typer.Typer(
    help="Find the neurons of a language model that respond to concepts, and test how well the overlap "
    "of these neurons matches human similarity judgments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS = (
    *("demo", "run", "plan", "submit", "schedule", "logs", "status", "doctor", "sql", "verify", "gc"),
    *("sentences", "compare", "report", "serve", "human", "schema", "version"),
)
"""Commands in the order of the help; each is a function in the module of its name."""
_INTERRUPTED = 130


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None: ...


for _name in COMMANDS:
    app.command(_name)(getattr(import_module(f"jobs.commands.{_name}"), _name))


def main() -> None:
    """Entry point of the console script."""
    # typer would accept the option only before the command
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    _run_with_exit_code(lambda: app(arguments or ["--help"], standalone_mode=False))


def run_stage(until: str | None = None) -> None:
    """Entry point of `python -m jobs.<stage> FILE`: run a sweep, or its stages up to one kind."""

    def work() -> int:
        if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
            print(f"usage: python -m jobs.{until or 'sweep'} FILE", file=sys.stderr)
            return 2
        from jobs.actions.run import run_sweep_file

        run_sweep_file(Path(sys.argv[1]), until)
        return 0

    _run_with_exit_code(work)


def _run_with_exit_code(work: Callable[[], Any]) -> None:
    """Exit with the returned code, or with one line and the code of an expected error."""
    debug = "--debug" in sys.argv
    try:
        code = work()
    except NeuralignError as error:
        if debug:
            raise
        message, code = str(error), error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        message, code = "interrupted; run the same command to resume", _INTERRUPTED
    except OSError as error:
        if debug or error.filename is None:
            raise
        message, code = f"{error.filename}: {error.strerror}", NeuralignError.exit_code
    except Exception as error:
        # usage errors of typer
        if not hasattr(error, "format_message"):
            raise
        message, code = error.format_message(), 2
    else:
        sys.exit(code if isinstance(code, int) else 0)
    print(f"neuralign: {message}", file=sys.stderr)
    sys.exit(code)
