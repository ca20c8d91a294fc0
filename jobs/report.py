"""Stage `report`: a summary of the sweep and a picture of its similarity matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from jobs import sentences
from jobs.alignment import ALIGNMENT_FILE, PAIRS_FILE, TRIPLETS_FILE
from jobs.hierarchy import SUMMARY_FILE as SUMMARY_TABLE
from jobs.matrix_figure import draw_matrix
from jobs.reliability import RELIABILITY_FILE
from jobs.similarity import EXPERTS, FILE
from jobs.stage import Outcome, Stage
from jobs.steering import DOSES_FILE
from jobs.summary import is_shown
from storage.commit import write_bytes, write_json
from storage.place import let_read, read_bytes, read_table

KIND = "report"
SUMMARY_FILE = "summary.json"
MATRIX_FILE = "similarity.png"
HEADLINE_THRESHOLD = 0.5

_NEAREST = 4
_SHOWN_CONCEPTS = 6


def plan(
    name: str,
    aligned: Stage,
    compared: list[Stage],
    texts: Stage,
    checks: list[Stage],
    trees: list[Stage],
    steered: list[Stage],
) -> Stage:
    """The last stage of a sweep; `compared` holds the similarity stages, the first model's first,
    `checks` those of reliability, `trees` those of the hierarchy, `steered` those of steering."""
    experts = next(stage for stage in compared if stage.params["representation"] == EXPERTS)
    inputs = {"alignment": aligned, "similarity": experts, "sentences": texts}
    inputs |= {f"reliability {number}": stage for number, stage in enumerate(checks)}
    inputs |= {f"hierarchy {number}": stage for number, stage in enumerate(trees)}
    inputs |= {f"steering {number}": stage for number, stage in enumerate(steered)}
    return Stage(KIND, name, {"headline_threshold": HEADLINE_THRESHOLD}, _run, inputs)


def read_summary(stage: Stage, store: Path) -> dict[str, Any]:
    """The summary of a finished sweep."""
    (path,) = stage.result(store).paths(SUMMARY_FILE)
    summary: dict[str, Any] = json.loads(read_bytes(path))
    return summary


def picture(stage: Stage, store: Path) -> Path:
    """The picture of the similarity matrix."""
    (path,) = stage.result(store).paths(MATRIX_FILE)
    return path


def _run(stage: Stage, store: Path) -> Outcome:
    aligned, experts = stage.inputs["alignment"], stage.inputs["similarity"]
    texts = stage.inputs["sentences"]
    read = experts.inputs["experts"].inputs["activations"]
    domains = sentences.read_domains(texts, store)
    pooling = read.params["poolings"][0]
    threshold = _nearest_threshold(experts.params["thresholds"])
    matrix = _similarities(experts, store, pooling, threshold)
    described = f"{read.label}, {pooling} pooling, AP > {threshold}"
    (table,) = aligned.result(store).paths(ALIGNMENT_FILE)
    (pairs,) = aligned.result(store).paths(PAIRS_FILE)
    (triplets,) = aligned.result(store).paths(TRIPLETS_FILE)
    judged = pa.concat_tables([read_table(path).select(["human_set"]) for path in (pairs, triplets)])
    n_judged = judged.group_by("human_set").aggregate([([], "count_all")])
    measure = experts.params["measures"][0]
    trees = _rows(stage, "hierarchy", SUMMARY_TABLE, store)
    summary = {
        "sweep": stage.label,
        "concept_set": texts.params["concept_set"],
        "n_concepts": len(domains),
        "n_sentences": len(sentences.read_texts(texts, store)),
        "headline_threshold": threshold,
        "agreement": aligned.params["measures"][0],
        "human_pairs": {row["human_set"]: row["count_all"] for row in n_judged.to_pylist()},
        "human_sets": list(aligned.params["human"]),
        "alignment": [row for row in read_table(table).to_pylist() if is_shown(row, measure)],
        "reliability": _rows(stage, "reliability", RELIABILITY_FILE, store),
        "hierarchy": [row for row in trees if is_shown(row, measure)],
        "steering": _rows(stage, "steering", DOSES_FILE, store),
        "nearest": {
            "of": described,
            "concepts": {name: _nearest(matrix, name, list(domains)) for name in _examples(domains)},
        },
    }
    folder = stage.folder(store)
    files = [
        write_bytes(folder, MATRIX_FILE, draw_matrix(matrix, domains, described)),
        write_json(folder, SUMMARY_FILE, summary),
    ]
    return Outcome(files)


def _rows(stage: Stage, kind: str, name: str, store: Path) -> list[dict[str, Any]]:
    """Rows of a table from all the stages of a kind that the report reads."""
    found = [each.result(store).paths(name) for each in stage.inputs.values() if each.kind == kind]
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
    from jobs.cli import run_file

    run_file("report")
