"""The command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from storage import __version__
from storage.errors import NeuralignError, WorkFailed

if TYPE_CHECKING:
    from jobs.engine.stage import Stage
    from jobs.sweep import Done

app = typer.Typer(
    help="Which neurons of a language model stand for a concept, and do humans see it the same way?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 130

SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file (YAML).")]
StorePath = Annotated[
    str, typer.Argument(metavar="STORE", help="Where the results are: a folder, or s3://bucket/prefix.")
]


SetName = Annotated[
    str | None,
    typer.Option("--concepts", metavar="NAME", help="Of several concept sets the one of this name."),
]


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def demo() -> None:
    """Run the demo: the sweep examples/demo.yaml, into results/demo."""
    from storage.errors import UserError

    root = Path(__file__).parents[2]
    file = root / "examples" / "demo.yaml"
    if not file.is_file():
        raise UserError(f"{file}: no such file; the demo runs from a clone of the repository")
    _run(file, None)


@app.command()
def run(file: SweepFile) -> None:
    """Run a sweep, from where it was stopped, and print what it found."""
    _run(file, None)


@app.command()
def plan(file: SweepFile) -> None:
    """Print what a sweep would run, and run nothing."""
    from jobs.commands.cost_estimate import print_reckoning, read_configs
    from jobs.commands.plan import print_outlook
    from jobs.config import read_sweep
    from jobs.planner import plan as plan_sweep
    from storage.errors import UserError

    with _keeping_garbage():
        wanted = read_sweep(file)
        try:
            planned = plan_sweep(wanted)
        except UserError as error:
            if not all(model.config for model in wanted.models):
                raise
            _out().print(f"It cannot run here: {error}", markup=False, soft_wrap=True)
            print_reckoning(_out(), wanted, read_configs(wanted))
        else:
            print_outlook(_out(), planned)


@contextmanager
def _keeping_garbage() -> Iterator[None]:
    """The millions of parts of a plan of thousands of models all live to its end: looking for garbage
    among them would take a third of the time."""
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.enable()


Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The head's job server; RAY_API_SERVER_ADDRESS by default."),
]
Follow = Annotated[bool, typer.Option("--follow", help="Print its output, and exit with its code.")]


@app.command()
def submit(file: SweepFile, address: Address = None, follow: Follow = False) -> int:
    """Submit a sweep to a cluster as a Ray job; submitted twice it is one job."""
    from cluster.runtime.job_server import JobServer
    from jobs.commands.submit import submit as submit_sweep
    from jobs.config import read_sweep
    from jobs.engine.progress import say

    sweep = read_sweep(file)
    server = JobServer(address)
    name, is_new = submit_sweep(server, sweep)
    did = "submitted" if is_new else "was submitted before"
    say(f"{name}: {did} to {server.address}; results go to {sweep.store_path}")
    if not follow:
        print(name)
        return 0
    return server.follow(name, _write)


@app.command()
def schedule(
    file: SweepFile,
    cron: Annotated[str, typer.Option(metavar="LINE", help="When: five fields, as cron has them.")],
    timezone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Such as Europe/Berlin; this machine's by default."),
    ] = None,
    address: Address = None,
) -> None:
    """Submit a sweep at the times of a cron line, each time once, until the process is ended."""
    from cluster.runtime.job_server import JobServer
    from jobs.commands.schedule import keep

    keep(file, cron, timezone, lambda: JobServer(address))


@app.command()
def logs(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Its id; without it, all jobs.")
    ] = None,
    address: Address = None,
    follow: Follow = False,
) -> int:
    """Print the output of a submitted job, or list the jobs."""
    from cluster.runtime.job_server import JobServer
    from jobs.commands.submit import SWEEP

    server = JobServer(address)
    if job is None:
        for each in server.jobs():
            print(each.submission_id, each.status, (each.metadata or {}).get(SWEEP, ""), sep="  ")
        return 0
    written = server.logs(job)
    if follow:
        return server.follow(job, _write)
    _write(written)
    return 0


@app.command()
def status(
    store: StorePath,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again.")] = False,
) -> None:
    """Show which stages of a store are done, running, stopped or failed."""
    from jobs.commands import status as shown
    from storage.store.paths import place

    (shown.watch if watch else shown.print_status)(_out(), place(store))


@app.command()
def doctor(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A sweep file to look at too.")
    ] = None,
    address: Address = None,
) -> int:
    """Look at versions, devices, Ray, memory, disk, store and hub, and say what to do."""
    from jobs.commands.doctor import examine

    return examine(_out(), file, address)


@app.command()
def sql(
    store: StorePath,
    query: Annotated[str | None, typer.Argument(help="SQL; without it, the views.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write a DuckDB database instead.")
    ] = None,
) -> None:
    """Ask the results a question in DuckDB SQL."""
    from jobs.commands.sql import print_rows
    from storage.database import export as export_views
    from storage.errors import UserError
    from storage.store.paths import place

    if export is not None:
        if query is not None:
            raise UserError("--export: writes all views; leave the query out")
        export_views(place(store), export)
        return
    print_rows(_out(), place(store), query, form.value)


@app.command()
def verify(store: StorePath) -> int:
    """Read every file of a store and list what is wrong with it."""
    from storage.store.paths import place
    from storage.store.verify import verify as find_problems

    problems = 0
    for problem in find_problems(place(store)):
        problems += 1
        print(problem)
    print(f"{problems} problems" if problems else "all is well")
    return 1 if problems else 0


@app.command()
def gc(
    store: StorePath,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it.")] = False,
) -> None:
    """List what can be deleted: activations that were scored, and superseded results."""
    from storage.store.gc import find_garbage
    from storage.store.paths import place

    garbage = list(find_garbage(place(store)))
    for each in garbage:
        print(f"{each.bytes / 1e6:10,.1f} MB  {each.stage.folder}: {each.why}")
        if delete:
            each.delete()
    total = sum(each.bytes for each in garbage) / 1e6
    did = "deleted" if delete else "can be deleted; --delete deletes them"
    print(f"{total:10,.1f} MB  {did}")


@app.command()
def sentences(
    file: SweepFile,
    show: Annotated[str | None, typer.Option(help="Print sentences of this concept.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the set: .csv, .jsonl, .parquet or a folder.")
    ] = None,
    concepts: SetName = None,
) -> None:
    """Make the sentences of a sweep where they are not made yet, and show them."""
    from jobs import sentences as stage
    from jobs.commands.sentences import print_concepts, print_sample
    from storage.errors import UserError
    from storage.readers.concepts import write_concepts

    planned = _carry_out(file, stage.KIND).planned
    store = planned.sweep.store_path
    chosen = [each for each in planned.sets if concepts in (None, each.name)]
    names = ", ".join(each.name for each in planned.sets)
    if not chosen:
        raise UserError(f"--concepts {concepts}: the sweep has {names}")
    if len(chosen) > 1 and not (show is None and out is None):
        raise UserError(f"the sweep has several concept sets; choose one with --concepts: {names}")
    for each in chosen:
        texts = each.stages[0]
        made = stage.read_set(texts, store)
        if out is not None:
            write_concepts(out, made)
        if len(chosen) > 1:
            _out().print(f"{each.name}:", markup=False)
        if show is None:
            print_concepts(_out(), texts, store)
        else:
            print_sample(_out(), made, show, planned.sweep.seed)


@app.command()
def compare(
    store: StorePath,
    human: Annotated[str, typer.Option("--human", metavar="NAME", help="The human data set.")],
    agreement: Annotated[str | None, typer.Option(help="spearman, kendall or pearson.")] = None,
    threshold: Annotated[float, typer.Option(help="Experts have an AP above it.")] = 0.5,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ROW", help="The row that others are compared with, or a part of its name."
        ),
    ] = None,
) -> None:
    """Print models and baselines side by side, on the same pairs, best first."""
    from jobs.commands.compare import print_comparison
    from storage.store.paths import place

    print_comparison(_out(), place(store), human, agreement, threshold, against)


@app.command()
def report(
    store: StorePath,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to; by default STORE's name-report."),
    ] = None,
) -> None:
    """Write the page of a store's newest sweep, and its figures as PNG and SVG."""
    from jobs.report import write_newest
    from storage.store.paths import place

    root = place(store)
    for path in write_newest(root, out or Path(f"{root.name or 'store'}-report")):
        print(_short(path))


@app.command()
def serve(
    store: StorePath,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 is any free one.")] = 0,
    concepts: SetName = None,
) -> None:
    """Serve the page of a store's newest sweep to this machine alone, with every detail live."""
    from jobs.page.serve import serve as serve_store
    from storage.store.paths import place

    serve_store(place(store), port, concepts)


@app.command()
def human() -> None:
    """Print the human data sets that are known by name."""
    from jobs.commands.compare import print_human_sets

    print_human_sets(_out())


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Entry point of the console script: errors become lines and exit codes."""
    # the option may stand anywhere
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    _guarded(lambda: app(arguments or ["--help"], standalone_mode=False))


def run_file(until: str | None = None) -> None:
    """Entry point of `python -m jobs.<stage> FILE`: run a sweep, or run it up to one stage."""

    def work() -> Any:
        if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
            print(f"usage: python -m jobs.{until or 'sweep'} FILE", file=sys.stderr)
            return 2
        return _run(Path(sys.argv[1]), until)

    _guarded(work)


def _run(file: Path, until: str | None) -> None:
    from jobs import report, steering
    from jobs.commands.steering_table import print_doses
    from jobs.engine.progress import say
    from jobs.results.summary import print_next, print_summary

    done = _carry_out(file, until)
    planned, store = done.planned, done.planned.sweep.store_path
    if not done.ran and not done.failures:
        say(f"Nothing to compute: all {len(planned.until(until))} stages are done in {_short(store)}.")
    if until is None:
        last = planned.of_kind(report.KIND)
        for stage in last:
            _name_set(stage)
            print_summary(_out(), report.read_summary(stage, store))
        print_next(_out(), _short(store), [_short(report.page(stage, store)) for stage in last])
    if until in (None, steering.KIND):
        for stage in planned.of_kind(steering.KIND):
            _name_set(stage)
            print_doses(_out(), stage, store, _short(steering.picture(stage, store)))
    if done.failures:
        raise WorkFailed(f"{len(done.failures)} models failed", done.failures)


def _name_set(stage: Stage) -> None:
    """Say which concept set it is of, in a sweep of several."""
    if stage.of_set:
        _out().rule(f"concepts: {escape(stage.of_set)}")


def _carry_out(file: Path, until: str | None) -> Done:
    """Run the stages of a sweep file that are not done."""
    from cluster.runtime.session import disconnected_after
    from jobs import planner, sentences, sweep
    from jobs.config import read_sweep
    from jobs.engine.progress import say

    planned = planner.plan(read_sweep(file))
    # what comes after the sentences is not looked at where only they are asked for
    to_make = 0 if until == sentences.KIND else sum(each.concepts is None for each in planned.sets)
    with disconnected_after():
        whole = sweep.with_sentences(planned) if to_make else planned
        for reason in whole.useless(until):
            say(f"warning: {reason}")
        done = sweep.run(whole, until)
        return replace(done, ran=done.ran + to_make)


def _short(path: Path) -> Path:
    """A path relative to the working folder where it lies below it."""
    from storage.store.paths import is_remote

    if is_remote(path):
        return path
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _out() -> Console:
    return Console(highlight=False)


def _debug() -> bool:
    return "--debug" in sys.argv


def _guarded(work: Callable[[], Any]) -> None:
    try:
        code = work()
    except NeuralignError as error:
        if _debug():
            raise
        print(f"neuralign: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("neuralign: interrupted; run it again to go on from what is done", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except OSError as error:
        if _debug() or error.filename is None:
            raise
        print(f"neuralign: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(NeuralignError.exit_code)
    except Exception as error:
        # what typer says of a wrong command line
        if not hasattr(error, "format_message"):
            raise
        print(f"neuralign: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
