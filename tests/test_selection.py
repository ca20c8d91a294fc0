"""Scoring a site reads its files once, in bounded memory, and rejects files of other sites; the tables
of scores and chance counts agree with the views."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import cosine
from sklearn.metrics import roc_auc_score

import storage
from alignment.expertise.label_permutations import permute_labels
from alignment.expertise.labels import labels_against_others, split_half
from alignment.expertise.scoring import score_neurons
from jobs import experts, planner, sentences, sweep
from jobs.actions.plan import remaining_stages
from jobs.config.loader import read_sweep
from jobs.engine import disk_budget
from jobs.scoring.block_scores import SiteKey
from jobs.scoring.labelings import Labeling
from storage.errors import StoreError, UserError
from storage.store import activation_files
from storage.store import scratch as storage_scratch
from storage.store.activation_files import SiteActivations
from storage.store.commit import write_values
from storage.store.verify import verify
from tests import tiny
from tests.faults import in_one_process

PARAMS = {
    "model": "m", "revision": "main", "concept_set": "s", "prevalence": 0.3, "floor": 0.3,
    "permutations": 2, "scores": ["ap"],
}  # fmt: skip
SITE = SiteKey("max", 0, "mlp.hidden")


def _write_site(
    folder: Path, values: np.ndarray, sizes: list[int], units_in_group: int
) -> SiteActivations:
    """Write activations as files of work units of these sizes."""
    parts = np.split(values, np.cumsum(sizes)[:-1], axis=1)
    for number, part in enumerate(parts):
        flat = np.ascontiguousarray(part)
        write_values(folder, f"site/{number:05d}.parquet", flat, units_in_group * part.shape[1])
    return SiteActivations(sorted(folder.glob("site/*.parquet")), len(values))


def _make_labeling(n_sentences: int, n_concepts: int = 3) -> Labeling:
    labels = labels_against_others(
        np.arange(n_sentences), np.arange(n_sentences) % n_concepts, n_sentences, n_concepts
    )
    ids, permutations = np.arange(n_sentences), permute_labels(labels, 2, 0)
    return Labeling(PARAMS, ["a", "b", "c"], labels, ids, permutations)


@pytest.mark.parametrize("units_in_group", [1, 3, 4, 100])
@pytest.mark.parametrize("max_bytes", [1, 60 * 2 * 4, 60 * 2 * 7, 1 << 20])
def test_blocks_cover_the_site_and_read_every_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units_in_group: int, max_bytes: int
) -> None:
    """Neurons that are skipped or scored twice, blocks beyond the memory limit, or repeated reads."""
    values = np.random.default_rng(0).standard_normal((10, 60)).astype(np.float16)
    files = _write_site(tmp_path, values, [25, 25, 10], units_in_group)
    reads: list[tuple[str, int]] = []
    read_row_group = pq.ParquetFile.read_row_group

    def record_read(table: pq.ParquetFile, group: int) -> object:
        reads.append((str(table.metadata.num_rows), group))
        return read_row_group(table, group)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", record_read)
    blocks = list(files.blocks(max_bytes))
    assert [first for first, _ in blocks] == list(np.cumsum([0, *(len(b) for _, b in blocks[:-1])]))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), values)
    assert all(block.nbytes <= max(max_bytes, 120) for _, block in blocks)
    assert len(reads) == 3 * -(-10 // units_in_group)


def test_units_are_read_in_the_requested_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steering would clamp neurons to the values of other neurons."""
    monkeypatch.setattr(activation_files, "_BLOCK_BYTES", 60 * 2 * 4)
    values = np.random.default_rng(0).standard_normal((10, 60)).astype(np.float16)
    units = np.array([7, 0, 9, 3, 4, 7])
    files = _write_site(tmp_path, values, [40, 20], 3)
    assert np.array_equal(files.read_units(units), values[units])


def test_results_do_not_depend_on_blocks_or_scratch_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory limits that change the scores."""
    values = np.random.default_rng(0).standard_normal((10, 60)).astype(np.float16)
    files = _write_site(tmp_path, values, [60], 2)
    labeling = _make_labeling(60)
    results = []
    for block_bytes, in_memory_bytes in ((1 << 20, 128 << 20), (60 * 2 * 4, 0)):
        monkeypatch.setattr(experts, "_MAX_BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(storage_scratch, "_MAX_IN_MEMORY_BYTES", in_memory_bytes)
        folder = tmp_path / str(block_bytes)
        for record in experts._score_site(files, SITE, labeling, False, folder):
            assert (folder / record.path).is_file()
        rows = [
            row
            for path in sorted(folder.glob("experts/*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        scores = [pq.read_table(path).column(0).to_numpy() for path in sorted(folder.rglob("site=*/*"))]
        chance = pq.read_table(folder / "chance/max.L00.mlp.hidden.parquet").to_pylist()
        results.append((sorted(rows, key=repr), np.concatenate(scores).tolist(), chance, len(scores)))
    assert results[0][:3] == results[1][:3]
    assert [n_files for *_, n_files in results] == [1, 3]
    ap = score_neurons(values, labeling.labels, 0.3).ap
    assert np.array_equal(results[0][1], ap.astype(np.float32).ravel())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("nan", "cannot be score.*not finite"),
        ("location", "was written for another location"),
        ("sentences", r"cannot be scored.*\(neurons, 60 sentences\)"),
        ("width", "expected a multiple of 10 units"),
        ("truncation", "cannot be read"),
    ],
)
def test_activations_of_other_sites_and_damaged_files_are_rejected(
    tmp_path: Path, damage: str, message: str
) -> None:
    """Scores of another model, sentence set or site."""
    values = np.random.default_rng(0).standard_normal((10, 60)).astype(np.float16)
    folder = tmp_path / "run"
    files = _write_site(folder, values, [30, 30], 4)
    second = files.paths[1]
    if damage == "nan":
        # The writer would reject NaN.
        content = second.read_bytes()
        start = content.index(values[0, 30:].tobytes())
        second.write_bytes(content[:start] + np.float16(np.nan).tobytes() + content[start + 2 :])
    elif damage == "location":
        shutil.copy(_write_site(tmp_path / "other", values, [30, 30], 4).paths[1], second)
    elif damage == "sentences":
        files = SiteActivations(files.paths[:1], 10)
    elif damage == "width":
        write_values(folder, "site/00001.parquet", values[:9, :29], 29)
    else:
        second.write_bytes(second.read_bytes()[:-30])
    with pytest.raises(StoreError, match=message) as raised:
        experts._score_site(files, SITE, _make_labeling(60), False, tmp_path / "out")
    assert str(files.paths[0].parent) in str(raised.value)


_MEMORY_SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from alignment.expertise.labels import labels_against_others, split_half
from alignment.expertise.label_permutations import permute_labels
from jobs import experts
from jobs.scoring.block_scores import SiteKey, score_block
from jobs.scoring.labelings import Labeling
from storage.store import scratch
from storage.store.activation_files import SiteActivations
folder, n, units, params = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
scratch._MAX_IN_MEMORY_BYTES = int(sys.argv[5])
def make_labeling(n):
    labels = labels_against_others(np.arange(n), np.arange(n) % 5, n, 5)
    _ = labels.patterns, labels.n_negative, labels.grouped_positives, labels.grouped_negatives
    return Labeling(params, list("abcde"), labels, np.arange(n), permute_labels(labels, 1, 0))
def private_memory():
    # without file-backed pages, which the system may evict
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])
peak, is_finished = 0, False
def watch():
    global peak
    while not is_finished:
        peak = max(peak, private_memory())
        time.sleep(0.002)
score_block(np.zeros((1, 1000), np.float16), 0, make_labeling(1000))
labeling = make_labeling(n)
files = SiteActivations(sorted(folder.glob("site/*.parquet")), units)
before = private_memory()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
site = SiteKey("max", 0, "mlp.hidden")
experts._score_site(files, site, labeling, False, folder / "out")
is_finished = True
watcher.join()
print(peak - before)
"""


def _memory_growth(
    folder: Path, sentences: int, units: int, unit_sentences: int, in_memory: int
) -> float:
    """Growth in MB of a worker's private memory while it scores a site of random activations."""
    random = np.random.default_rng(0)
    for number, first in enumerate(range(0, sentences, unit_sentences)):
        size = min(unit_sentences, sentences - first)
        values = random.integers(0, 0x7C00, (units, size), np.uint16).view(np.float16)
        write_values(folder, f"site/{number:05d}.parquet", values, max(1, units // 4) * size)
    arguments = [str(folder), str(sentences), str(units), json.dumps(PARAMS), str(in_memory)]
    process = subprocess.run(
        [sys.executable, "-c", _MEMORY_SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    growth = int(process.stdout) / 1024
    print(f"\n{sentences} sentences of {units} neurons: {growth:.0f} MB")
    return growth


def test_memory_is_bounded_for_any_number_of_sentences(tmp_path: Path) -> None:
    """400,000 sentences of 200 neurons (160 MB) need one block of neurons at a time. 18 million need one
    sorted chunk; larger arrays are in files (the memory limit is low here), without which the growth
    would be 72 MB more. `pytest -s -k memory_is_bounded` prints the growth."""
    assert _memory_growth(tmp_path / "wide", 400_000, 200, 4096, 128 << 20) < 200
    assert _memory_growth(tmp_path / "long", 18_000_000, 1, 1_000_000, 1 << 20) < 280


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A store of a sweep with `experts.scores`."""
    folder = tmp_path_factory.mktemp("selection")
    shutil.copytree(tiny_model, folder / "model")
    measures = "jaccard, auroc, auroc-halves, centred cosine, spearman, kl"
    extra = f"resamples: 100\nbaselines: []\ncontrols: [split-half]\nsimilarity: [{measures}]\n"
    file = tiny.write_sweep(folder, extra=f"{extra}experts: {{scores: true, permutations: 5}}\n")
    file.write_text(re.sub(r"\[max.*?\]", "[max, context]", file.read_text()))
    config = read_sweep(file)
    plan = planner.plan_sweep(config)
    with in_one_process():
        sweep.run(plan)
    return config.store_path


def test_scores_cover_all_neurons_and_agree_with_experts(store: Path) -> None:
    """Scores of another neuron or concept than their position in the file."""
    with storage.open(str(store)) as connection:
        counts = connection.sql("SELECT count(*), count(DISTINCT concept) FROM scores").fetchall()
        joined = connection.sql(
            "SELECT e.ap, s.ap, e.run = s.run FROM experts e JOIN scores s "
            "USING (model, revision, concept_set, pooling, layer, site, unit, concept)"
        ).fetchall()
        above = connection.sql("SELECT count(*) FROM scores WHERE ap > 0.4").fetchall()
    assert counts == [(2 * 3 * 48 * 6, 6)]
    assert len(joined) == above[0][0] > 100
    assert all(same_run and score == np.float32(ap) for ap, score, same_run in joined)
    assert not list(verify(store))


def test_disk_space_of_scores_is_checked_before_the_run(store: Path) -> None:
    """A disk that fills up after hours, or an error about scores that are already written."""
    file = store.parent.parent / "sweep.yaml"
    expected = 2 * 3 * 48 * 6 * (4 + 2)
    for path, is_written in ((store, True), (store.parent / "other", False)):
        plan = planner.plan_sweep(read_sweep(file, path))
        (stage,) = plan.stages_of_kind(experts.KIND)
        (concepts,) = [concept_set.concepts for concept_set in plan.concept_sets]
        assert concepts is not None
        assert disk_budget.score_bytes(stage, plan.weights[0], concepts) == expected
        (n_bytes,) = [item.bytes for item in remaining_stages(plan, path) if item.stage is stage]
        assert n_bytes == (0 if is_written else expected)
        with patch("jobs.engine.disk_budget.free_bytes", lambda _: 100):
            if not is_written:
                with pytest.raises(UserError, match="free disk space"):
                    sweep.check_disk_space(plan, path)
                # nothing large is written up to the sentences
                sweep.check_disk_space(plan, path, sentences.KIND)
            else:
                sweep.check_disk_space(plan, path)


def test_the_view_chance_agrees_with_the_experts(store: Path) -> None:
    """Counts at another threshold, or p values that leave out the true labels."""
    with storage.open(str(store)) as connection:
        chance = connection.sql("SELECT * FROM chance").to_arrow_table().to_pylist()
        expert_counts = connection.sql(
            "SELECT pooling, concept, t / 20, count(*) FILTER (ap > t / 20), max(ap) "
            "FROM experts CROSS JOIN range(8, 20) AS r(t) GROUP BY ALL"
        ).fetchall()
        counts = connection.sql("SELECT * FROM chance_counts").to_arrow_table().to_pylist()
    rows = {(row["pooling"], row["concept"], row["threshold"]): row for row in chance}
    assert len(rows) == len(chance) == 2 * 6 * 20
    for pooling, concept, threshold, n_experts, best_ap in expert_counts:
        row = rows[pooling, concept, threshold]
        assert (row["n_experts"], row["best_ap"], row["shuffles"]) == (n_experts, best_ap, 5)
    for (pooling, concept, threshold), row in rows.items():
        sites = [site for site in counts if (site["pooling"], site["concept"]) == (pooling, concept)]
        step = round(threshold * 20)
        n = [sum(s["n_above"][step] for s in sites if s["shuffle"] == shuffle) for shuffle in range(6)]
        best = [max(s["best_ap"] for s in sites if s["shuffle"] == shuffle) for shuffle in range(6)]
        assert row["chance_mean"] == pytest.approx(np.mean(n[1:]))
        assert row["chance_p95"] == pytest.approx(np.quantile(n[1:], 0.95))
        assert row["p"] == pytest.approx(np.mean(np.array(n) >= n[0]))
        assert row["best_p"] == pytest.approx(np.mean(np.array(best) >= best[0]))


def test_similarities_by_ap_agree_with_the_view_scores(store: Path) -> None:
    """Score vectors of another layer or concept, or agreement of an asymmetric measure."""
    with storage.open(str(store)) as connection:
        cosines = connection.sql(
            "SELECT pooling, layer, concept_a, concept_b, similarity FROM similarity "
            "WHERE measure = 'centred cosine'"
        ).fetchall()
        scores = connection.sql(
            "SELECT pooling, concept, layer, ap - avg(ap::DOUBLE) OVER neuron FROM scores "
            "WINDOW neuron AS (PARTITION BY pooling, layer, unit) ORDER BY layer, site, unit"
        ).fetchall()
        measures = connection.sql(
            "SELECT DISTINCT measure FROM alignment WHERE representation = 'experts' ORDER BY ALL"
        ).fetchall()
        kl = connection.sql("SELECT count(*), max(similarity) FROM similarity WHERE measure = 'kl'")
        n_kl, highest = kl.fetchall()[0]
    assert len(cosines) == 2 * 4 * 15
    for pooling, layer, a, b, value in cosines:
        first, second = (
            [
                ap
                for *key, row_layer, ap in scores
                if key == [pooling, name] and layer in (None, row_layer)
            ]
            for name in (a, b)
        )
        assert value == pytest.approx(1 - cosine(first, second), abs=1e-12)
    assert measures == [
        (name,) for name in ("auroc", "auroc-halves", "centred cosine", "jaccard", "spearman")
    ]
    assert n_kl == 2 * 4 * 30
    assert highest < 0


def test_similarities_by_auroc_are_those_of_scikit_learn(store: Path) -> None:
    """AUROCs of another concept, half or layer, halves with sentences in common, or a wrong product."""
    with storage.open(str(store)) as connection:
        values = connection.sql(
            "SELECT layer, unit, sentence_id, value FROM activations "
            "WHERE pooling = 'context' ORDER BY ALL"
        ).fetchnumpy()
        members = connection.sql(
            "SELECT concept, sentence_id FROM memberships WHERE role = 'positive' ORDER BY sentence_id"
        ).fetchall()
        kept = connection.sql(
            "SELECT layer, unit, concept, auroc FROM auroc WHERE pooling = 'context'"
        ).fetchall()
        similarities = {
            tuple(key): value
            for *key, value in connection.sql(
                "SELECT measure, layer, concept_a, concept_b, similarity FROM similarity "
                "WHERE pooling = 'context' AND representation = 'experts'"
            ).fetchall()
        }
    names = sorted({name for name, _ in members})
    ids = np.array([number for _, number in members])
    concept = np.array([names.index(name) for name, _ in members])
    matrix = values["value"].reshape(3 * 48, -1)
    half = split_half(ids, concept, matrix.shape[1], 0)

    def compute_auroc(sentences: np.ndarray) -> np.ndarray:
        """AUROC less 0.5, (neurons, concepts), on these sentences."""
        truth = np.array([[name == of for of in concept[sentences]] for name in range(len(names))])
        return np.array(
            [[roc_auc_score(each, row[sentences]) - 0.5 for each in truth] for row in matrix]
        )

    everything, *halves = map(compute_auroc, (ids, np.flatnonzero(half == 0), np.flatnonzero(half == 1)))
    assert len(kept) == everything.size
    for layer, unit, name, auroc in kept:
        assert auroc == pytest.approx(everything[layer * 48 + unit, names.index(name)] + 0.5, abs=2e-4)
    x, y = (np.sign(d) * d**2 for d in halves)
    for layer in (None, 0, 1, 2):
        rows = slice(None) if layer is None else slice(48 * layer, 48 * layer + 48)
        for i, a in enumerate(names):
            for j, b in enumerate(names[i + 1 :], i + 1):
                expected = 1 - cosine(everything[rows, i], everything[rows, j])
                assert similarities["auroc", layer, a, b] == pytest.approx(expected, abs=2e-3)
                crossed = (x[rows, i] @ y[rows, j] + x[rows, j] @ y[rows, i]) / 2
                power = [x[rows, k] @ y[rows, k] for k in (i, j)]
                value = similarities["auroc-halves", layer, a, b]
                if min(power) <= 0:
                    assert value is None
                else:
                    assert value == pytest.approx(crossed / np.sqrt(np.prod(power)), abs=2e-3)
