"""Scoring a site reads its files once, in bounded memory, and takes nothing that is not the site's; what
it keeps of chance and of all neurons is what the views tell."""

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

import storage
from alignment.expertise.label_permutations import shuffles
from alignment.expertise.labels import labels_against_others
from alignment.expertise.scoring import expertise
from jobs import experts, planner, sweep
from jobs.commands.plan import _left
from jobs.config import read_sweep
from jobs.engine import disk_budget
from storage.errors import StoreError, UserError
from storage.store import activation_files
from storage.store import scratch as storage_scratch
from storage.store.activation_files import SiteFiles
from storage.store.commit import write_values
from storage.store.verify import verify
from tests import tiny
from tests.faults import in_one_process

PARAMS = {
    "model": "m", "revision": "main", "concept_set": "s", "prevalence": 0.3, "floor": 0.3,
    "permutations": 2, "scores": True,
}  # fmt: skip
SITE = experts._Site("max", 0, "mlp.hidden")


def _files(folder: Path, values: np.ndarray, sizes: list[int], units_in_group: int) -> SiteFiles:
    """The values as files of work units of these sizes."""
    parts = np.split(values, np.cumsum(sizes)[:-1], axis=1)
    for number, part in enumerate(parts):
        flat = np.ascontiguousarray(part)
        write_values(folder, f"site/{number:05d}.parquet", flat, units_in_group * part.shape[1])
    return SiteFiles(sorted(folder.glob("site/*.parquet")), len(values))


def _labelled(n_sentences: int, n_concepts: int = 3) -> experts._Labelled:
    labels = labels_against_others(
        np.arange(n_sentences), np.arange(n_sentences) % n_concepts, n_sentences, n_concepts
    )
    return experts._Labelled(labels, np.arange(n_sentences), shuffles(labels, 2, 0), False)


@pytest.mark.parametrize("units_in_group", [1, 3, 4, 100])
@pytest.mark.parametrize("most", [1, 60 * 2 * 4, 60 * 2 * 7, 1 << 20])
def test_blocks_are_the_site_and_each_row_group_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units_in_group: int, most: int
) -> None:
    values = np.random.default_rng(0).standard_normal((10, 60)).astype(np.float16)
    files = _files(tmp_path, values, [25, 25, 10], units_in_group)
    read: list[tuple[str, int]] = []
    real = pq.ParquetFile.read_row_group

    def counted(table: pq.ParquetFile, group: int) -> object:
        read.append((str(table.metadata.num_rows), group))
        return real(table, group)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    blocks = list(files.blocks(most))
    assert [first for first, _ in blocks] == list(np.cumsum([0, *(len(b) for _, b in blocks[:-1])]))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), values)
    assert all(block.nbytes <= max(most, 120) for _, block in blocks)
    assert len(read) == 3 * -(-10 // units_in_group)


def test_some_units_are_read_in_the_order_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steering forces neurons to what they were seen to do: not to what their neighbours do."""
    monkeypatch.setattr(activation_files, "_BLOCK_BYTES", 60 * 2 * 4)
    values = np.random.default_rng(0).standard_normal((10, 60)).astype(np.float16)
    units = np.array([7, 0, 9, 3, 4, 7])
    assert np.array_equal(_files(tmp_path, values, [40, 20], 3).read_units(units), values[units])


def test_how_a_site_is_cut_into_blocks_and_where_they_lie_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).standard_normal((10, 60)).astype(np.float16)
    files = _files(tmp_path, values, [60], 2)
    found = []
    for most, in_memory in ((1 << 20, 128 << 20), (60 * 2 * 4, 0)):
        monkeypatch.setattr(experts, "_BLOCK_BYTES", most)
        monkeypatch.setattr(storage_scratch, "_IN_MEMORY_BYTES", in_memory)
        folder = tmp_path / str(most)
        for record in experts._score_site(files, SITE, _labelled(60), ["a", "b", "c"], PARAMS, folder):
            assert (folder / record.path).is_file()
        rows = [
            row
            for path in sorted(folder.glob("experts/*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        scores = [pq.read_table(path).column(0).to_numpy() for path in sorted(folder.rglob("site=*/*"))]
        chance = pq.read_table(folder / "chance/max.L00.mlp.hidden.parquet").to_pylist()
        found.append((sorted(rows, key=repr), np.concatenate(scores).tolist(), chance, len(scores)))
    assert found[0][:3] == found[1][:3]
    assert [each[3] for each in found] == [1, 3]
    ap = expertise(values, _labelled(60).labels, 0.3).ap
    assert np.array_equal(found[0][1], ap.astype(np.float32).ravel())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nan", "cannot be score.*not finite"),
        ("elsewhere", "belongs elsewhere"),
        ("sentences", r"cannot be scored.*\(neurons, 60 sentences\)"),
        ("width", "no multiple of 10 units"),
        ("cut", "cannot be read"),
    ],
)
def test_activations_that_are_not_the_sites_are_refused(
    tmp_path: Path, spoil: str, message: str
) -> None:
    """Files of another model, sentence set or site that came to lie there, and damaged ones."""
    values = np.random.default_rng(0).standard_normal((10, 60)).astype(np.float16)
    folder = tmp_path / "run"
    files = _files(folder, values, [30, 30], 4)
    second = files.paths[1]
    if spoil == "nan":
        # no writer of ours lets it pass
        content = second.read_bytes()
        at = content.index(values[0, 30:].tobytes())
        second.write_bytes(content[:at] + np.float16(np.nan).tobytes() + content[at + 2 :])
    elif spoil == "elsewhere":
        shutil.copy(_files(tmp_path / "other", values, [30, 30], 4).paths[1], second)
    elif spoil == "sentences":
        files = SiteFiles(files.paths[:1], 10)
    elif spoil == "width":
        write_values(folder, "site/00001.parquet", values[:9, :29], 29)
    else:
        second.write_bytes(second.read_bytes()[:-30])
    with pytest.raises(StoreError, match=message) as caught:
        experts._score_site(files, SITE, _labelled(60), ["a", "b", "c"], PARAMS, tmp_path / "out")
    assert str(files.paths[0].parent) in str(caught.value)


_MEASURED = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from alignment.expertise.labels import labels_against_others
from alignment.expertise.label_permutations import shuffles
from jobs import experts
from storage import scratch
from storage.store.activation_files import SiteFiles
folder, n, units, params = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
scratch._IN_MEMORY_BYTES = int(sys.argv[5])
def labelled(n):
    labels = labels_against_others(np.arange(n), np.arange(n) % 5, n, 5)
    _ = labels.kinds, labels.n_negative, labels.positives, labels.listed_negatives
    return experts._Labelled(labels, np.arange(n), shuffles(labels, 1, 0), False)
def own():
    # not what the system may put aside
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])
most, ended = 0, False
def watch():
    global most
    while not ended:
        most = max(most, own())
        time.sleep(0.002)
experts._score(np.zeros((1, 1000), np.float16), labelled(1000), 0.3)
shared = labelled(n)
files = SiteFiles(sorted(folder.glob("site/*.parquet")), units)
before = own()
watching = threading.Thread(target=watch)
watching.start()
site = experts._Site("max", 0, "mlp.hidden")
experts._score_site(files, site, shared, list("abcde"), params, folder / "out")
ended = True
watching.join()
print(most - before)
"""


def _grows_by(folder: Path, sentences: int, units: int, of_unit: int, in_memory: int) -> float:
    """By how many MB a worker's own memory grows when it scores a site of random activations."""
    random = np.random.default_rng(0)
    for number, first in enumerate(range(0, sentences, of_unit)):
        size = min(of_unit, sentences - first)
        values = random.integers(0, 0x7C00, (units, size), np.uint16).view(np.float16)
        write_values(folder, f"site/{number:05d}.parquet", values, max(1, units // 4) * size)
    given = [str(folder), str(sentences), str(units), json.dumps(PARAMS), str(in_memory)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout) / 1024
    print(f"\n{sentences} sentences of {units} neurons: {grown:.0f} MB")
    return grown


def test_memory_is_bounded_whatever_the_number_of_sentences(tmp_path: Path) -> None:
    """400,000 sentences of 200 neurons, 160 MB: one block of neurons is held at a time. Millions: what
    is sorted at once is held, and arrays larger than what may be in memory (here little, lest the test
    needs a hundred million sentences) lie in files; in memory they would be 72 MB more. `pytest -s -k
    memory_is_bounded` prints by how much memory grows."""
    assert _grows_by(tmp_path / "wide", 400_000, 200, 4096, 128 << 20) < 200
    assert _grows_by(tmp_path / "long", 18_000_000, 1, 1_000_000, 1 << 20) < 280


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A store of one sweep that keeps all scores."""
    folder = tmp_path_factory.mktemp("selection")
    shutil.copytree(tiny_model, folder / "model")
    extra = "resamples: 100\nbaselines: []\nsimilarity: [jaccard, cosine, spearman, kl]\n"
    file = tiny.write_sweep(folder, extra=f"{extra}experts: {{scores: true, permutations: 5}}\n")
    file.write_text(re.sub(r"\[max.*?\]", "[max, context]", file.read_text()))
    read = read_sweep(file)
    planned = planner.plan(read)
    with in_one_process():
        sweep.run(planned)
    return read.store_path


def test_every_neuron_has_its_score_and_the_experts_have_theirs(store: Path) -> None:
    with storage.open(str(store)) as connection:
        counts = connection.sql("SELECT count(*), count(DISTINCT concept) FROM scores").fetchall()
        joined = connection.sql(
            "SELECT e.ap, s.ap, e.run = s.run FROM experts e JOIN scores s "
            "USING (model, revision, concept_set, pooling, layer, site, unit, concept)"
        ).fetchall()
        above = connection.sql("SELECT count(*) FROM scores WHERE ap > 0.4").fetchall()
    assert counts == [(2 * 3 * 48 * 6, 6)]
    assert len(joined) == above[0][0] > 100
    assert all(same and found == np.float32(exact) for exact, found, same in joined)
    assert not list(verify(store))


def test_the_room_that_scores_need_is_known_before(store: Path) -> None:
    file = store.parent.parent / "sweep.yaml"
    expected = 2 * 3 * 48 * 6 * 4
    for where, is_written in ((store, True), (store.parent / "other", False)):
        planned = planner.plan(read_sweep(file, where))
        (stage,) = planned.of_kind(experts.KIND)
        (concepts,) = [each.concepts for each in planned.sets]
        assert concepts is not None
        assert disk_budget.score_bytes(stage, planned.weights[0], concepts) == expected
        (left,) = [each.bytes for each in _left(planned, where) if each.stage is stage]
        assert left == (0 if is_written else expected)
        with patch("jobs.engine.disk_budget.free", lambda _: 100):
            if not is_written:
                with pytest.raises(UserError, match="make space"):
                    disk_budget.check(planned, where)
            else:
                disk_budget.check(planned, where)


def test_the_view_of_chance_counts_what_the_experts_are(store: Path) -> None:
    with storage.open(str(store)) as connection:
        found = connection.sql("SELECT * FROM chance").to_arrow_table().to_pylist()
        counted = connection.sql(
            "SELECT pooling, concept, t / 20, count(*) FILTER (ap > t / 20), max(ap) "
            "FROM experts CROSS JOIN range(8, 20) AS r(t) GROUP BY ALL"
        ).fetchall()
        raw = connection.sql("SELECT * FROM chance_counts").to_arrow_table().to_pylist()
    rows = {(row["pooling"], row["concept"], row["threshold"]): row for row in found}
    assert len(rows) == len(found) == 2 * 6 * 20
    for pooling, concept, threshold, n_experts, best in counted:
        row = rows[pooling, concept, threshold]
        assert (row["n_experts"], row["best_ap"], row["shuffles"]) == (n_experts, best, 5)
    for (pooling, concept, threshold), row in rows.items():
        own = [each for each in raw if (each["pooling"], each["concept"]) == (pooling, concept)]
        step = round(threshold * 20)
        n = [sum(e["n_above"][step] for e in own if e["shuffle"] == shuffle) for shuffle in range(6)]
        best = [max(e["best_ap"] for e in own if e["shuffle"] == shuffle) for shuffle in range(6)]
        assert row["chance_mean"] == pytest.approx(np.mean(n[1:]))
        assert row["chance_p95"] == pytest.approx(np.quantile(n[1:], 0.95))
        assert row["p"] == pytest.approx(np.mean(np.array(n) >= n[0]))
        assert row["best_p"] == pytest.approx(np.mean(np.array(best) >= best[0]))


def test_cosines_of_scores_are_those_of_the_view(store: Path) -> None:
    with storage.open(str(store)) as connection:
        found = connection.sql(
            "SELECT pooling, layer, concept_a, concept_b, similarity FROM similarity "
            "WHERE measure = 'cosine'"
        ).fetchall()
        scores = connection.sql(
            "SELECT pooling, concept, layer, ap FROM scores ORDER BY layer, site, unit"
        ).fetchall()
        aligned = connection.sql("SELECT DISTINCT measure FROM alignment ORDER BY ALL").fetchall()
        kl = connection.sql("SELECT count(*), max(similarity) FROM similarity WHERE measure = 'kl'")
        n_kl, highest = kl.fetchall()[0]
    assert len(found) == 2 * 4 * 15
    for pooling, layer, a, b, value in found:
        first, second = (
            [ap for *of, at, ap in scores if of == [pooling, each] and layer in (None, at)]
            for each in (a, b)
        )
        assert value == pytest.approx(1 - cosine(first, second), abs=1e-12)
    assert aligned == [("cosine",), ("jaccard",), ("spearman",)]
    assert n_kl == 2 * 4 * 30
    assert highest < 0
