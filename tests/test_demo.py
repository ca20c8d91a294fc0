"""The demo on its real model must print what the README shows, in the memory of a laptop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from alignment.expertise.scoring import REFERENCE_PREVALENCE
from alignment.statistics.steering import attribution_correlation
from storage.database import open_store

ROOT = Path(__file__).parent.parent
MAX_BYTES = 5e9
SENTENCES = 108 * 24
STEERED = ["apartment", "bacon", "bathroom", "bedroom"]


@dataclass
class Run:
    """A finished demo."""

    store: Path
    printed: str
    peak_bytes: int = 0
    summary: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo")
    content = yaml.safe_load((ROOT / "examples/demo.yaml").read_text())
    content |= {"store": str(folder / "store"), "concepts": str(ROOT / "examples/demo-concepts.csv")}
    (folder / "demo.yaml").write_text(yaml.safe_dump(content))
    with (folder / "printed").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.sweep", str(folder / "demo.yaml")], stdout=out
        )
        run = Run(folder / "store", "")
        watch = threading.Thread(target=_watch, args=(process, run))
        watch.start()
        assert process.wait(timeout=2000) == 0
        watch.join()
    run.printed = (folder / "printed").read_text()
    (summary,) = run.store.glob("report/*/summary.json")
    run.summary = json.loads(summary.read_text())
    return run


def _watch(process: subprocess.Popen[bytes], run: Run) -> None:
    """Record the peak memory of the demo and its child processes, counting shared pages once."""
    while process.poll() is None:
        total = 0
        with suppress(psutil.NoSuchProcess):
            demo = psutil.Process(process.pid)
            for member in [demo, *demo.children(recursive=True)]:
                # it may have exited in the meantime
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    total += member.memory_full_info().pss
        run.peak_bytes = max(run.peak_bytes, total)
        # measuring more often would slow the demo down
        time.sleep(3)


def men(run: Run, **values: Any) -> list[dict[str, Any]]:
    """Agreement with MEN on all pairs, in rows with these values."""
    return _select(run.summary["alignment"], **values)


def _select(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    values |= {"human_set": "men", "subset": "all"}
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def test_neurons_align_better_than_the_words_of_their_sentences_and_not_than_glove(demo: Run) -> None:
    pairs = demo.summary["human_pairs"]["men"]
    assert pairs >= 319
    (glove,) = men(demo, representation="word vectors", measure="cosine")
    (embedding,) = men(demo, representation="input embedding", measure="cosine")
    for pooling in ("max", "concept", "context"):
        neurons = {
            **{"representation": "experts", "measure": "jaccard", "pooling": pooling},
            **{"threshold": 0.5, "layer": None},
        }
        (trained,) = men(demo, **neurons, revision="main")
        assert trained["n_pairs"] == glove["n_pairs"] == embedding["n_pairs"] == pairs
        assert trained["rho"] > embedding["rho"]
        assert trained["ci_low"] > 0
        assert trained["p"] < 0.01
        to_glove, to_bag = _select(demo.summary["differences"], **neurons, revision="main")
        assert (to_glove["reference"], to_bag["reference"]) == ("glove-50 word vectors", "bag of words")
        assert to_glove["difference_low"] < 0
        assert to_bag["difference_low"] > 0
        (control,) = men(demo, **neurons, revision="random-init")
        assert control["rho"] is None or control["rho"] < trained["ci_low"]


def test_controls_align_too_and_split_half_reliability_is_high(demo: Run) -> None:
    for control in ("half 1", "half 2"):
        for pooling in ("max", "concept", "context"):
            key = {"representation": f"experts, {control}", "pooling": pooling, "threshold": 0.5}
            (row,) = men(demo, **key)
            assert row["ci_low"] > 0
    halves = [row for row in demo.summary["reliability"] if row["threshold"] == 0.5]
    assert {row["pooling"] for row in halves} == {"max", "concept", "context", "before"}
    assert all(row["ci_low"] > 0.3 for row in halves if row["pooling"] != "before")


def test_the_text_before_a_word_tells_little_of_it(demo: Run) -> None:
    """Its tokens have not read the word: experts as good as those of `context` would have."""
    key = {"representation": "experts", "measure": "jaccard", "layer": None, "revision": "main"}
    (context,), (before,) = (
        men(demo, **key, threshold=0.5, pooling=pooling) for pooling in ("context", "before")
    )
    assert before["ci_high"] < context["ci_low"]
    (halves,) = [
        row
        for row in demo.summary["reliability"]
        if (row["pooling"], row["threshold"]) == ("before", 0.5)
    ]
    assert halves["rho"] < 0.3


def test_only_trained_weights_have_the_hierarchy(demo: Run) -> None:
    trees = [row for row in demo.summary["hierarchy"] if row["threshold"] == 0.5]
    for row in trees:
        if row["revision"] == "main" and row["pooling"] != "before":
            assert row["auc_low"] > 0.7
            assert row["recovered"] > 3 * row["recovered_by_chance"]
            assert row["recovered_p"] < 0.01
            assert row["one_domain"] > 2 * row["one_domain_by_chance"]
        elif row["auc"] is not None:
            assert row["auc"] < (0.7 if row["revision"] == "main" else 0.6)
    assert len(trees) == 8


@pytest.fixture(scope="module")
def steered(demo: Run) -> Run:
    """The demo's store after some of its concepts were steered, for which activations are kept."""
    file = demo.store.parent / "demo.yaml"
    steering = {"concepts": STEERED, "k": [30], "singles": 20, "single_concepts": 2, "samples": 0}
    settings = {
        **{"steering": steering, "baselines": [], "controls": []},
        "experts": {"keep_activations": True},
    }
    content = yaml.safe_load(file.read_text()) | settings
    content["models"] = [{"id": content["models"][0]["id"], "cpus_per_shard": 1}]
    steered = file.with_name("steered.yaml")
    steered.write_text(yaml.safe_dump(content))
    subprocess.run([sys.executable, "-m", "jobs.steering", str(steered)], check=True)
    return demo


def test_all_poolings_cover_the_same_sentences(steered: Run) -> None:
    with open_store(steered.store) as connection:
        counts = connection.sql(
            "SELECT pooling, sum(sentences) FROM activation_files "
            "WHERE site = 'mlp.hidden' AND revision = 'main' GROUP BY ALL"
        ).fetchall()
        params = connection.sql(
            "SELECT params->>'prevalence' FROM runs WHERE stage = 'experts'"
        ).fetchall()
    poolings = ("max", "concept", "context", "before")
    assert set(counts) == {(pooling, SENTENCES * 30) for pooling in poolings}
    assert {float(value) for (value,) in params} == {REFERENCE_PREVALENCE}


def test_maxima_of_more_tokens_are_not_smaller(steered: Run) -> None:
    """A pooling of tokens that are not the sentence's own. 0: a sentence that begins with its word."""
    with open_store(steered.store) as connection:
        (wrong, n) = connection.sql(
            "SELECT count(*) FILTER (p.max < greatest(p.concept, p.context) "
            "OR (p.before > p.context AND p.before != 0)), count(*) FROM ("
            "PIVOT (SELECT sentence_id, unit, pooling, value FROM activations WHERE layer = 12 "
            "AND site = 'mlp.hidden' AND revision = 'main') ON pooling USING first(value)) AS p"
        ).fetchall()[0]
    assert (wrong, n) == (0, SENTENCES * 1536)


def test_the_summary_fits_80_columns_and_equals_the_readme(demo: Run) -> None:
    """To two decimals; a processor without bfloat16 may change the last one."""
    printed = demo.printed.split("Next steps:")[0]
    assert max(map(len, printed.splitlines())) <= 80
    tables = (
        text.partition("with 95% CI.")[2].partition("Hierarchy:")[0]
        for text in ((ROOT / "README.md").read_text(), printed)
    )
    expected, values = (
        {
            label: float(value)
            for label, value in re.findall(r"^  (\S.*?) {2,}(-?\d\.\d\d)\b", table, re.M)
        }
        for table in tables
    )
    assert len(expected) >= 8
    assert expected == pytest.approx(values, abs=0.03)


def test_clamping_experts_of_the_demo_makes_their_words_more_likely(steered: Run) -> None:
    """Experts must have larger effects than random neurons that displace their layers as far, on their
    own word more than on others, and the largest by attribution; attributions must predict effects of
    single neurons."""
    with open_store(steered.store) as connection:
        rows = connection.sql(
            "SELECT selection, change, others FROM steering_doses WHERE intervention = 'clamp'"
        ).fetchall()
        neurons = connection.sql(
            "SELECT concept, attribution, change FROM steering_neurons"
        ).fetchnumpy()
    doses = {selection: (change, others) for selection, change, others in rows}
    assert doses["attribution"][0] > doses["ap"][0] > max(1, doses["ap"][1] + 0.5)
    for selection, control in (("ap", "random"), ("attribution", "random-attribution")):
        assert doses[selection][0] > doses[control][0] + 1
    for concept in STEERED[:2]:
        own = neurons["concept"] == concept
        assert own.sum() == 20
        assert (
            attribution_correlation(*(neurons[name][own] for name in ("attribution", "change"))) or 0
        ) > 0.8


def test_the_demo_fits_a_laptops_memory(demo: Run) -> None:
    print(f"peak {demo.peak_bytes / 1e9:.2f} GB")
    assert 0 < demo.peak_bytes < MAX_BYTES
