"""A sweep, from the outside: what it prints, what it leaves in the store, how it takes bad input and
being killed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr

from cluster.encoder import Encoder
from jobs.config import read_sweep
from jobs.sweep import plan as plan_sweep
from storage.database import open_store
from tests import tiny

_SECONDS = 240


def neuralign(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        cwd=cwd,
        check=False,
    )


def python_m(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def rows(store: Path) -> dict[str, list[Any]]:
    """Everything that a store's views hold, whatever made it and whenever."""
    views = (
        "concepts sentences memberships sites activations experts similarity alignment human_pairs "
        "human_triplets human_dropped hierarchy_summary hierarchy_domains hierarchy_cuts "
        "hierarchy_merges control_experts reliability chance_counts chance expert_places "
        "expert_stability training"
    )
    with open_store(store) as connection:
        return {
            view: sorted(connection.sql(f"SELECT * FROM {view}").fetchall(), key=repr)  # noqa: S608
            for view in views.split()
        }


_EXTRA = """
baselines:
  - input-embedding
  - {name: mine, path: vectors.txt}
  - contextual
  - glove
  - {name: tiny, encoder: encoder}
  - shuffled
  - {name: sae, dictionary: sae.safetensors, layer: 1}
  - random-init
controls: [split-half, length-matched]
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a finished sweep over a tiny model."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(tiny_model, folder / "model")
    tiny.make_encoder(folder / "encoder")
    numbers = np.random.default_rng(0).standard_normal((6, 5))
    lines = [
        f"{word} {' '.join(map(str, row))}" for word, row in zip(tiny.CONCEPTS, numbers, strict=True)
    ]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    save_file({"W_enc": torch.randn(32, 80)}, folder / "sae.safetensors")
    file = tiny.write_sweep(folder, extra=_EXTRA)
    done = neuralign("run", file)
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_a_sweep_prints_alignment_neighbours_and_where_to_look(study: Path) -> None:
    printed = (study / "printed.txt").read_text()
    assert "Alignment with mine: Spearman's rho, 12 pairs of 6 concepts" in printed
    for label in ("neurons, max", "neurons, context", "random weights, max", "input embedding"):
        assert label in printed
    assert "Nearest concepts by shared experts" in printed
    assert max(map(len, printed.split("Where to look next")[0].splitlines())) <= 80


def test_a_finished_sweep_computes_nothing_and_says_so(study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (study / "results").rglob("*")}
    again = neuralign("run", study / "sweep.yaml")
    assert again.returncode == 0
    assert "Nothing to compute: all 33 stages are done" in again.stderr
    assert again.stdout == (study / "printed.txt").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in (study / "results").rglob("*")}


def test_the_views_hold_what_the_model_does(study: Path) -> None:
    """Experts, recomputed from the activations view alone, with scikit-learn."""
    from sklearn.metrics import average_precision_score

    with open_store(study / "results/sweep") as connection:
        values = connection.sql(
            "SELECT layer, unit, value FROM activations WHERE revision = 'main' AND site = 'mlp.hidden' "
            "AND pooling = 'context' AND layer = 1 AND NOT contains(concept_set, 'shuffled') "
            "ORDER BY unit, sentence_id"
        ).fetchnumpy()["value"]
        experts = connection.sql(
            "SELECT concept, unit, ap_raw FROM experts "
            "WHERE revision = 'main' AND pooling = 'context' AND layer = 1"
        ).fetchall()
        concepts = connection.sql(
            "SELECT concept FROM memberships WHERE NOT contains(concept_set, 'shuffled') "
            "ORDER BY sentence_id"
        ).fetchnumpy()["concept"]
    matrix = values.reshape(48, 36)
    assert len(experts) > 20
    for concept, unit, ap_raw in experts:
        expected = average_precision_score(concepts == concept, matrix[unit])
        assert ap_raw == pytest.approx(expected, abs=1e-12)


def test_sql_answers_in_three_formats(study: Path) -> None:
    store = study / "results/sweep"
    query = "SELECT DISTINCT concept, domain, 1.5 AS x FROM concepts ORDER BY concept LIMIT 2"
    expected = [("boat", "vehicle"), ("bus", "vehicle")]
    as_json = json.loads(neuralign("sql", store, query, "--format", "json").stdout)
    assert [(row["concept"], row["domain"]) for row in as_json] == expected
    as_csv = csv.DictReader(io.StringIO(neuralign("sql", store, query, "--format", "csv").stdout))
    assert [(row["concept"], row["domain"]) for row in as_csv] == expected
    assert "boat     vehicle  1.5" in neuralign("sql", store, query).stdout
    assert "similarity" in neuralign("sql", store).stdout
    twice = neuralign("sql", store, "SELECT 1 AS a, 2 AS a", "--format", "json").stdout
    assert json.loads(twice) == [{"a": 1, "a_2": 2}]
    nested = neuralign("sql", store, "SELECT spans FROM memberships LIMIT 1", "--format", "csv")
    assert nested.stdout == '"spans"\n"[4, 7]"\n'


def test_alignment_is_that_of_a_reader_of_the_views(study: Path) -> None:
    """Jaccard, cosines and correlations, recomputed from what the views hold of the stages before."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        human = {
            (first, second): score
            for first, second, score in query(
                "SELECT concept_a, concept_b, score FROM human_pairs"
            ).fetchall()
        }
        found_rows = query("SELECT * FROM alignment WHERE revision = 'main'").to_arrow_table()
        experts = query(
            "SELECT pooling, concept, layer, unit, ap FROM experts WHERE revision = 'main'"
        ).fetchall()
        states = query(
            "SELECT value FROM activations WHERE site = 'residual' AND revision = 'main' "
            "ORDER BY pooling, layer, sentence_id, unit"
        ).fetchnumpy()["value"]
        of = query(
            "SELECT concept FROM memberships WHERE NOT contains(concept_set, 'shuffled') "
            "ORDER BY sentence_id"
        ).fetchnumpy()["concept"]
    pairs = sorted(human)
    seen = set()
    for row in found_rows.to_pylist():
        if row["representation"] == "experts":
            here = [each for each in experts if row["layer"] in (None, each[2])]
            similarities = _jaccards(here, row["pooling"], row["threshold"], pairs)
        elif row["representation"] == "hidden state":
            by_pooling = dict(zip(("last", "mean"), states.reshape(2, 3, 36, 32), strict=True))
            state = by_pooling[row["pooling"]][row["layer"]].astype(float)
            similarities = _cosines(state, of, row["measure"] == "centred cosine", pairs)
        else:
            continue
        seen.add(row["representation"])
        assert row["n_pairs"] == len(pairs) == 12
        if len(set(similarities)) > 1:
            expected = spearmanr(similarities, [human[pair] for pair in pairs]).statistic
            assert row["rho"] == pytest.approx(expected, abs=1e-9)
        else:
            assert row["rho"] is None
    assert seen == {"experts", "hidden state"}


def _jaccards(experts: Any, pooling: str, threshold: float, pairs: Any) -> list[float]:
    held = {
        name: {row[2:4] for row in experts if row[:2] == (pooling, name) and row[4] > threshold}
        for name in tiny.CONCEPTS
    }
    return [len(held[a] & held[b]) / max(1, len(held[a] | held[b])) for a, b in pairs]


def _cosines(state: Any, of: Any, centre: bool, pairs: Any) -> list[float]:
    means = {name: state[of == name].mean(axis=0) for name in tiny.CONCEPTS}
    middle = np.mean(list(means.values()), axis=0) * centre
    units = {name: (mean - middle) / np.linalg.norm(mean - middle) for name, mean in means.items()}
    return [float(units[a] @ units[b]) for a, b in pairs]


def _sets(experts: Any, threshold: float) -> dict[Any, set[Any]]:
    """Experts above a threshold by (who, concept), from rows of (who, concept, layer, unit, ap)."""
    found: dict[Any, set[Any]] = {}
    for who, concept, layer, unit, ap in experts:
        if ap > threshold:
            found.setdefault((who, concept), set()).add((layer, unit))
    return found


def test_where_experts_sit_and_when_they_settle_is_that_of_sets(study: Path) -> None:
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        experts = query(
            "SELECT revision, concept, layer, unit, ap FROM experts WHERE pooling = 'max'"
        ).fetchall()
        places = query(
            "SELECT revision, layer, n_experts, share FROM expert_places "
            "WHERE pooling = 'max' AND threshold = 0.6"
        ).fetchall()
        stability = query(
            "SELECT concept, revision_a, revision_b, stability FROM expert_stability "
            "WHERE pooling = 'max' AND threshold = 0.5"
        ).fetchall()
    for revision in ("main", "random-init"):
        above = [row[2] for row in experts if row[0] == revision and row[4] > 0.6]
        found = {layer: (n, share) for who, layer, n, share in places if who == revision}
        assert found == {
            layer: (above.count(layer), pytest.approx(above.count(layer) / len(above)))
            for layer in set(above)
        }
    sets = _sets(experts, 0.5)
    assert len(stability) == 6
    for concept, first, second, value in stability:
        one, other = sets[first, concept], sets[second, concept]
        assert (first, second) == ("main", "random-init")
        assert value == pytest.approx(len(one & other) / len(one | other))


def test_the_halves_share_no_sentence_and_their_agreement_is_that_of_their_sets(study: Path) -> None:
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        halves = query(
            "SELECT control, concept, layer, unit, ap FROM control_experts WHERE pooling = 'max'"
        ).fetchall()
        found = query(
            "SELECT rho, of_all, stability, n_pairs FROM reliability "
            "WHERE pooling = 'max' AND threshold = 0.5"
        ).fetchall()
    sets = _sets(halves, 0.5)
    pairs = list(itertools.combinations(sorted(tiny.CONCEPTS), 2))
    similarities = [
        [len(sets[half, a] & sets[half, b]) / len(sets[half, a] | sets[half, b]) for a, b in pairs]
        for half in ("half 1", "half 2")
    ]
    rho = spearmanr(*similarities).statistic
    overlap = [
        len(sets["half 1", name] & sets["half 2", name])
        / len(sets["half 1", name] | sets["half 2", name])
        for name in tiny.CONCEPTS
    ]
    corrected = 2 * rho / (1 + rho) if rho > 0 else rho
    assert found == [pytest.approx((rho, corrected, np.mean(overlap), 15))]


def test_baselines_are_those_of_a_reader_of_their_files(study: Path) -> None:
    """Word vectors and what an encoder makes of the sentences, compared by hand."""
    vectors = {
        word: np.array(numbers, float)
        for word, *numbers in map(str.split, (study / "vectors.txt").read_text().splitlines())
    }
    encoder = Encoder(study / "encoder")
    means: dict[str, Any] = {name: [] for name in tiny.CONCEPTS}
    for name, text in tiny.sentences():
        means[name].append(encoder([text])[0].astype(float))
    alone = dict(zip(tiny.CONCEPTS, encoder(list(tiny.CONCEPTS)).astype(float), strict=True))
    expected = {
        "word vectors": vectors,
        "sentence encoder": {name: np.mean(rows, axis=0) for name, rows in means.items()},
        "sentence encoder, word alone": alone,
    }
    with open_store(study / "results/sweep") as connection:
        found = connection.sql(
            "SELECT representation, concept_a, concept_b, similarity FROM similarity "
            "WHERE model IN ('mine', 'tiny')"
        ).fetchall()
        references = connection.sql(
            "SELECT DISTINCT representation, model, reference FROM alignment "
            "WHERE representation IN ('word vectors', 'sentence encoder') ORDER BY ALL"
        ).fetchall()
    assert len(found) == 3 * 15
    for representation, a, b, similarity in found:
        one, other = expected[representation][a], expected[representation][b]
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert similarity == pytest.approx(cosine, abs=1e-6)
    # the first word vectors of the sweep file are what others are compared with
    assert references == [
        ("sentence encoder", "tiny", "mine word vectors"),
        ("word vectors", "glove-50", "mine word vectors"),
        ("word vectors", "mine", None),
    ]


def test_shuffled_sentences_are_the_same_words_and_their_experts_a_control(study: Path) -> None:
    """They must never pass for the sweep's own experts."""
    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        pairs = query(
            "SELECT a.text, b.text, a.concept_set FROM sentences a JOIN sentences b USING (sentence_id) "
            "WHERE NOT contains(a.concept_set, 'shuffled') AND contains(b.concept_set, 'shuffled')"
        ).fetchall()
        own = query("SELECT DISTINCT concept_set FROM experts").fetchall()
        controls = query(
            "SELECT DISTINCT concept_set FROM control_experts WHERE control = 'shuffled'"
        ).fetchall()
        shown = query(
            "SELECT DISTINCT representation FROM alignment WHERE contains(concept_set, 'shuffled')"
        ).fetchall()
    assert len(pairs) == 36
    assert all(Counter(one.split()) == Counter(other.split()) for one, other, _ in pairs)
    assert sum(one != other for one, other, _ in pairs) > 30
    assert own == [(pairs[0][2],)]
    assert controls == [(f"{pairs[0][2]} shuffled",)]
    assert shown == [("experts, shuffled",)]
    assert "neurons, max, shuffled" in (study / "printed.txt").read_text()


def test_latents_are_selected_as_neurons_are(study: Path) -> None:
    """Recomputed with scikit-learn from the latents, which must not be among the neurons."""
    from sklearn.metrics import average_precision_score

    with open_store(study / "results/sweep") as connection:
        query = connection.sql
        values = query(
            "SELECT value FROM activations WHERE site = 'sae' AND pooling = 'max' "
            "ORDER BY unit, sentence_id"
        ).fetchnumpy()["value"]
        found = query(
            "SELECT concept, unit, ap_raw FROM control_experts "
            "WHERE control = 'sae latents' AND pooling = 'max' AND layer = 1 AND site = 'sae'"
        ).fetchall()
        among_neurons = query("SELECT count(*) FROM experts WHERE site = 'sae'").fetchall()
    matrix = values.reshape(80, 36)
    of = np.array([name for name, _ in tiny.sentences()])
    assert among_neurons == [(0,)]
    assert len(found) > 20
    for concept, unit, ap_raw in found:
        expected = average_precision_score(of == concept, matrix[unit])
        assert ap_raw == pytest.approx(expected, abs=1e-12)
    assert "neurons, max, sae latents" in (study / "printed.txt").read_text()


def test_every_kind_of_judgment_and_what_cannot_be_used_is_told(study: Path, tmp_path: Path) -> None:
    """Beside the pairs: triplets, other measures, raters; and a set without overlap, with too few
    pairs, with one score for all. None may end in a number that is none, or in silence."""
    shutil.copytree(study, tmp_path / "study")
    folder = tmp_path / "study"
    pairs = (folder / "human.csv").read_text().splitlines()
    (folder / "constant.csv").write_text(
        "\n".join([pairs[0], *(line.rsplit(",", 1)[0] + ",3" for line in pairs[1:])])
    )
    (folder / "few.csv").write_text("\n".join(pairs[:5]))
    (folder / "strangers.csv").write_text("a,b,score\nking,queen,3\n")
    (folder / "raters.csv").write_text(
        "\n".join(
            [pairs[0] + ",r1,r2", *(f"{line},{n % 4},{n % 3}" for n, line in enumerate(pairs[1:]))]
        )
    )
    triplets = [("cat", "dog", "car"), ("cat", "cow", "bus"), ("car", "bus", "cow")] * 4
    (folder / "odd.csv").write_text("\n".join(["a,b,odd", *map(",".join, triplets)]))
    file = folder / "sweep.yaml"
    file.write_text(
        file.read_text().replace(
            "human: [{name: mine, path: human.csv}]",
            "agreement: [kendall, pearson]\nhuman:\n  - {name: mine, path: human.csv}\n"
            "  - {name: constant, path: constant.csv}\n  - {name: few, path: few.csv}\n"
            "  - {name: strangers, path: strangers.csv}\n"
            "  - {name: raters, path: raters.csv, raters: [r1, r2]}\n"
            "  - {name: odd, path: odd.csv, kind: triplets}\n",
        )
    )
    done = neuralign("run", file)
    assert done.returncode == 0, done.stderr
    for note in (
        "constant: all scores are equal, so nothing can agree with them",
        "few has 4 pairs of these concepts; 10 are needed",
        "strangers has 0 pairs of these concepts; 10 are needed",
        "strangers: 0 pairs of these concepts; left out: 1 no concept",
    ):
        assert note in done.stderr
    with open_store(folder / "results/sweep") as connection:
        found = connection.sql(
            "SELECT human_set, agreement, count(*), count(rho), count(p), count(ceiling), "
            "count(*) FILTER (isnan(rho) OR isnan(p)) FROM alignment "
            "WHERE run != (SELECT run FROM runs WHERE stage = 'alignment' ORDER BY finished LIMIT 1) "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert [row[:2] for row in found] == [
        ("mine", "kendall"),
        ("mine", "pearson"),
        ("odd", "triplets"),
        ("raters", "kendall"),
        ("raters", "pearson"),
    ]
    assert all(row[3] > 0 and row[6] == 0 for row in found)
    assert all(row[4] > 0 for row in found)
    assert all((row[5] > 0) == (row[0] == "raters") for row in found)
    compared = neuralign("compare", folder / "results/sweep", "--human", "odd")
    assert "odd: share predicted on the same 12 triplets of 5 concepts" in compared.stdout
    assert max(map(len, compared.stdout.splitlines())) <= 80


def test_comparing_with_what_is_not_there_says_what_is(study: Path) -> None:
    store = study / "results/sweep"
    compared = neuralign("compare", store, "--human", "mine")
    assert "mine: Spearman's rho on the same 12 pairs of 6 concepts" in compared.stdout
    for options, message in (
        (["--human", "men"], "holds no comparison with 'men'; it has: mine"),
        (["--human", "mine", "--agreement", "kendall"], "has no kendall for 'mine'; it has spearman"),
        (["--human", "mine", "--threshold", "0.55"], "no experts at the threshold 0.55; it has 0.5"),
    ):
        refused = neuralign("compare", store, *options)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert message in refused.stderr


def test_other_columns_of_a_human_file_are_other_judgments(study: Path, tmp_path: Path) -> None:
    for name in ("concepts.csv", "human.csv"):
        shutil.copy(study / name, tmp_path)
    lines = (tmp_path / "human.csv").read_text().splitlines()
    both = [f"{line},{number}" for number, line in enumerate(lines[1:])]
    (tmp_path / "human.csv").write_text("\n".join([lines[0] + ",other", *both]) + "\n")
    last = set()
    for column in ("score", "other"):
        file = tmp_path / "sweep.yaml"
        file.write_text(
            f"concepts: concepts.csv\nmodels: [{study / 'model'}]\n"
            f"human: [{{name: mine, path: human.csv, columns: [a, b, {column}]}}]\n"
        )
        last.add(plan_sweep(read_sweep(file)).stages[-1].fingerprint)
    assert len(last) == 2


def test_a_stage_whose_file_is_gone_is_done_again_and_never_read(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "study")
    store = tmp_path / "study/results/sweep"
    (lost,) = store.glob("experts/model-main-*/experts/max.L01.mlp.hidden.parquet")
    whole = lost.read_bytes()
    lost.unlink()
    answer = neuralign("sql", store, "SELECT 1")
    assert answer.returncode == 2
    assert f"{lost}: is missing" in answer.stderr
    assert neuralign("run", tmp_path / "study/sweep.yaml").returncode == 0
    assert lost.read_bytes() == whole


@pytest.mark.parametrize("place", ["hash-0123456789abcdef", "a b'c"])
def test_the_name_of_a_stores_folder_means_nothing(study: Path, tmp_path: Path, place: str) -> None:
    shutil.copytree(study / "results/sweep", tmp_path / place / "store")
    assert rows(tmp_path / place / "store") == rows(study / "results/sweep")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (" ", "the query is empty"),
        ("SELECT nonsense FROM concepts", "nonsense"),
        ("SELEC", "syntax error"),
        ("COPY concepts TO 'STORE/out.csv'", "COPY is not allowed"),
        ("SELECT 1; DROP VIEW concepts", "DROP is not allowed"),
        ("SELECT * FROM read_csv('/etc/passwd')", "Permission Error"),
        ("SET enable_external_access = true", "SET is not allowed"),
        ("INSTALL httpfs", "LOAD is not allowed"),
    ],
)
def test_sql_reads_the_store_and_nothing_else(study: Path, query: str, message: str) -> None:
    store = study / "results/sweep"
    answer = neuralign("sql", store, query.replace("STORE", str(store)))
    assert answer.returncode == 2
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (store / "out.csv").exists()


def test_status_and_plan_tell_what_is_done(study: Path) -> None:
    status = neuralign("status", study / "results/sweep").stdout
    assert status.count(" done ") == 33
    plan = neuralign("plan", study / "sweep.yaml").stdout
    assert "6 concepts, 36 sentences, 2 models" in plan
    assert plan.count(" done ") == 33
    shutil.copytree(study / "model", study / "other/model")
    file = tiny.write_sweep(study / "other")
    plan = neuralign("plan", file).stdout
    assert plan.count("to do") == 9
    assert "1 of 1" in plan
    assert not (study / "other/results").exists()


def test_each_stage_can_be_run_alone_and_numbers_come_again(study: Path, tmp_path: Path) -> None:
    """Nothing in a result may depend on when, in which order or by which process it was computed."""
    for name in ("model", "encoder"):
        shutil.copytree(study / name, tmp_path / name)
    for name in ("sweep.yaml", "concepts.csv", "human.csv", "vectors.txt", "sae.safetensors"):
        shutil.copy(study / name, tmp_path)
    file, store = tmp_path / "sweep.yaml", tmp_path / "results/sweep"
    assert python_m("jobs.experts", file).returncode == 0
    stages = {path.name for path in store.iterdir() if path.is_dir()}
    assert stages == {"sentences", "activations", "experts"}
    assert python_m("jobs.sweep", file).returncode == 0
    assert rows(store) == rows(study / "results/sweep")
    assert "usage: python -m jobs.experts FILE" in python_m("jobs.experts").stderr


def _many_sentences(folder: Path, model: Path) -> Path:
    """A sweep with ten work units, so that a kill falls between them."""
    shutil.copytree(model, folder / "model")
    file = tiny.write_sweep(folder)
    lines = (folder / "concepts.csv").read_text().splitlines()
    more = [line[:-2] + f' {number}."' for number in range(17) for line in lines[1:]]
    (folder / "concepts.csv").write_text("\n".join([lines[0], *more]) + "\n")
    return file


def _start(file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.sweep", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.rglob(pattern)):
        assert process.poll() is None, "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def started() -> Iterator[list[psutil.Process]]:
    """What stopped sweeps had started: it must be gone when the other tests here are done. After a
    SIGKILL, Ray's agents take a minute to give their cluster up."""
    processes: list[psutil.Process] = []
    yield processes
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert not alive


def test_a_sweep_that_is_stopped_goes_on_and_ends_the_same(
    tmp_path: Path, tiny_model: Path, started: list[psutil.Process]
) -> None:
    """By Ctrl-C or by SIGKILL, in the middle of activations or of experts."""
    undisturbed = _many_sentences(tmp_path / "undisturbed", tiny_model)
    assert python_m("jobs.sweep", undisturbed).returncode == 0
    file = _many_sentences(tmp_path / "stopped", tiny_model)
    store = tmp_path / "stopped/results/sweep"
    for pattern, with_signal, code in (
        ("activations/*/_units/00001.json", signal.SIGKILL, -9),
        ("experts/*/_units/max.L01*.json", signal.SIGINT, 130),
    ):
        process = _start(file)
        _wait_for(tmp_path / "stopped", pattern, process)
        started += psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, with_signal)
        assert process.wait(timeout=60) == code
        assert not list(store.glob("report/*/_SUCCESS.json"))
        if with_signal == signal.SIGINT:
            assert "stopped" in neuralign("status", store).stdout
    status = neuralign("status", store).stdout
    assert "units done" in status
    finished = python_m("jobs.sweep", file)
    assert finished.returncode == 0, finished.stderr
    assert rows(store) == rows(tmp_path / "undisturbed/results/sweep")


def _bad(folder: Path, tiny_model: Path, kind: str) -> Path:
    shutil.copytree(tiny_model, folder / "model")
    file = tiny.write_sweep(folder)
    config = folder / "model/config.json"
    if kind == "no such file":
        (folder / "concepts.csv").unlink()
    elif kind == "unknown model":
        file.write_text(file.read_text().replace("id: model", "id: ./nowhere"))
    elif kind == "unknown on the hub":
        file.write_text(file.read_text().replace("id: model", "id: nobody-at-all/no-model"))
    elif kind == "no causal language model":
        content = json.loads(config.read_text())
        content |= {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
        config.write_text(json.dumps(content))
    elif kind == "pickled":
        (folder / "model/model.safetensors").rename(folder / "model/pytorch_model.bin")
    elif kind == "another version":
        (folder / "results/sweep").mkdir(parents=True)
        (folder / "results/sweep/_STORE.json").write_text('{"format": 99}')
    elif kind == "no place":
        (folder / "results").write_text("a file")
    elif kind == "too few negatives":
        file.write_text(file.read_text() + "experts: {negatives: others:1000}\n")
    elif kind == "no vocabulary":
        (folder / "model/tokenizer.json").unlink()
    elif kind == "no revision":
        file.write_text(file.read_text().replace("dtype: float32", "revisions: [step1]"))
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no such file", "concepts.csv: no such file"),
        ("unknown model", "model './nowhere': there is no file or folder"),
        ("unknown on the hub", "'nobody-at-all/no-model': is no folder or .gguf file here, and the"),
        ("no causal language model", "its architecture is BertForMaskedLM"),
        ("pickled", "pickled weights only, which can hide"),
        ("another version", "was made by another version of neuralign (store format 99"),
        ("no revision", "has no revision 'step1'"),
        ("no place", "no store can be made there"),
        ("too few negatives", "concept 'cat' has 30 possible negatives"),
        ("no vocabulary", "has no tokenizer"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, tiny_model: Path, kind: str, message: str
) -> None:
    file = _bad(tmp_path, tiny_model, kind)
    before = sorted(tmp_path.rglob("*"))
    done = neuralign("run", file)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for arguments in (["--debug", "run", tmp_path / "none"], ["run", tmp_path / "none", "--debug"]):
        assert "Traceback" in neuralign(*arguments).stderr


def test_a_wrong_command_line_is_one_line_and_exit_code_2() -> None:
    for arguments in (["nonsense"], ["run"], ["sql", "nowhere", "--format", "xml"]):
        done = neuralign(*arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for command in ("status", "sql"):
        done = neuralign(command, tmp_path / "nowhere")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "no such store" in done.stderr


def test_weights_with_a_number_that_is_none_fail_the_sweep_and_write_no_result(
    tmp_path: Path, tiny_model: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3] = np.nan
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    done = neuralign("run", tiny.write_sweep(tmp_path))
    assert done.returncode == 1
    assert "L02.mlp.hidden" in done.stderr
    assert "model@main" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "results").rglob("activations/*/_SUCCESS.json"))
    assert "failed" in neuralign("status", tmp_path / "results/sweep").stdout
