"""The rows of one study, and the model and pooling that the page shows in detail."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Any

import duckdb

from alignment.statistics.correlation import MIN_PAIRS
from cluster.models.weights import is_random_init
from jobs.page.study import HEADLINE_THRESHOLD, Study
from jobs.results.rows import Row, group_rows
from jobs.similarity import EXPERTS
from storage import sql
from storage.store.activation_files import POOLINGS
from storage.store.manifest import Manifest

_VIEWS = """
SELECT model, revision, concept_set, pooling, measure, threshold, top, min(run) AS run
FROM similarity
WHERE representation = $experts AND layer IS NULL AND site IS NULL AND measure != 'containment'
GROUP BY ALL
"""

_HUMAN_SETS = """
WITH named AS (SELECT concept FROM concepts WHERE concept_set = $concept_set)
SELECT human_set, count(*) AS n
FROM human_pairs
WHERE concept_a IN (FROM named) AND concept_b IN (FROM named)
GROUP BY human_set HAVING n >= $min_pairs
ORDER BY n DESC, human_set
"""

_COLUMN = """
FROM duckdb_columns() WHERE NOT internal AND (table_name, column_name) = ($table, $column)
"""

_STEP = re.compile(r"step[-_]?(\d+)$")

model_key = itemgetter("model", "revision", "pooling")
"""The model and pooling of a row."""


@dataclass(frozen=True)
class DetailView:
    """A model and a pooling, and how expert sets are selected and compared."""

    model: str
    revision: str
    concept_set: str
    pooling: str
    measure: str
    threshold: float | None
    top: int | None

    @property
    def label(self) -> str:
        return f"{self.model}@{self.revision} ({self.pooling} pooling)"

    @property
    def measure_name(self) -> str:
        """The similarity measure as written in a sentence."""
        return self.measure.capitalize() if self.measure in ("jaccard", "dice") else self.measure

    @property
    def criterion(self) -> str:
        """What makes a neuron an expert."""
        return f"AP > {self.threshold}" if self.threshold is not None else f"the {self.top} highest APs"

    @property
    def settings(self) -> str:
        """Model, pooling and criterion, for captions."""
        return f"{self.model}@{self.revision}, {self.pooling} pooling, experts: {self.criterion}"

    @property
    def parameters(self) -> Row:
        return {name: getattr(self, name) for name in ("model", "revision", "concept_set", "pooling")}


class StudyData:
    """Queries on the tables of one study, and the view that the page shows in detail."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, study: Study, number: int = 0) -> None:
        self.connection = connection
        self.study = study
        self.runs = list(study.runs.values())
        self.number = number

    def query(self, query: str, **parameters: Any) -> list[Row]:
        """Rows of a query. Parameters that are not passed are those of the view, `$human_set` and
        `$experts`."""
        (statement,) = self.connection.extract_statements(query)
        missing = statement.named_parameters - parameters.keys()
        if missing:
            defaults = {**asdict(self.view), "human_set": self.human_set, "experts": EXPERTS}
            parameters |= {name: defaults[name] for name in missing}
        relation = self.connection.sql(query, params=parameters)
        rows: list[Row] = [] if relation is None else relation.to_arrow_table().to_pylist()
        return rows

    def named_query(self, name: str, **parameters: Any) -> list[Row]:
        """Rows of a query in storage/sql."""
        return self.query(sql.read_query(name), **parameters)

    def has(self, table: str, column: str) -> bool:
        """Whether the store has a table with the column."""
        return bool(self.query(_COLUMN, table=table, column=column))

    def stages(self, kind: str) -> list[Manifest]:
        """The study's finished stages of a kind."""
        return [stage for stage in self.runs if stage.kind == kind]

    @cached_property
    def views(self) -> list[DetailView]:
        """All models and poolings with similarities: trained ones first, later checkpoints first."""
        rows = self.query(_VIEWS, experts=EXPERTS)
        groups = group_rows(rows, "model", "revision", "concept_set", "pooling")
        reported = {
            stage.fingerprint: stage.params["measures"][0]
            for stage in self.stages("similarity")
            if stage.params.get("measures")
        }
        views = []
        for rows in groups.values():
            measure = reported.get(rows[0]["run"]) or min(row["measure"] for row in rows)
            best = min((row for row in rows if row["measure"] == measure), key=_distance_from_headline)
            views.append(DetailView(**{name: best[name] for name in best if name != "run"}))
        return sorted(views, key=self._rank)

    def _rank(self, view: DetailView) -> tuple[Any, ...]:
        stages = sorted(self.stages("activations"), key=attrgetter("finished"))
        models = [stage.params.get("model") for stage in stages]
        return (
            is_random_init(view.revision),
            models.index(view.model) if view.model in models else len(models),
            -(training_step(view.revision) or 0),
            view.revision,
            POOLINGS.index(view.pooling),
        )

    @property
    def view(self) -> DetailView:
        """The view shown in detail."""
        return self.views[self.number]

    @cached_property
    def concept_set(self) -> str:
        """The identifier of the concept set."""
        if self.views:
            return self.view.concept_set
        first = min(self.stages("sentences"), key=attrgetter("finished"))
        return str(first.params["concept_set"])

    @cached_property
    def domains(self) -> dict[str, str | None]:
        """The domain of every concept, in the order of the set."""
        rows = self.query("FROM concepts WHERE concept_set = $set", set=self.concept_set)
        return {row["concept"]: row["domain"] for row in rows}

    @cached_property
    def human_sets(self) -> dict[str, int]:
        """Human sets with enough rated pairs of the concepts, and their counts; the largest first."""
        rows = self.query(_HUMAN_SETS, min_pairs=MIN_PAIRS, concept_set=self.concept_set)
        return {row["human_set"]: row["n"] for row in rows}

    @property
    def human_set(self) -> str | None:
        """The human set used in the detailed sections."""
        return next(iter(self.human_sets), None)

    @cached_property
    def failed_models(self) -> list[str]:
        """Models in the sweep file without results; revision patterns are not resolved here."""
        finished = {
            (stage.params["model"], stage.params["revision"]) for stage in self.stages("activations")
        }
        return [
            f"{model['id']}@{revision}"
            for model in (self.study.config or {}).get("models", [])
            for revision in model["revisions"]
            if (model["id"], revision) not in finished
            and revision != "all"
            and not set("*?[") & set(revision)
        ]


def explain_missing_similarities(data: StudyData) -> str:
    """Why a store has no similarities."""
    if len(data.domains) < 2:
        return "No similarities: the set has only one concept."
    return "No similarities in this store: run the sweep to completion (`neuralign run FILE`)."


def by_step(row: Mapping[str, Any]) -> tuple[str, float]:
    """Sort key: checkpoints by model and training step, other revisions last."""
    step = training_step(row["revision"] or "")
    return row["model"] or "", math.inf if step is None else step


def training_step(revision: str) -> int | None:
    """The training step in a revision's name."""
    match = _STEP.match(revision)
    return int(match[1]) if match else None


def _distance_from_headline(row: Row) -> tuple[bool, float, int]:
    threshold = row["threshold"]
    return threshold is None, abs((threshold or 0) - HEADLINE_THRESHOLD), row["top"] or 0
