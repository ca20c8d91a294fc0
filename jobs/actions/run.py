"""Runs a sweep file and prints the results: `run`, `demo`, `sentences`, `python -m jobs.<stage>`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cluster.runtime.session import shutdown_on_exit
from jobs import planner, report, sentences, steering, sweep
from jobs.actions.output import display_path, stdout_console
from jobs.actions.summary import print_next_steps, print_steering, print_summary
from jobs.config.loader import read_sweep
from jobs.engine.progress import print_line
from jobs.engine.stage import Stage
from storage.errors import WorkFailed


def run_sweep_file(file: Path, until: str | None = None) -> None:
    """Run the stages of a sweep file up to those of the kind `until`, and print their results.

    Raises:
        WorkFailed: if models failed, after printing the results of the others.
    """
    result = run_stages(file, until)
    planned, store = result.plan, result.plan.sweep.store_path
    console = stdout_console()
    if not result.stages_run and not result.failures:
        n_stages = len(planned.stages_until(until))
        print_line(f"Nothing to compute: all {n_stages} stages are done in {display_path(store)}.")
    if until is None:
        reports = planned.stages_of_kind(report.KIND)
        for stage in reports:
            _print_concept_set(console, stage)
            print_summary(console, report.read_summary(stage, store))
        pages = [display_path(report.page_path(stage, store)) for stage in reports]
        print_next_steps(console, display_path(store), pages)
    if until in (None, steering.KIND):
        for stage in planned.stages_of_kind(steering.KIND):
            _print_concept_set(console, stage)
            print_steering(console, stage, store, display_path(steering.figure_path(stage, store)))
    if result.failures:
        raise WorkFailed(f"{len(result.failures)} models failed", result.failures)


def run_stages(file: Path, until: str | None) -> sweep.SweepResult:
    """Run the stages of a sweep file that are not done, up to those of the kind `until`."""
    config = read_sweep(file)
    if until == sentences.KIND:
        # no model is needed, not even its configuration
        config = config.model_copy(update={"models": []})
    planned = planner.plan_sweep(config)
    # stages up to the sentences are planned without their content
    missing = [item for item in planned.concept_sets if item.concepts is None]
    n_missing = 0 if until == sentences.KIND else len(missing)
    with shutdown_on_exit():
        complete = sweep.make_missing_sentences(planned) if n_missing else planned
        for reason in complete.unusable_human_sets(until):
            print_line(f"warning: {reason}")
        result = sweep.run(complete, until)
        return replace(result, stages_run=result.stages_run + n_missing)


def _print_concept_set(console: Console, stage: Stage) -> None:
    if stage.concept_set_name:
        console.rule(f"concepts: {stage.concept_set_name}")
