"""Scoring at the end of a pass: neither threads nor the device, nor a device whose memory runs out, may
change a row; only results may leave the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from alignment.arrays import Floats, Ints
from alignment.expertise import scoring_torch, statistics_torch
from alignment.expertise.device_chunks import DeviceChunks
from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import (
    labels_against_others,
    labels_against_rest,
    labels_matched_by_length,
    split_half,
)
from alignment.expertise.ranks_torch import rank_sentences
from cluster.activations.pass_request import SiteValues
from jobs.scoring import layer_scorer
from jobs.scoring.block_scores import score_block
from jobs.scoring.labelings import Labeling
from jobs.scoring.layer_scorer import LayerScorer
from jobs.scoring.state_means import StateMeans
from jobs.scoring.top_sentences import find_top_sentences, find_top_sentences_torch
from storage.store.commit import FileRecord

N_SENTENCES, N_CONCEPTS, N_NEURONS = 60, 5, 40
MISSING = (0, 1, 7, *range(3, N_SENTENCES, N_CONCEPTS))
"""Sentences without a state at the word: some of concepts 0, 1 and 2, and all of concept 3."""


def make_labelings(n_sentences: int, n_concepts: int) -> list[Labeling]:
    """The experts with permutations, length-matched negatives, a half of the sentences, and concepts
    that share sentences."""
    ids = np.arange(n_sentences)
    members = ids % n_concepts
    half = np.flatnonzero(split_half(ids, members, n_sentences, 0) == 0)
    everything = labels_against_others(ids, members, n_sentences, n_concepts)
    lengths = np.random.default_rng(0).integers(3, 30, n_sentences)
    labels = [
        (everything, ids),
        (labels_matched_by_length(ids, members, lengths, n_concepts), ids),
        (labels_against_others(np.arange(len(half)), members[half], len(half), n_concepts), half),
    ]
    shared_ids, sharing = np.nonzero(np.random.default_rng(0).random((len(half), n_concepts)) < 0.3)
    labels.append((labels_against_rest(shared_ids, sharing, len(half), n_concepts), half))
    names = [f"concept {number}" for number in range(n_concepts)]
    params = {
        **dict.fromkeys(("model", "revision", "concept_set"), "m"),
        **{"prevalence": 0.3, "floor": 0.4, "scores": ["ap", "auroc"], "permutations": 2},
    }
    controls = [
        {"permutations": 0, "scores": kept, "control": name}
        for name, kept in (("1", []), ("2", ["auroc"]), ("3", []))
    ]
    return [
        Labeling({**params, **more}, names, each, of, permute_labels(each, 0 if more else 2, 0))
        for (each, of), more in zip(labels, [{}, *controls], strict=True)
    ]


def make_sites() -> list[SiteValues]:
    """Two sites with ties, and hidden states, which some sentences lack by one pooling."""
    random = np.random.default_rng(0)
    values = random.standard_normal((2, N_NEURONS, N_SENTENCES)).round(1).astype(np.float16)
    states = random.standard_normal((3, 24, N_SENTENCES)).astype(np.float32)
    neurons = [
        SiteValues(pooling, "mlp.hidden", torch.from_numpy(each))
        for pooling, each in zip(("max", "concept"), values, strict=True)
    ]
    hidden = [
        SiteValues(pooling, "residual", torch.from_numpy(each), MISSING if pooling == "concept" else ())
        for pooling, each in zip(("mean", "last", "concept"), states, strict=True)
    ]
    return [*hidden[:1], *neurons, *hidden[1:]]


def make_scorer(folder: Path) -> LayerScorer:
    ids = np.arange(N_SENTENCES)
    return LayerScorer(folder, make_labelings(N_SENTENCES, N_CONCEPTS), ids, ids % N_CONCEPTS)


def score(folder: Path, threads: int = 1, sites: Sequence[SiteValues] | None = None) -> list[FileRecord]:
    files = make_scorer(folder)(3, sites or make_sites(), threads)
    return sorted(files, key=lambda record: record.path)


def on_a_device() -> Any:
    """Takes host memory for that of a device."""
    return patch.object(layer_scorer, "_is_in_host_memory", lambda _: False)


def test_threads_do_not_change_a_byte(tmp_path: Path) -> None:
    """A node with other cores would write other digits, or the rows of one part twice."""
    with patch.object(layer_scorer, "_PART_UNITS", 7):
        expected = score(tmp_path / "1/stage")
        # experts, three controls, chance counts, top sentences, states; AP, AUROC and a control's AUROC
        # of two sites
        assert len(expected) == 13
        for threads in (2, 5):
            assert score(tmp_path / str(threads) / "stage", threads) == expected


def test_all_threads_score(tmp_path: Path) -> None:
    """A node with 64 cores that scores on one of them."""
    together = threading.Barrier(3, timeout=60)

    def meet(block: Any, first: int, labeling: Labeling) -> Any:
        if first < 30 and not labeling.params.get("control"):
            together.wait()
        return score_block(block, first, labeling)

    with patch.object(layer_scorer, "_PART_UNITS", 10), patch.object(layer_scorer, "score_block", meet):
        score(tmp_path, threads=3)


def test_a_failed_part_ends_scoring(tmp_path: Path) -> None:
    """The error of a part must not be lost, nor the other parts be scored first."""
    begun = []

    def fail(block: Any, first: int, labeling: Labeling) -> Any:
        begun.append(first)
        time.sleep(0.01)
        raise MemoryError

    with (
        patch.object(layer_scorer, "_PART_UNITS", 1),
        patch.object(layer_scorer, "score_block", fail),
        pytest.raises(MemoryError),
    ):
        score(tmp_path)
    assert len(begun) < 2 * N_NEURONS


def read_rows(folder: Path) -> dict[str, pa.Table]:
    return {
        str(file.relative_to(folder)): pq.read_table(file, partitioning=None)
        for file in sorted(folder.rglob("*.parquet"))
    }


def assert_same_rows(actual: Path, expected: Path) -> None:
    tables, expected_tables = read_rows(actual), read_rows(expected)
    assert tables.keys() == expected_tables.keys()
    for name, table in expected_tables.items():
        for column, values in zip(tables[name].columns, table.columns, strict=True):
            if pa.types.is_floating(values.type):
                np.testing.assert_allclose(column, values, rtol=1e-12, atol=1e-12, err_msg=name)
            else:
                assert column.equals(values), name


def test_a_device_gives_the_rows_of_the_cpu(tmp_path: Path) -> None:
    """On a GPU all labelings are scored from one sort: rows of another labeling, or other digits."""
    score(tmp_path / "cpu")
    with on_a_device():
        score(tmp_path / "device")
    assert_same_rows(tmp_path / "device", tmp_path / "cpu")


@pytest.mark.parametrize("room", [1, 3, 16])
def test_a_device_without_room_scores_fewer_rows_at_a_time(tmp_path: Path, room: int) -> None:
    """A card with little free memory would fail for good: chunks of a fixed size never fit it."""
    score(tmp_path / "cpu")

    def limited(call: Callable[..., Any], rows_of: Callable[..., int]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if rows_of(*arguments) > room:
                raise torch.OutOfMemoryError
            return call(*arguments)

        return run

    scorer = make_scorer(tmp_path / "device")
    with (
        on_a_device(),
        patch.object(
            scoring_torch,
            "rank_sentences",
            # Triton is tried with two neurons.
            limited(rank_sentences, lambda values, *_: len(values) - (len(values) == 2)),
        ),
        patch(
            "alignment.expertise.statistics_torch._sum_pool",
            limited(statistics_torch._sum_pool, lambda values, _: len(values)),
        ),
        patch(
            "alignment.expertise.statistics_torch._statistics",
            limited(statistics_torch._statistics, lambda *arguments: len(arguments[-1])),
        ),
        patch.object(
            StateMeans, "__call__", limited(StateMeans.__call__, lambda _, states: len(states))
        ),
    ):
        scorer(3, make_sites(), 1)
    assert_same_rows(tmp_path / "device", tmp_path / "cpu")
    for work in ("scores", "means of the negatives", "activations on positives", "mean hidden states"):
        (note,) = [note for note in scorer.notes if note.startswith(f"{work}: ")]
        assert "the device ran out of memory" in note


def test_memory_that_runs_out_for_one_row_is_an_error() -> None:
    """Instead of an endless loop."""

    def process(rows: slice) -> int:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        DeviceChunks().run("scores", 7, 7, process)


def test_rows_in_chunks_are_complete_and_in_order() -> None:
    """Rows lost or counted twice where a chunk failed, and a size that is tried in vain again."""
    chunks, tried = DeviceChunks(), []

    def process(rows: slice) -> list[int]:
        tried.append(rows.stop - rows.start)
        if tried[-1] > 3:
            raise torch.OutOfMemoryError
        return list(range(rows.start, rows.stop))

    for _ in range(2):
        assert list(chain(*chunks.run("scores", 11, 8, process))) == list(range(11))
    assert tried[:3] == [8, 4, 2]
    assert set(tried[3:]) <= {1, 2}
    assert chunks.run("other", 0, 8, process) == []


def test_a_reason_to_score_without_triton_is_noted(tmp_path: Path) -> None:
    """Scores that take twice as long on one node of many, without a word."""
    scorer = make_scorer(tmp_path)
    with on_a_device(), patch.dict("sys.modules", {"alignment.expertise.ap_triton": None}):
        scorer(3, make_sites(), 1)
    (note,) = scorer.notes
    assert note.startswith("scores were computed by torch, which is slower than Triton: ")
    assert "ap_triton" in note


def test_lack_of_memory_is_no_reason_against_triton(tmp_path: Path) -> None:
    """A card that was full for a moment would score slowly until the worker ends."""
    with (
        on_a_device(),
        patch.object(scoring_torch, "rank_sentences", side_effect=torch.OutOfMemoryError),
        pytest.raises(torch.OutOfMemoryError),
    ):
        score(tmp_path)


def _bytes_to_host(call: Callable[[], object]) -> int:
    """Bytes of all tensors that a call copies to host memory."""
    total = 0
    cpu = torch.Tensor.cpu

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.nbytes
        return cpu(tensor)

    with patch.object(torch.Tensor, "cpu", counted):
        call()
    return total


def test_only_results_leave_the_device(tmp_path: Path) -> None:
    """Copies of activations, or of the scores of all neurons, would take longer than scoring."""

    def copied(folder: Path, n_constant: int) -> int:
        """With further neurons that are constant, so that none of them is an expert."""
        constant = torch.ones(n_constant, N_SENTENCES, dtype=torch.float16)
        sites = [
            site._replace(values=torch.cat([site.values, constant]))
            if site.site == "mlp.hidden"
            else site
            for site in make_sites()
        ]
        scorer = make_scorer(folder)
        scorer.labelings = [
            replace(labeling, params={**labeling.params, "scores": []}) for labeling in scorer.labelings
        ]
        with on_a_device():
            return _bytes_to_host(lambda: scorer(3, sites, 1))

    few = copied(tmp_path / "few", 0)
    assert copied(tmp_path / "many", 4000) == few
    rows = {name: len(table) for name, table in read_rows(tmp_path / "few").items()}
    n_experts = sum(count for name, count in rows.items() if name.endswith("experts/L03.parquet"))
    (n_top,) = (count for name, count in rows.items() if "top-sentences" in name)
    (n_chance,) = (count for name, count in rows.items() if "chance" in name)
    n_states = 24 * (2 * N_CONCEPTS + N_CONCEPTS - 1)
    # indices and scores, statistics; sentences and values; highest AP and counts; states
    assert few == n_experts * (5 * 8 + 3 * 4) + n_top * (8 + 2) + n_chance * 21 * 8 + n_states * 8


def test_mean_states_do_not_depend_on_the_other_rows() -> None:
    """Means of parts of a layer with other last digits, depending on the number of threads."""
    random = np.random.default_rng(0)
    ids, members = random.permutation(200), random.permutation(200) % 7
    states = torch.from_numpy(random.standard_normal((33, 200)).astype(np.float32))
    means = StateMeans(ids, members)
    whole = means(states)
    parts: list[Floats] = [means(part) for part in torch.split(states, 4)]
    assert np.array_equal(np.concatenate(parts), whole)
    for concept in range(7):
        expected = states.numpy()[:, ids[members == concept]].mean(axis=1, dtype=np.float64)
        np.testing.assert_allclose(whole[:, concept], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", [nullcontext, on_a_device])
def test_sentences_without_a_state_are_in_no_mean(tmp_path: Path, device: Callable[[], Any]) -> None:
    """Counted as 0, they would shrink the vector of a concept, or make one for a concept without any."""
    with device():
        score(tmp_path)
    (file,) = tmp_path.glob("concept-states/*")
    rows = pq.read_table(file, partitioning=None).to_pylist()
    found = {(row["pooling"], row["concept"]): row["vector"] for row in rows}
    expected = {}
    for site in make_sites():
        for concept in range(N_CONCEPTS):
            columns = [
                site.values[:, number].double()
                for number in range(concept, N_SENTENCES, N_CONCEPTS)
                if number not in site.missing
            ]
            if site.site == "residual" and columns:
                expected[site.pooling, f"concept {concept}"] = sum(columns) / len(columns)
    assert ("concept", "concept 3") not in expected
    assert found.keys() == expected.keys()
    for key, vector in expected.items():
        np.testing.assert_allclose(found[key], vector, rtol=0, atol=1e-12)


def test_no_state_of_any_sentence_leaves_the_other_rows(tmp_path: Path) -> None:
    """A set whose sentences do not contain the words would end in a traceback."""
    sites = [
        site._replace(missing=tuple(range(N_SENTENCES)) if site.missing else ()) for site in make_sites()
    ]
    score(tmp_path, sites=sites)
    (file,) = tmp_path.glob("concept-states/*")
    assert set(pq.read_table(file, partitioning=None)["pooling"].to_pylist()) == {"mean", "last"}


def test_top_sentences_are_sorted_by_value_then_sentence() -> None:
    """Another of several sentences with the same value than on a page made of kept activations."""
    random = np.random.default_rng(0)
    values = random.integers(-3, 3, (30, 50)).astype(np.float16)
    values[values == 0] *= random.choice([-1, 1], (values == 0).sum())
    values[0] = np.finfo(np.float16).min
    values[1, :7] = np.finfo(np.float16).max
    units = np.array([0, 1, 5, 29])
    for n_sentences in (50, 3):
        check_top_sentences(values[:, :n_sentences].copy(), units)


@pytest.mark.parametrize("n_sentences", [31, 32, 33, 160, 1000])
@pytest.mark.parametrize("spread", [0, 2, 1e4])
def test_no_top_sentence_is_skipped(n_sentences: int, spread: float) -> None:
    """Sentences are looked at in blocks, of which most are skipped by their highest value."""
    random = np.random.default_rng(n_sentences)
    values = (random.normal(size=(40, n_sentences)) * spread).round(1).astype(np.float16)
    check_top_sentences(values, np.arange(40))


def check_top_sentences(values: npt.NDArray[np.float16], units: Ints) -> None:
    """Compare with a stable sort."""
    expected = np.argsort(-values[units].astype(np.float32), axis=1, kind="stable")[:, :5]
    for top in (
        find_top_sentences(values, units),
        find_top_sentences_torch(torch.from_numpy(values), units, DeviceChunks()),
    ):
        assert np.array_equal(top.units, units)
        assert np.array_equal(top.sentence_ids, expected)
        assert np.array_equal(top.values, np.take_along_axis(values[units], expected, axis=1))
