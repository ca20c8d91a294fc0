"""Stage `report`: the HTML report of a sweep and its console summary; on demand, the report and the
figures of any store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from jobs import activations, alignment, sentences, similarity
from jobs.engine.stage import Stage, StageOutput
from jobs.page.study import HEADLINE_THRESHOLD, Study, latest_studies
from jobs.page.study_data import StudyData
from jobs.results.rows import uses_measure
from jobs.similarity import EXPERTS
from storage import sql, tables
from storage.database import check_tables, open_store
from storage.store.commit import write_bytes, write_json
from storage.store.layout import slug
from storage.store.paths import read_bytes

if TYPE_CHECKING:
    from jobs.page.figures.spec import Section

KIND = "report"
SUMMARY_FILE = "summary.json"
PAGE_FILE = "report.html"

_N_NEIGHBORS = 4
_MAX_EXAMPLES = 6


def plan(name: str, stages: Sequence[Stage], config: Mapping[str, Any]) -> Stage:
    """The last stage of a sweep, with all other stages as inputs; `config` is the sweep file.

    Activations are read if present, but are not an input: those deleted after scoring are not recomputed
    for a report.
    """
    inputs = {
        f"{stage.kind} {number}": stage
        for number, stage in enumerate(stages)
        if stage.kind != activations.KIND
    }
    params = {"headline_threshold": HEADLINE_THRESHOLD, "sweep": dict(config)}
    return Stage(KIND, name, params, _run, inputs)


def read_summary(stage: Stage, store: Path) -> dict[str, Any]:
    """The summary of a finished sweep."""
    (path,) = stage.read_manifest(store).paths(SUMMARY_FILE)
    summary: dict[str, Any] = json.loads(read_bytes(path))
    return summary


def page_path(stage: Stage, store: Path) -> Path:
    """Path of the HTML report."""
    (path,) = stage.read_manifest(store).paths(PAGE_FILE)
    return path


def write_latest(store: Path, out: Path) -> list[Path]:
    """Write the report of a store's latest sweep, as far as it is complete, and its figures as PNG and
    SVG; one folder per concept set if there are several.

    Raises:
        UserError: if no stage in the store is complete.
    """
    from jobs.page.render import figure_files

    written = []
    studies = latest_studies(store)
    for study in studies:
        folder = out / slug(study.concept_set_name) if len(studies) > 1 else out
        html, sections = _render(store, study)
        for name, content in [(PAGE_FILE, html), *figure_files(sections)]:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            written.append(path)
    return written


def _render(store: Path, study: Study) -> tuple[bytes, list[Section]]:
    """The HTML report and its sections.

    Raises:
        StoreError: if a table of the study is missing or damaged.
    """
    from jobs.page.render import make_sections, render_page

    for run in study.runs.values():
        check_tables(run)
    with open_store(store, study.runs) as connection:
        data = StudyData(connection, study)
        sections = make_sections(data)
        return render_page(data, study.name, sections).encode(), sections


def _run(stage: Stage, store: Path) -> StageOutput:
    runs = {
        ancestor.fingerprint: ancestor.read_manifest(store)
        for ancestor in stage.ancestors()
        if ancestor is not stage
    }
    html, _ = _render(store, Study(stage.label, runs, stage.params["sweep"]))
    folder = stage.folder(store)
    summary = _make_summary(stage, store)
    return StageOutput([write_bytes(folder, PAGE_FILE, html), write_json(folder, SUMMARY_FILE, summary)])


def _make_summary(stage: Stage, store: Path) -> dict[str, Any]:
    """The data of the console summary."""
    (alignment_stage,) = _inputs_of_kind(stage, alignment.KIND)
    similarity_stage = next(
        input_stage
        for input_stage in _inputs_of_kind(stage, similarity.KIND)
        if input_stage.params["representation"] == EXPERTS
    )
    activations_stage = similarity_stage.inputs["experts"].inputs["activations"]
    sentences_stage = activations_stage.inputs["sentences"]
    domains = sentences.read_domains(sentences_stage, store)
    pooling = activations_stage.params["poolings"][0]
    measure = similarity_stage.params["measures"][0]
    thresholds = similarity_stage.params["thresholds"]
    threshold = min(thresholds, key=lambda threshold: abs(threshold - HEADLINE_THRESHOLD))
    similarities = _read_similarities(similarity_stage, store, pooling, threshold)
    judged = pa.concat_tables(
        [
            alignment_stage.read_table(store, table.file).select(["human_set"])
            for table in (tables.HUMAN_PAIRS, tables.HUMAN_TRIPLETS)
        ]
    )
    counts = judged.group_by("human_set").aggregate([([], "count_all")]).to_pylist()
    alignment_rows = _read_rows(stage, tables.ALIGNMENT, store)
    hierarchy_rows = _read_rows(stage, tables.HIERARCHY_SUMMARY, store)
    return {
        "sweep": stage.label,
        "concept_set": sentences_stage.params["concept_set"],
        "n_concepts": len(domains),
        "n_sentences": len(sentences.read_texts(sentences_stage, store)),
        "headline_threshold": threshold,
        "agreement": alignment_stage.params["measures"][0],
        "human_pairs": {row["human_set"]: row["count_all"] for row in counts},
        "human_sets": list(alignment_stage.params["human"]),
        "models": list(
            dict.fromkeys(row["model"] for row in alignment_rows if row["representation"] == EXPERTS)
        ),
        "alignment": [
            row
            for row in alignment_rows
            if uses_measure(row, measure) and row["subset"] == alignment.ALL_PAIRS
        ],
        "differences": _read_rows(stage, tables.ALIGNMENT_DIFFERENCES, store),
        "reliability": _read_rows(stage, tables.RELIABILITY, store),
        "hierarchy": [row for row in hierarchy_rows if uses_measure(row, measure)],
        "steering": _read_rows(stage, tables.STEERING_DOSES, store),
        "nearest": {
            "of": f"{activations_stage.label}, {pooling} pooling, AP > {threshold}",
            "concepts": {
                name: _nearest_concepts(similarities, name, list(domains))
                for name in _select_examples(domains)
            },
        },
    }


def _inputs_of_kind(stage: Stage, kind: str) -> list[Stage]:
    return [input_stage for input_stage in stage.inputs.values() if input_stage.kind == kind]


def _read_rows(stage: Stage, table: tables.Table, store: Path) -> list[dict[str, Any]]:
    """Rows of a table in all input stages that write it."""
    return [
        row
        for input_stage in _inputs_of_kind(stage, table.stage)
        for row in input_stage.read_table(store, table.file).to_pylist()
    ]


def _read_similarities(
    stage: Stage, store: Path, pooling: str, threshold: float
) -> dict[tuple[str, str], float | None]:
    with duckdb.connect() as connection:
        paths = stage.read_manifest(store).paths(tables.SIMILARITY.file)
        sql.scan_parquet(connection, paths).create_view("similarity")
        rows = connection.execute(
            "SELECT concept_a, concept_b, similarity FROM similarity "
            "WHERE pooling = $pooling AND threshold = $threshold AND measure = $measure "
            "AND layer IS NULL AND site IS NULL",
            {"pooling": pooling, "threshold": threshold, "measure": stage.params["measures"][0]},
        ).fetchall()
    return {(first, second): value for first, second, value in rows}


def _select_examples(domains: dict[str, str | None]) -> list[str]:
    """The first concept of each domain that is not the domain's name; any concepts without domains."""
    first = {domain: name for name, domain in reversed(domains.items()) if domain and name != domain}
    examples = [name for name in domains if name in first.values()] or list(domains)
    return examples[:_MAX_EXAMPLES]


def _nearest_concepts(
    similarities: dict[tuple[str, str], float | None], name: str, names: list[str]
) -> list[tuple[str, float]]:
    neighbors = [
        (other, value)
        for other in names
        if (value := similarities.get((min(name, other), max(name, other)))) is not None
    ]
    return sorted(neighbors, key=lambda neighbor: -neighbor[1])[:_N_NEIGHBORS]


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("report")
