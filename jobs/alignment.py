"""Stage `alignment`: agreement of every representation's similarities with human judgments.

All representations of a sweep are compared on the same pairs, with the same resamples.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from alignment.arrays import Floats, Ints
from alignment.statistics.correlation import MIN_PAIRS, benjamini_hochberg, correlate, mantel_test
from alignment.statistics.matrix_correlation import (
    MATRIX_MEASURES,
    AgreementMeasure,
    correlate_matrices,
    matrix_permutation_p,
)
from alignment.statistics.rank_correlation import lower_noise_ceiling
from alignment.statistics.resampling import IntervalMethod, ResampledStatistic
from alignment.statistics.triplets import odd_one_out_accuracy, odd_one_out_p_value
from jobs.engine.stage import Stage, StageOutput
from jobs.representations.embeddings import COSINE, WORD_VECTORS
from jobs.representations.sentence_words import BAG_OF_WORDS
from jobs.sentences import read_domains
from jobs.similarity import is_control
from jobs.sources.human_judgments import Judgments
from storage import sql, tables
from storage.store.commit import FileRecord, write_table

KIND = "alignment"
TRIPLETS = "triplets"
FROM_RATERS = "its raters: each with the mean of the others"
"""Source of a noise ceiling on the same pairs; others are published, of all pairs of a human set."""

ALL_PAIRS = "all"
SUBSETS = WITHIN_DOMAINS, BETWEEN_DOMAINS, ONE_TOKEN = (
    "within domains",
    "between domains",
    "one-token words",
)
"""Subsets of the pairs that are compared with whole models."""

_Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows of the tables `alignment` and `alignment_differences`."""


@dataclass(frozen=True)
class AgreementSettings:
    """How agreement, its intervals and its p values are computed."""

    measures: list[AgreementMeasure]
    method: IntervalMethod
    resamples: int
    seed: int


@dataclass(frozen=True)
class Comparison:
    """The pairs (or triplets) of a human set among the concepts that all representations have.

    `members` are concept indices, of shape (pairs, 2) or (triplets, 3); `scores` are empty for triplets.
    A comparison of a `subset` of the pairs is only made of representations of a whole model, and its
    concepts are permuted within their `groups`, so that the permuted pairs are of the same kind.
    """

    judgments: Judgments
    settings: AgreementSettings
    measure: AgreementMeasure | None  # None for triplets
    concepts: list[str]
    members: Ints
    scores: Floats
    subset: str = ALL_PAIRS
    groups: Ints | None = None

    def estimate(self, matrices: Floats) -> ResampledStatistic:
        """Agreement of similarity matrices of shape (representations, concepts, concepts)."""
        method, resamples, seed = self.settings.method, self.settings.resamples, self.settings.seed
        first, second, *odd = self.members.T
        similar = matrices[:, first, second]
        if self.measure is None:
            others = np.stack([matrices[:, first, odd[0]], matrices[:, second, odd[0]]], axis=2)
            return odd_one_out_accuracy(similar, others, self.members, method, resamples, seed)
        if self.measure in MATRIX_MEASURES:
            return correlate_matrices(self.measure, *self._complete_matrices(matrices))
        return correlate(similar, self.scores, first, second, self.measure, method, resamples, seed)

    def p_values(self, matrices: Floats) -> Floats:
        """Permutation p value of each matrix's agreement; NaN where agreement is undefined."""
        return np.array([self._p_value(matrix) for matrix in matrices])

    def _p_value(self, matrix: Floats) -> float:
        resamples, seed = self.settings.resamples, self.settings.seed
        if self.measure is None:
            return odd_one_out_p_value(matrix, self.members, resamples, seed)
        if self.measure in MATRIX_MEASURES:
            (complete,), scores = self._complete_matrices(matrix[None])
            return matrix_permutation_p(self.measure, complete, scores, resamples, seed)
        first, second = self.members.T
        return mantel_test(
            matrix, self.scores, first, second, self.measure, resamples, seed, self.groups
        )

    def _complete_matrices(self, matrices: Floats) -> tuple[Floats, Floats]:
        """Similarities and scores of the rated concepts, all pairs of which are rated."""
        rated, indices = np.unique(self.members, return_inverse=True)
        first, second = indices.reshape(self.members.shape).T
        scores = np.zeros((len(rated), len(rated)))
        scores[first, second] = scores[second, first] = self.scores
        return matrices[:, rated[:, None], rated], scores


def plan(
    name: str,
    sentences: Stage,
    similarity_stages: list[Stage],
    human_sets: list[Judgments],
    settings: AgreementSettings,
) -> Stage:
    """The stage that compares all representations of a sweep with all its human data."""
    params = {
        "human": {judgments.name: judgments.identity for judgments in human_sets},
        "measures": list(settings.measures),
        "interval": settings.method,
        "resamples": settings.resamples,
        "seed": settings.seed,
    }
    inputs = {f"similarity {number}": stage for number, stage in enumerate(similarity_stages)}

    def run(stage: Stage, store: Path) -> StageOutput:
        return _run(stage, store, human_sets, settings)

    return Stage(KIND, name, params, run, {"sentences": sentences, **inputs})


def _run(
    stage: Stage, store: Path, human_sets: list[Judgments], settings: AgreementSettings
) -> StageOutput:
    similarity_stages = [value for name, value in stage.inputs.items() if name != "sentences"]
    paths = [
        path
        for similarity in similarity_stages
        for path in similarity.read_manifest(store).paths(tables.SIMILARITY.file)
    ]
    references = _find_references(similarity_stages)
    domains = read_domains(stage.inputs["sentences"], store)
    one_token = _find_one_token_words(similarity_stages, store)
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    notes = []
    with duckdb.connect() as connection:
        sql.scan_parquet(connection, paths).create("similarity")
        for judgments in human_sets:
            notes += judgments.notes
            concepts = create_common_concepts(connection, judgments.concepts)
            comparisons, reasons = make_comparisons(judgments, concepts, settings)
            notes += reasons
            subsets = [make_subsets(comparison, domains, one_token) for comparison in comparisons]
            for comparison in (*comparisons, *chain.from_iterable(subsets)):
                for found, compared in _make_rows(connection, comparison, references):
                    rows += found
                    differences += compared
    correct_p_values(rows)
    folder = stage.folder(store)
    files = _write_judgments(folder, human_sets)
    for table, content in ((tables.ALIGNMENT, rows), (tables.ALIGNMENT_DIFFERENCES, differences)):
        files.append(write_table(folder, table.file, pa.Table.from_pylist(content, table.schema)))
    return StageOutput(files, notes)


def correct_p_values(rows: Sequence[dict[str, Any]]) -> None:
    """Set `q` of `alignment` rows: `p` corrected over all rows of a human set and statistic."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["human_set"], row["agreement"]), []).append(row)
    for group in groups.values():
        p = np.array([row["p"] for row in group], np.float64)
        for row, q in zip(group, benjamini_hochberg(p), strict=True):
            row["q"] = finite_or_none(q)


def _find_references(similarity_stages: list[Stage]) -> list[str]:
    """Families that all others are compared with: the first word vectors, and the bag of words."""
    representations = [stage.params.get("representation") for stage in similarity_stages]
    return [
        _family_name(similarity_stages[representations.index(reference)].params)
        for reference in (WORD_VECTORS, BAG_OF_WORDS)
        if reference in representations
    ]


def _write_judgments(folder: Path, human_sets: list[Judgments]) -> list[FileRecord]:
    pairs = [
        {"human_set": judgments.name, "concept_a": first, "concept_b": second, "score": score}
        for judgments in human_sets
        for (first, second), score in judgments.scores.items()
    ]
    triplets = [
        {"human_set": judgments.name, "number": n, "concept_a": first, "concept_b": second, "odd": odd}
        for judgments in human_sets
        for n, (first, second, odd) in enumerate(judgments.triplets)
    ]
    dropped = [
        {"human_set": judgments.name, "number": n, "words": list(item.words), "reason": item.reason}
        for judgments in human_sets
        for n, item in enumerate(judgments.dropped)
    ]
    return [
        write_table(folder, table.file, pa.Table.from_pylist(rows, table.schema))
        for table, rows in (
            (tables.HUMAN_PAIRS, pairs),
            (tables.HUMAN_TRIPLETS, triplets),
            (tables.HUMAN_DROPPED, dropped),
        )
    ]


def create_common_concepts(connection: duckdb.DuckDBPyConnection, judged: set[str]) -> list[str]:
    """Create the table `common`: the judged concepts that every representation in `similarity` has."""
    connection.execute("DROP TABLE IF EXISTS judged")
    connection.execute("DROP TABLE IF EXISTS common")
    sql.create_table(connection, "judged", {"concept": pa.array(sorted(judged), pa.string())})
    connection.sql(sql.read_query("common_concepts")).create("common")
    return [name for (name,) in connection.sql("FROM common ORDER BY concept").fetchall()]


def make_comparisons(
    judgments: Judgments, concepts: list[str], settings: AgreementSettings
) -> tuple[list[Comparison], list[str]]:
    """The comparisons with a human set, and the reasons why others are not possible."""
    index = {name: number for number, name in enumerate(concepts)}
    groups = [group for group in judgments.groups if all(name in index for name in group)]
    reasons = reasons_not_comparable(judgments, groups, settings.measures)
    if reasons_not_comparable(judgments, groups, []):
        return [], reasons
    members = np.array([[index[name] for name in group] for group in groups])
    if judgments.are_triplets:
        return [Comparison(judgments, settings, None, concepts, members, np.zeros(0))], []
    scores = np.array([judgments.scores[first, second] for first, second in groups])
    return [
        Comparison(judgments, settings, measure, concepts, members, scores)
        for measure in settings.measures
        if not (reasons and measure in MATRIX_MEASURES)
    ], reasons


def make_subsets(
    comparison: Comparison, domains: Mapping[str, str | None], one_token: Collection[str]
) -> Iterator[Comparison]:
    """Comparisons of the pairs of one domain, of two domains, and of one-token words, where their
    correlation is defined. A pair with a concept without a domain is in neither of the first two.
    Measures that need all pairs have no subsets."""
    if comparison.measure is None or comparison.measure in MATRIX_MEASURES:
        return
    numbers = {domain: number for number, domain in enumerate(dict.fromkeys(domains.values()))}
    domain = np.array([numbers[domains[name]] for name in comparison.concepts])
    has_domain = np.array([domains[name] is not None for name in comparison.concepts])
    is_one_token = np.array([name in one_token for name in comparison.concepts])
    first, second = comparison.members.T
    have_domains, are_alike = has_domain[first] & has_domain[second], domain[first] == domain[second]
    subsets = {
        WITHIN_DOMAINS: (have_domains & are_alike, domain),
        BETWEEN_DOMAINS: (have_domains & ~are_alike, domain),
        ONE_TOKEN: (is_one_token[first] & is_one_token[second], is_one_token.astype(np.int64)),
    }
    for name, (is_member, groups) in subsets.items():
        scores = comparison.scores[is_member]
        if len(scores) >= MIN_PAIRS and np.ptp(scores) > 0:
            members = comparison.members[is_member]
            yield replace(comparison, members=members, scores=scores, subset=name, groups=groups)


def _find_one_token_words(similarity_stages: list[Stage], store: Path) -> set[str]:
    """The concepts whose word is one token of every model."""
    n_tokens: dict[str, set[int]] = {}
    for similarity in similarity_stages:
        if "experts" in similarity.inputs and not is_control(similarity):
            table = (
                similarity.inputs["experts"]
                .inputs["activations"]
                .read_table(store, tables.CONCEPT_TOKENS.file)
            )
            for row in table.to_pylist():
                n_tokens.setdefault(row["concept"], set()).add(row["n_tokens"])
    return {name for name, counts in n_tokens.items() if counts == {1}}


def reasons_not_comparable(
    judgments: Judgments, groups: Sequence[tuple[str, ...]], measures: Sequence[AgreementMeasure]
) -> list[str]:
    """Why agreement with these pairs or triplets of a human set is undefined: by all measures, or by
    those that need all pairs of their concepts. Empty if it is defined by all."""
    if len(groups) < MIN_PAIRS:
        count = judgments.describe_count(len(groups))
        return [f"{judgments.name}: {count} to compare with; {MIN_PAIRS} are needed"]
    if judgments.are_triplets:
        return []
    if len({judgments.scores[a, b] for a, b in groups}) == 1:
        return [f"{judgments.name}: all scores are equal; correlation is undefined"]
    n = len({name for group in groups for name in group})
    n_all = n * (n - 1) // 2
    return [
        f"{judgments.name}: {measure} needs a score of every pair of concepts; {len(groups):,} of "
        f"{n_all:,} have one"
        for measure in measures
        if measure in MATRIX_MEASURES and len(groups) < n_all
    ]


def _make_rows(
    connection: duckdb.DuckDBPyConnection, comparison: Comparison, references: list[str]
) -> list[_Rows]:
    """Rows of the `alignment` table, family by family, and their differences from the references."""
    families = connection.sql(sql.read_query("families")).to_arrow_table().to_pylist()
    queries = [(family, connection.cursor()) for family in families]
    found: dict[str, ResampledStatistic] = {}
    is_subset = comparison.subset != ALL_PAIRS
    for query in queries:
        family = query[0]
        if family["measure"] == COSINE and (name := _family_name(family)) in references:
            _, matrices = load_similarity_matrices(*query, comparison.concepts, is_subset)
            estimates = comparison.estimate(matrices)
            if np.isfinite(estimates.values[0]):
                found[name] = estimates
    estimates_by_reference = {name: found[name] for name in references if name in found}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [
            pool.submit(_family_rows, *query, comparison, estimates_by_reference) for query in queries
        ]
        return [future.result() for future in futures]


def _family_name(family: Mapping[str, Any]) -> str:
    if family["representation"] == BAG_OF_WORDS:
        return BAG_OF_WORDS
    return f"{family['model']} {family['representation']}"


def _family_rows(
    family: dict[str, Any],
    connection: duckdb.DuckDBPyConnection,
    comparison: Comparison,
    references: Mapping[str, ResampledStatistic],
) -> _Rows:
    is_subset = comparison.subset != ALL_PAIRS
    keys, matrices = load_similarity_matrices(family, connection, comparison.concepts, is_subset)
    if not keys:
        return [], []
    estimates = comparison.estimate(matrices)
    p = comparison.p_values(matrices)
    ceiling, ceiling_source = _noise_ceiling(comparison)
    rows, differences = [], []
    for index, representation_key in enumerate(keys):
        interval = estimates.interval(index)
        undefined = representation_key.pop("undefined")
        row = dict.fromkeys(tables.ALIGNMENT.schema.names) | representation_key
        row |= {
            "human_set": comparison.judgments.name,
            "agreement": comparison.measure or TRIPLETS,
            "subset": comparison.subset,
            "n_pairs": len(comparison.members),
            "n_undefined": _count_undefined(undefined, comparison),
            "n_concepts": len(np.unique(comparison.members)),
            "rho": finite_or_none(interval.value),
            "ci_low": interval.low,
            "ci_high": interval.high,
            "ci_by": comparison.settings.method,
            "p": finite_or_none(p[index]),
            "ceiling": ceiling,
            "ceiling_source": ceiling_source,
        }
        rows.append(row)
        if row["rho"] is None:
            continue
        is_reference = family["measure"] == COSINE
        for reference, reference_estimates in references.items():
            if is_reference and reference == _family_name(family):
                continue
            interval = estimates.difference(index, reference_estimates, 0)
            difference = {
                "reference": reference,
                "difference": interval.value,
                "difference_low": interval.low,
                "difference_high": interval.high,
            }
            differences.append(
                {field.name: row[field.name] for field in tables.ALIGNMENT.key} | difference
            )
            if reference == next(iter(references)):
                row |= difference
    return rows, differences


def load_similarity_matrices(
    family: dict[str, Any],
    connection: duckdb.DuckDBPyConnection,
    concepts: list[str],
    whole_model: bool = False,
) -> tuple[list[dict[str, Any]], Floats]:
    """Key columns of every representation of a family (with `undefined`), and symmetric similarity
    matrices of shape (representations, concepts, concepts); optionally only those of no single layer or
    site."""
    relation = connection.sql(sql.read_query("matrices"), params=family)
    if whole_model:
        relation = relation.filter("layer IS NULL AND site IS NULL").order("threshold, top")
    table: pa.Table = relation.to_arrow_table()
    n = len(concepts)
    upper = np.triu_indices(n, 1)
    matrices = np.zeros((table.num_rows, n, n))
    for matrix, row in zip(matrices, table.column("similarities"), strict=True):
        matrix[upper] = row.values.to_numpy()
    matrices += matrices.transpose(0, 2, 1)
    return table.drop_columns("similarities").to_pylist(), matrices


def _count_undefined(undefined: list[bool], comparison: Comparison) -> int | None:
    """The number of rated pairs without a similarity; None for triplets."""
    if comparison.measure is None:
        return None
    n = len(comparison.concepts)
    matrix = np.zeros((n, n), np.bool_)
    matrix[np.triu_indices(n, 1)] = undefined
    return int(matrix[comparison.members.min(axis=1), comparison.members.max(axis=1)].sum())


def _noise_ceiling(comparison: Comparison) -> tuple[float | None, str | None]:
    """The noise ceiling and its source: the raters of the same pairs if the data has them, else as
    published; none for a subset, whose scores have another range."""
    judgments, concepts = comparison.judgments, comparison.concepts
    if comparison.subset != ALL_PAIRS:
        return None, None
    if judgments.raters and comparison.measure and comparison.measure not in MATRIX_MEASURES:
        pairs = [(concepts[first], concepts[second]) for first, second in comparison.members]
        ratings = np.array([judgments.raters[pair] for pair in pairs]).T
        ceiling = finite_or_none(lower_noise_ceiling(comparison.measure, ratings))
        return ceiling, FROM_RATERS
    if judgments.ceiling is None or comparison.measure not in ("spearman", None):
        return None, None
    return judgments.ceiling.value, judgments.ceiling.source


def finite_or_none(value: Any) -> float | None:
    """A number for a table, which has null for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("alignment")
