"""The command line: a group that loads its commands lazily, and exit codes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from storage.errors import NeuralignError

COMMANDS = (
    *("demo", "run", "plan", "submit", "schedule", "logs", "status", "doctor", "sql", "verify", "gc"),
    *("sentences", "compare", "report", "serve", "human", "schema", "version"),
)
"""Commands, in the order of the help; each is a function in a module of the same name."""
_INTERRUPTED = 130


class _LazyGroup(TyperGroup):
    """Imports the module of a command only when the command is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name) for name in COMMANDS}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stub of the command with its help line, for the list of commands."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            # parse only: importing every command would load Ray and DuckDB
            tree = ast.parse(Path(__file__).with_name(f"{cmd_name}.py").read_text(encoding="utf-8"))
            functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
            command.help = next(ast.get_docstring(node) for node in functions if node.name == cmd_name)
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Load the command that is called."""
        name, _, remaining = super().resolve_command(ctx, args)
        return name, load_command(str(name)), remaining


app = typer.Typer(
    cls=_LazyGroup,
    help="Find the neurons of a language model that respond to concepts, and test how well the overlap "
    "of these neurons matches human similarity judgments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None: ...


def load_command(name: str) -> Any:
    """Import a command, with its arguments and options."""
    command_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command_app.command(name)(getattr(import_module(f"jobs.commands.{name}"), name))
    return typer.main.get_command(command_app)


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
        from jobs.commands.run import run_sweep_file

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
