"""Steering through Ray and as a user runs it: an effect that is not that of the neurons named, of the
word, or of all shards would look like any other number."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError

from cluster.activations.shard import Settings
from cluster.activations.tokens import Tokenizer
from cluster.models.weights import Weights, resolve
from cluster.steering.interventions import NOTHING, Forced, Row, Values, Word
from cluster.steering.pipeline import (
    Growth,
    Sloped,
    SlopeUnit,
    SteeringPipeline,
    SteeringUnit,
    tokens_of,
)
from cluster.steering.shard import SteeredShard
from jobs import steering
from jobs.config import read_sweep
from jobs.planner import plan
from storage.database import ask, open_store
from storage.errors import UserError
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process
from tests.planted import CPU
from tests.test_steered_shard import Oracle

PROMPTS = ["The", "My aunt drew one"]
TOLERANCE = 1e-5
MLP = "mlp.hidden"
STEERING = (
    "neurons: {pooling: [concept, max]}\n"
    "steering: {k: [1, 3, 10], singles: 4, single_concepts: 2, tokens: 4, pooling: max, "
    f"prompts: {json.dumps(PROMPTS)}, concepts: [cat, boat, bus]}}\n"
)


@pytest.fixture(scope="module")
def tiny_weights(tiny_model: Path) -> Weights:
    return resolve(str(tiny_model), "main", tiny_model)


@pytest.fixture(scope="module")
def cut(tiny_weights: Weights) -> Iterator[dict[int, SteeringPipeline]]:
    """The tiny model whole and in two shards."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    settings = Settings("float32", "linears", [])
    yield {shards: SteeringPipeline(tiny_weights, settings, shards, CPU) for shards in (1, 2)}
    ray.shutdown()


def words_of(folder: Path, name: str) -> list[Word]:
    tokenizer = Tokenizer(folder, 64)
    return [Word(*map(tuple, tokenizer.after(prompt, name))) for prompt in PROMPTS]


FORCED: list[Forced] = [
    NOTHING,
    {(0, "mlp.up_proj"): Values(np.array([5, 0]), np.array([1, -1], np.float32))},
    {
        (1, "self_attn.o_proj"): Values(np.array([3]), np.array([2], np.float32)),
        (2, "mlp.down_proj"): Values(np.array([7]), np.array([3], np.float32)),
    },
]


def test_two_shards_steer_as_one(cut: dict[int, SteeringPipeline], tiny_model: Path) -> None:
    """Also when rows under different forcings share a batch: each has its own effect."""
    words = [*words_of(tiny_model, "cat"), *words_of(tiny_model, "weatherman")]
    rows = [Row(word.sequence, forced, word.targets) for forced in FORCED for word in words]
    growing = [Row(word.before, forced) for forced in FORCED for word in words]
    chances = np.random.default_rng(0).random((len(growing), 5))
    alone = SteeredShard(tiny_model, Settings("float32", "linears", []))
    oracle = Oracle(tiny_model)
    expected = [float(oracle.log_p(w, alone.sites, f).detach()) for f in FORCED for w in words]
    texts = []
    for shards, budget in ((1, 100), (2, 100), (2, 1)):
        unit = SteeringUnit("u", rows, Growth(growing, chances, 1.0), budget)
        found = ray.get(cut[shards].steer(unit))
        np.testing.assert_allclose(
            [each.sum() for each in found.log_p], expected, rtol=0, atol=TOLERANCE
        )
        texts.append(found.texts)
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > len(words)


def test_two_shards_attribute_as_one(cut: dict[int, SteeringPipeline], tiny_model: Path) -> None:
    """Whatever the batches are; the mean over prompts of what each word's sequences say of a neuron."""
    words = [words_of(tiny_model, name) for name in ("cat", "weatherman")]
    rows = [
        Row(word.sequence, targets=word.targets, group=group)
        for group, some in enumerate(words)
        for word in some
    ]
    wanted = {
        (layer, site): Sloped(np.array([0, 1, 1]), np.array([2, 2, 9]), np.array([0.5, -2.0, 3.0]))
        for layer in range(3)
        for site in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    }
    alone = SteeredShard(tiny_model, Settings("float32", "linears", []))
    expected = {place: np.zeros(3) for place in wanted}
    for row in rows:
        (batch,) = _batches([row])
        _, sums = alone.back(alone.tape(batch, None), None)
        for place, each in wanted.items():
            slopes, products = (values[0][each.units] for values in sums[place])
            expected[place] += (each.groups == row.group) * (each.on * slopes - products) / len(PROMPTS)
    for shards, budget in ((1, 1000), (2, 1000), (2, 1)):
        unit = SlopeUnit("u", rows, wanted, budget)
        for _ in range(2):
            # what a unit leaves behind may not be counted the next time
            found = ray.get(cut[shards].attribute(unit))
            assert found.keys() == wanted.keys()
            for place, values in found.items():
                np.testing.assert_allclose(values, expected[place], rtol=0, atol=TOLERANCE)


def test_attributions_of_which_a_batch_failed_are_not_given(
    cut: dict[int, SteeringPipeline], tiny_model: Path
) -> None:
    """The last batches may be fine: the sums would lack what the first one says."""
    rows = [Row(word.sequence, targets=word.targets) for word in words_of(tiny_model, "cat")]
    wanted = {(0, "mlp.up_proj"): Sloped(np.array([0]), np.array([2]), np.array([0.5]))}
    unit = SlopeUnit("u", rows, wanted, 1)
    (shard,) = cut[1]._shards
    before = ray.get(cut[1].attribute(unit))
    ray.get(shard.__ray_call__.remote(_fail_once))
    with pytest.raises(RayTaskError, match="out of memory"):
        ray.get(cut[1].attribute(unit))
    again = ray.get(cut[1].attribute(unit))
    assert all(np.array_equal(again[place], values) for place, values in before.items())


def _fail_once(actor: Any) -> None:
    tape = actor._shard.tape

    def failing(*_: Any) -> Any:
        actor._shard.tape = tape
        raise RuntimeError("CUDA out of memory.")

    actor._shard.tape = failing


def test_a_neuron_forced_to_what_it_is_changes_nothing(tiny_model: Path) -> None:
    """To the bit, with one token, where it is one value; so nothing else is changed beside it."""
    for sites in ("mlp", "linears"):
        shard = SteeredShard(tiny_model, Settings("float32", sites, []))
        row = Row((40,), targets=Word((40,), (50,)).targets)
        (batch,) = _batches([row])
        seen = shard.tape(batch, None).seen
        forced = {
            place: Values(np.arange(values.shape[-1]), values.detach()[0, 0].numpy())
            for place, values in seen.items()
        }
        (same,) = _batches([Row(row.ids, forced, row.targets)])
        plain, again = (shard.run(each, None)[0] for each in (batch, same))
        assert np.array_equal(plain, again)


def _batches(rows: list[Row]) -> list[Any]:
    from cluster.steering.interventions import cut as cut_rows

    return cut_rows(rows, 100)


def test_what_the_model_cannot_read_is_said(tiny_weights: Weights) -> None:
    """The tiny model has 64 positions, and no token for nothing."""
    starts, words = tokens_of(tiny_weights, PROMPTS, ["cat", "dog"], 4)
    assert len(starts) == len(words) == 2
    assert [word.before for word in words[0]] == starts
    for prompts, names, further, message in (
        ([*PROMPTS, "mill " * 40], ["cat"], 0, "mill ' comes to"),
        (PROMPTS, ["cat"], 62, "'My aunt drew one' comes to .* reads 64"),
        (PROMPTS, [""], 0, "the word '' has no token"),
    ):
        with pytest.raises(UserError, match=message):
            tokens_of(tiny_weights, prompts, names, further)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a finished sweep that steered."""
    folder = tmp_path_factory.mktemp("steered")
    file = tiny.write_sweep(folder, str(tiny_model), STEERING)
    file.write_text(file.read_text().replace("neurons: {pooling: [max, concept, context]}\n", ""))
    with in_one_process():
        done = neuralign("run", file)
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def query(study: Path, text: str) -> list[dict[str, Any]]:
    with open_store(study / "results/sweep") as connection:
        found: list[dict[str, Any]] = ask(connection, text).to_pylist()
        return found


def best(study: Path, concept: str, order: str) -> Forced:
    """The three neurons that are first in an order."""
    rows = query(
        study,
        "SELECT layer, unit, on_p50 FROM experts JOIN attributions "  # noqa: S608
        f"USING (pooling, concept, layer, site, unit) WHERE pooling = 'max' AND concept = '{concept}' "
        f"ORDER BY {order} DESC, layer, unit LIMIT 3",
    )
    return {
        (layer, MLP): Values(
            np.array([row["unit"] for row in rows if row["layer"] == layer], np.int64),
            np.array([row["on_p50"] for row in rows if row["layer"] == layer], np.float32),
        )
        for layer in range(3)
    }


def oracle_changes(folder: Path, name: str, forced: list[Forced]) -> list[float]:
    """What a forcing for each prompt changes after it."""
    oracle = Oracle(folder)
    sites = SteeredShard(folder, Settings("float32", "mlp", [])).sites
    return [
        float((oracle.log_p(word, sites, each) - oracle.log_p(word, sites)).detach())
        for word, each in zip(words_of(folder, name), forced, strict=True)
    ]


def test_what_is_stored_is_what_the_model_does(study: Path, tiny_model: Path) -> None:
    """The neurons are those that the tables name, with their on values, and the words those of the
    concepts. What is measured after one prompt may not have been chosen by its own attributions."""
    for concept, selection, orders in (
        ("cat", "ap", ("ap", "ap")),
        ("boat", "attribution", ("attribution_even", "attribution_odd")),
    ):
        forced = [best(study, concept, order) for order in orders]
        stored = query(
            study,
            "SELECT prompt, change, others FROM steering_prompts WHERE k = 3 "  # noqa: S608
            f"AND concept = '{concept}' AND selection = '{selection}'",
        )
        assert {row["prompt"] for row in stored} == set(PROMPTS)
        by_prompt = {row["prompt"]: row for row in stored}
        own = oracle_changes(tiny_model, concept, forced)
        assert [by_prompt[each]["change"] for each in PROMPTS] == pytest.approx(own, abs=1e-4)
        others = np.mean(
            [oracle_changes(tiny_model, each, forced) for each in {"cat", "boat", "bus"} - {concept}],
            axis=0,
        )
        assert [by_prompt[each]["others"] for each in PROMPTS] == pytest.approx(list(others), abs=1e-4)
        (mean,) = query(
            study,
            "SELECT change, change_low, n_prompts FROM steering WHERE k = 3 "  # noqa: S608
            f"AND concept = '{concept}' AND selection = '{selection}'",
        )
        assert (mean["change"], mean["n_prompts"]) == (pytest.approx(np.mean(own), abs=1e-4), 2)
        assert mean["change_low"] < mean["change"]


def test_single_neurons_and_their_attributions_are_stored(study: Path, tiny_model: Path) -> None:
    rows = query(study, "SELECT * FROM steering_neurons ORDER BY concept, ap DESC")
    assert [row["concept"] for row in rows] == ["boat"] * 4 + ["cat"] * 4
    for row in (rows[0], rows[-1]):
        (expert,) = query(
            study,
            "SELECT ap, attribution, on_p50 FROM experts WHERE "  # noqa: S608
            f"concept = '{row['concept']}' AND "
            f"pooling = 'max' AND layer = {row['layer']} AND unit = {row['unit']}",
        )
        assert (expert["ap"], expert["attribution"]) == (row["ap"], row["attribution"])
        values = Values(np.array([row["unit"]]), np.array([expert["on_p50"]], np.float32))
        alone: list[Forced] = [{(row["layer"], MLP): values}] * len(PROMPTS)
        changes = oracle_changes(tiny_model, row["concept"], alone)
        assert row["change"] == pytest.approx(np.mean(changes), abs=1e-4)


def test_attributions_are_kept_for_either_half_of_the_prompts(study: Path, tiny_model: Path) -> None:
    """Mixed up, neurons would be chosen after the very prompts that they are then measured after."""
    shard = SteeredShard(tiny_model, Settings("float32", "mlp", []))
    sums = []
    for word in words_of(tiny_model, "bus"):
        (batch,) = _batches([Row(word.sequence, targets=word.targets)])
        sums.append(shard.back(shard.tape(batch, None), None)[1])
    rows = query(
        study,
        "SELECT a.*, on_p50 FROM attributions AS a JOIN experts USING (pooling, concept, layer, site, "
        "unit) WHERE concept = 'bus' AND pooling = 'max' ORDER BY ap DESC LIMIT 5",
    )
    for row in rows:
        odd, even = (
            row["on_p50"] * slopes[0, row["unit"]] - products[0, row["unit"]]
            for slopes, products in (each[row["layer"], MLP] for each in sums)
        )
        assert (row["attribution_odd"], row["attribution_even"]) == pytest.approx((odd, even), abs=1e-5)
        assert row["attribution"] == pytest.approx((odd + even) / 2, abs=1e-5)


def test_a_concept_is_compared_with_others_by_lot() -> None:
    """With itself among them nothing would be specific; with all of many it would take too long."""
    after = [[Word((1, prompt), (10 + concept,)) for prompt in range(3)] for concept in range(5)]
    for others in (0, 2, 9):
        asked = steering._Question([], after, [], np.empty(0), 7, others)
        drawn = []
        for number in range(5):
            unit = steering._Unit(number, "", 1)
            odd, even = asked.compared(unit)
            assert [word.before[1] for word in odd.words[:2]] == [0, 2]
            assert [word.before[1] for word in even.words[:1]] == [1]
            drawn.append([word.tokens[0] - 10 for word in even.words])
            assert [word.tokens[0] - 10 for word in odd.words[::2]] == drawn[-1]
            assert asked.own(unit).words == after[number]
        assert [some[0] for some in drawn] == list(range(5))
        assert all(len(set(some)) == len(some) == min(others, 4) + 1 for some in drawn)


def test_experts_have_attributions_where_they_were_computed(study: Path) -> None:
    """By every pooling, for the on values of that pooling; null for concepts that were not asked for."""
    counts = query(
        study,
        "SELECT concept, pooling, count(*) AS rows, count(attribution) AS there FROM experts "
        "GROUP BY ALL",
    )
    assert {row["pooling"] for row in counts} == {"concept", "max"}
    for row in counts:
        asked = row["concept"] in ("cat", "boat", "bus")
        assert row["there"] == (row["rows"] if asked else 0)
    with open_store(study / "results/sweep") as connection:
        names = connection.sql("SELECT * FROM experts LIMIT 0").columns
    assert names[-3:] == ["off_mean", "attribution", "run"]


def test_doses_are_means_over_concepts_and_begin_with_nothing(study: Path) -> None:
    rows = query(study, "SELECT * FROM steering_doses ORDER BY selection, k")
    means = query(
        study, "SELECT selection, k, avg(change) AS change FROM steering GROUP BY ALL ORDER BY ALL"
    )
    assert [(row["selection"], row["k"]) for row in rows] == [
        *(("ap", k) for k in (1, 3, 10)),
        *(("attribution", k) for k in (1, 3, 10)),
        ("none", 0),
        *(("random", k) for k in (1, 3, 10)),
    ]
    assert [row["change"] for row in rows] == pytest.approx([row["change"] for row in means])
    (nothing,) = (row for row in rows if row["k"] == 0)
    assert (nothing["change"], nothing["others"], nothing["positive"]) == (0, 0, 0)
    texts = query(study, "SELECT continuations FROM steering_prompts")
    assert {len(row["continuations"]) for row in texts} == {2}


def test_the_table_is_printed_and_nothing_is_computed_twice(study: Path) -> None:
    printed = (study / "printed.txt").read_text()
    as_one_line = " ".join(printed.split())
    assert "max pooling: 3 concepts, 2 prompts" in as_one_line
    assert "attribution 10 " in as_one_line
    assert "forced one at a time: Spearman's rho" in as_one_line
    assert max(map(len, printed.split("Steering")[1].split("  picture")[0].splitlines())) <= 80
    again = subprocess.run(
        [sys.executable, "-m", "jobs.steering", str(study / "sweep.yaml")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Nothing to compute: all 5 stages are done" in again.stderr
    assert "attribution 10 " in " ".join(again.stdout.split())
    (picture,) = study.glob("results/sweep/steering/*/doses.png")
    assert picture.read_bytes()[1:4] == b"PNG"
    assert neuralign("verify", study / "results/sweep").stdout == "all is well\n"
    assert "steering" not in neuralign("gc", study / "results/sweep").stdout


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        ("{concepts: [cat, cart]}", "steering.concepts: no concept set has the concept 'cart'"),
        ("{pooling: mean}", "steering.pooling: 'mean' is none of neurons.pooling: max"),
        ("{k: [0]}", "steering.k[0]: 0: expected"),
        ("{k: [1, 1]}", "steering.k: 1 is listed twice"),
        ("{prompts: [The]}", "steering.prompts: ['The']: List should have at least 2 items"),
        ("{prompts: ['The ', A]}", "'The ' begins or ends with white space"),
        ("{seed: 1}", "steering.seed: unknown key; allowed: prompts, concepts, pooling"),
        ("{temperature: -1}", "steering.temperature: -1: expected"),
        ("{temperature: .inf}", "steering.temperature: inf: "),
    ],
)
def test_what_cannot_be_steered_is_said_at_once(
    tmp_path: Path, tiny_model: Path, steering: str, message: str
) -> None:
    file = tiny.write_sweep(tmp_path, str(tiny_model), f"steering: {steering}\n")
    with pytest.raises(UserError) as refused:
        plan(read_sweep(file))
    assert message in str(refused.value)
