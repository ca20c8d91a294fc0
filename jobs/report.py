"""Stage `report`: the page of a sweep and a summary to print; and, on demand, the page of any
store, with its figures for papers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from jobs import activations, alignment, hierarchy, reliability, sentences, similarity, steering
from jobs.alignment import ALIGNMENT_FILE, PAIRS_FILE, TRIPLETS_FILE
from jobs.engine.stage import Outcome, Stage
from jobs.hierarchy import SUMMARY_FILE as SUMMARY_TABLE
from jobs.page.study import HEADLINE_THRESHOLD, Source, Study, newest_studies
from jobs.reliability import RELIABILITY_FILE
from jobs.results.summary import is_shown
from jobs.similarity import EXPERTS, FILE
from jobs.steering import DOSES_FILE
from storage.database import open_store
from storage.store.commit import write_bytes, write_json
from storage.store.layout import slug
from storage.store.paths import let_read, read_bytes, read_table

if TYPE_CHECKING:
    from jobs.page.figures.spec import Section

KIND = "report"
SUMMARY_FILE = "summary.json"
PAGE_FILE = "report.html"

_NEAREST = 4
_SHOWN_CONCEPTS = 6


def plan(name: str, stages: Sequence[Stage], asked: Mapping[str, Any]) -> Stage:
    """The last stage of a sweep, made of all its others; `asked` is what the sweep file asks for.

    The activations are read where they are there still, but are no input: what was dropped after scoring
    is not computed again for a page.
    """
    inputs = {
        f"{stage.kind} {number}": stage
        for number, stage in enumerate(stages)
        if stage.kind != activations.KIND
    }
    params = {"headline_threshold": HEADLINE_THRESHOLD, "sweep": dict(asked)}
    return Stage(KIND, name, params, _run, inputs)


def read_summary(stage: Stage, store: Path) -> dict[str, Any]:
    """The summary of a finished sweep."""
    (path,) = stage.result(store).paths(SUMMARY_FILE)
    summary: dict[str, Any] = json.loads(read_bytes(path))
    return summary


def page(stage: Stage, store: Path) -> Path:
    """The page."""
    (path,) = stage.result(store).paths(PAGE_FILE)
    return path


def write_newest(store: Path, out: Path) -> list[Path]:
    """Write the page of a store's newest sweep, of what is done of it, and its figures as PNG and SVG;
    where the sweep has several concept sets, into a folder for each.

    Raises UserError for a store in which nothing is done.
    """
    from jobs.page.render import paper_figures

    written = []
    studies = newest_studies(store)
    for study in studies:
        folder = out / slug(study.set_name) if len(studies) > 1 else out
        html, found = _render(store, study)
        for name, content in [(PAGE_FILE, html), *paper_figures(found)]:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            written.append(path)
    return written


def _render(store: Path, study: Study) -> tuple[bytes, list[Section]]:
    """The page as a file, and the sections that it holds."""
    from jobs.page.render import page as render_page
    from jobs.page.render import sections

    with open_store(store, study.runs) as connection:
        source = Source(connection, study)
        found = sections(source)
        return render_page(source, study.name, found).encode(), found


def _run(stage: Stage, store: Path) -> Outcome:
    runs = {each.fingerprint: each.result(store) for each in stage.ancestors() if each is not stage}
    html, _ = _render(store, Study(stage.label, runs, stage.params["sweep"]))
    folder = stage.folder(store)
    summary = _summary(stage, store)
    return Outcome([write_bytes(folder, PAGE_FILE, html), write_json(folder, SUMMARY_FILE, summary)])


def _summary(stage: Stage, store: Path) -> dict[str, Any]:
    """What the end of a sweep prints."""
    (aligned,) = _of(stage, alignment.KIND)
    experts = next(
        each for each in _of(stage, similarity.KIND) if each.params["representation"] == EXPERTS
    )
    texts = experts.inputs["experts"].inputs["activations"].inputs["sentences"]
    read = experts.inputs["experts"].inputs["activations"]
    domains = sentences.read_domains(texts, store)
    pooling = read.params["poolings"][0]
    threshold = _nearest_threshold(experts.params["thresholds"])
    matrix = _similarities(experts, store, pooling, threshold)
    (table,) = aligned.result(store).paths(ALIGNMENT_FILE)
    (pairs,) = aligned.result(store).paths(PAIRS_FILE)
    (triplets,) = aligned.result(store).paths(TRIPLETS_FILE)
    judged = pa.concat_tables([read_table(path).select(["human_set"]) for path in (pairs, triplets)])
    n_judged = judged.group_by("human_set").aggregate([([], "count_all")])
    measure = experts.params["measures"][0]
    trees = _rows(_of(stage, hierarchy.KIND), SUMMARY_TABLE, store)
    return {
        "sweep": stage.label,
        "concept_set": texts.params["concept_set"],
        "n_concepts": len(domains),
        "n_sentences": len(sentences.read_texts(texts, store)),
        "headline_threshold": threshold,
        "agreement": aligned.params["measures"][0],
        "human_pairs": {row["human_set"]: row["count_all"] for row in n_judged.to_pylist()},
        "human_sets": list(aligned.params["human"]),
        "alignment": [row for row in read_table(table).to_pylist() if is_shown(row, measure)],
        "reliability": _rows(_of(stage, reliability.KIND), RELIABILITY_FILE, store),
        "hierarchy": [row for row in trees if is_shown(row, measure)],
        "steering": _rows(_of(stage, steering.KIND), DOSES_FILE, store),
        "nearest": {
            "of": f"{read.label}, {pooling} pooling, AP > {threshold}",
            "concepts": {name: _nearest(matrix, name, list(domains)) for name in _examples(domains)},
        },
    }


def _of(stage: Stage, kind: str) -> list[Stage]:
    return [each for each in stage.inputs.values() if each.kind == kind]


def _rows(stages: list[Stage], name: str, store: Path) -> list[dict[str, Any]]:
    """Rows of a table from all the stages of a kind that the report reads."""
    found = [each.result(store).paths(name) for each in stages]
    return [row for (path,) in found for row in read_table(path).to_pylist()]


def _nearest_threshold(thresholds: list[float]) -> float:
    """The papers' threshold, or the one nearest to it."""
    return min(thresholds, key=lambda threshold: abs(threshold - HEADLINE_THRESHOLD))


def _similarities(
    experts: Stage, store: Path, pooling: str, threshold: float
) -> dict[tuple[str, str], float | None]:
    (path,) = experts.result(store).paths(FILE)
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT concept_a, concept_b, similarity "
            "FROM read_parquet($paths, hive_partitioning = false) "
            "WHERE pooling = $pooling AND threshold = $threshold AND measure = $measure "
            "AND layer IS NULL AND site IS NULL",
            {
                "paths": let_read(connection, [path]),
                "pooling": pooling,
                "threshold": threshold,
                "measure": experts.params["measures"][0],
            },
        ).fetchall()
    return {(first, second): value for first, second, value in rows}


def _examples(domains: dict[str, str | None]) -> list[str]:
    """A few concepts to show: the first of each domain that does not name the domain itself."""
    first = {domain: name for name, domain in reversed(domains.items()) if domain and name != domain}
    chosen = [name for name in domains if name in first.values()] or list(domains)
    return chosen[:_SHOWN_CONCEPTS]


def _nearest(
    matrix: dict[tuple[str, str], float | None], name: str, names: list[str]
) -> list[tuple[str, float]]:
    found = [
        (other, value)
        for other in names
        if (value := matrix.get((min(name, other), max(name, other)))) is not None
    ]
    return sorted(found, key=lambda pair: -pair[1])[:_NEAREST]


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("report")
