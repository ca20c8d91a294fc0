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
import torch
from ray.exceptions import RayTaskError
from scipy import stats

from alignment.text.word_matching import ConceptWord
from cluster.models.shard import ShardSettings
from cluster.models.tokenizer import Tokenizer
from cluster.models.weights import Weights, resolve
from cluster.steering.actor import (
    AttributionRequest,
    AttributionTargets,
    Continuations,
    SteeringRequest,
    UnitsRequest,
)
from cluster.steering.interventions import (
    NO_INTERVENTION,
    ChangedUnits,
    Intervention,
    PromptedWord,
    SteeredSequence,
    batch_sequences,
    clamp_units,
)
from cluster.steering.pipeline import SteeringPipeline
from cluster.steering.shard import SteeringShard
from cluster.steering.tokens import tokenize_words
from jobs import steering
from jobs.attributions import ConceptUnit
from jobs.config.loader import read_sweep
from jobs.interventions.neurons import CONTROL_OF, SELECTIONS
from jobs.planner import plan_sweep
from storage.database import open_store, run_query
from storage.errors import UserError
from tests import tiny
from tests.commands import neuralign
from tests.faults import in_one_process
from tests.planted import CPU
from tests.test_steered_shard import ReferenceModel

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
def pipelines(tiny_weights: Weights) -> Iterator[dict[int, SteeringPipeline]]:
    """The tiny model in one shard and in two."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    settings = ShardSettings("float32", "linears")
    yield {shards: SteeringPipeline(tiny_weights, settings, shards, CPU) for shards in (1, 2)}
    ray.shutdown()


def make_words(folder: Path, name: str) -> list[PromptedWord]:
    tokenizer = Tokenizer(folder, 64)
    return [PromptedWord(*map(tuple, tokenizer.encode_prompt(prompt, name))) for prompt in PROMPTS]


INTERVENTIONS: list[Intervention] = [
    NO_INTERVENTION,
    {(0, "mlp.up_proj"): clamp_units(np.array([5, 0]), np.array([1, -1], np.float32))},
    {
        (1, "self_attn.o_proj"): clamp_units(np.array([3]), np.array([2], np.float32)),
        (2, "mlp.down_proj"): clamp_units(np.array([7]), np.array([3], np.float32)),
    },
]


def test_two_shards_steer_as_one(pipelines: dict[int, SteeringPipeline], tiny_model: Path) -> None:
    """Interventions that affect other rows of their batch, or differ between shards."""
    words = [*make_words(tiny_model, "cat"), *make_words(tiny_model, "weatherman")]
    cases = [(word, intervention) for intervention in INTERVENTIONS for word in words]
    sequences = [SteeredSequence(word.sequence, clamps, word.targets) for word, clamps in cases]
    prompts = [SteeredSequence(word.prefix, clamps) for word, clamps in cases]
    uniforms = np.random.default_rng(0).random((len(prompts), 5))
    shard = SteeringShard(tiny_model, ShardSettings("float32", "linears"))
    reference = ReferenceModel(tiny_model)
    expected = [float(reference.log_p(word, shard.sites, clamps).detach()) for word, clamps in cases]
    texts = []
    for shards, budget in ((1, 100), (2, 100), (2, 1)):
        request = SteeringRequest("u", sequences, Continuations(prompts, uniforms, 1.0), budget)
        result = ray.get(pipelines[shards].steer(request))
        np.testing.assert_allclose(
            [values.sum() for values in result.log_p], expected, rtol=0, atol=TOLERANCE
        )
        texts.append(result.texts)
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > len(words)


def test_two_shards_attribute_as_one(pipelines: dict[int, SteeringPipeline], tiny_model: Path) -> None:
    """Attributions that depend on batches or shards, or that are not means over a word's prompts."""
    words = [make_words(tiny_model, name) for name in ("cat", "weatherman")]
    sequences = [
        SteeredSequence(word.sequence, targets=word.targets, group=group)
        for group, prompted in enumerate(words)
        for word in prompted
    ]
    targets = {
        (layer, site): AttributionTargets(
            np.array([0, 1, 1]), np.array([2, 2, 9]), np.array([0.5, -2.0, 3.0])
        )
        for layer in range(3)
        for site in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    }
    shard = SteeringShard(tiny_model, ShardSettings("float32", "linears"))
    expected = {key: np.zeros(3) for key in targets}
    for sequence in sequences:
        (batch,) = batch_sequences([sequence], 100)
        _, sums = shard.backward(shard.forward_recorded(batch, None), None)
        for key, target in targets.items():
            gradients, products = (values[0][target.units] for values in sums[key])
            expected[key] += (
                (target.groups == sequence.group)
                * (target.on_values * gradients - products)
                / len(PROMPTS)
            )
    for shards, budget in ((1, 1000), (2, 1000), (2, 1)):
        request = AttributionRequest("u", sequences, targets, budget)
        for _ in range(2):
            # sums of an earlier request must not be counted again
            attributions = ray.get(pipelines[shards].attribute(request))
            assert attributions.keys() == targets.keys()
            for key, values in attributions.items():
                np.testing.assert_allclose(values, expected[key], rtol=0, atol=TOLERANCE)


def test_two_shards_read_units_as_one(pipelines: dict[int, SteeringPipeline], tiny_model: Path) -> None:
    """Activations of another shard's layers, or of only the last batch."""
    sequences = [SteeredSequence(word.sequence) for word in make_words(tiny_model, "weatherman")]
    units = {
        (layer, site): np.array([1, 9])
        for layer in range(3)
        for site in ("mlp.up_proj", "mlp.down_proj")
    }
    shard = SteeringShard(tiny_model, ShardSettings("float32", "linears"))
    batches = batch_sequences(sequences, 100)
    expected = [shard.read_units(shard.forward_recorded(batch, None), units) for batch in batches]
    assert len(batches) == 2
    for shards, budget in ((1, 1000), (2, 1000), (2, 1)):
        for _ in range(2):
            # activations of an earlier request must not be kept
            read = ray.get(pipelines[shards].read_units(UnitsRequest("u", sequences, units, budget)))
            assert read.keys() == units.keys()
            for key, values in read.items():
                plain = np.concatenate([batch[key] for batch in expected])
                np.testing.assert_allclose(values.activations, plain, rtol=0, atol=TOLERANCE)
                assert values.products.shape == (2, 2)


def test_attributions_with_a_failed_batch_are_not_returned(
    pipelines: dict[int, SteeringPipeline], tiny_model: Path
) -> None:
    """Sums without the first batch, after last batches that succeeded."""
    words = make_words(tiny_model, "cat")
    sequences = [SteeredSequence(word.sequence, targets=word.targets) for word in words]
    targets = {(0, "mlp.up_proj"): AttributionTargets(np.array([0]), np.array([2]), np.array([0.5]))}
    request = AttributionRequest("u", sequences, targets, 1)
    (shard,) = pipelines[1]._shards
    before = ray.get(pipelines[1].attribute(request))
    ray.get(shard.__ray_call__.remote(_fail_once))
    with pytest.raises(RayTaskError, match="out of memory"):
        ray.get(pipelines[1].attribute(request))
    after = ray.get(pipelines[1].attribute(request))
    assert all(np.array_equal(after[key], values) for key, values in before.items())


def _fail_once(actor: Any) -> None:
    forward_recorded = actor._shard.forward_recorded

    def fail(*_: Any) -> Any:
        actor._shard.forward_recorded = forward_recorded
        raise RuntimeError("CUDA out of memory.")

    actor._shard.forward_recorded = fail


def test_clamping_neurons_to_their_own_activations_changes_nothing(tiny_model: Path) -> None:
    """A clamp that changes other values. Exact for one token, where each neuron has one activation."""
    for sites in ("mlp", "linears"):
        shard = SteeringShard(tiny_model, ShardSettings("float32", sites))
        sequence = SteeredSequence((40,), targets=PromptedWord((40,), (50,)).targets)
        (batch,) = batch_sequences([sequence], 100)
        activations = shard.forward_recorded(batch, None).activations
        intervention = {
            key: clamp_units(np.arange(values.shape[-1]), values.detach()[0, 0].numpy())
            for (key, _), values in activations.items()
        }
        (clamped_batch,) = batch_sequences(
            [SteeredSequence(sequence.ids, intervention, sequence.targets)], 100
        )
        assert np.array_equal(shard.run(batch, None)[0], shard.run(clamped_batch, None)[0])


def test_text_that_the_model_cannot_read_is_an_error(tiny_weights: Weights) -> None:
    """Words without tokens, or prompts beyond the model's 64 positions."""
    prompt_ids, words = tokenize_words(tiny_weights, PROMPTS, ["cat", "dog"], 4)
    assert len(prompt_ids) == len(words) == 2
    assert [word.prefix for word in words[0]] == prompt_ids
    for prompts, texts, n_continuation, message in (
        ([*PROMPTS, "mill " * 40], ["cat"], 0, "mill ' is .* tokens long"),
        (PROMPTS, ["cat"], 62, "'My aunt drew one' is .* the limit .* is 64"),
        (PROMPTS, [""], 0, "the word '' has no tokens"),
    ):
        with pytest.raises(UserError, match=message):
            tokenize_words(tiny_weights, prompts, texts, n_continuation)


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
        rows: list[dict[str, Any]] = run_query(connection, text).to_pylist()
        return rows


def clamp_top_three(study: Path, concept: str, order: str) -> Intervention:
    """Clamp the first three neurons in an order to their on values."""
    rows = query(
        study,
        "SELECT layer, unit, on_p50 FROM experts JOIN attributions "  # noqa: S608
        f"USING (pooling, concept, layer, site, unit) WHERE pooling = 'max' AND concept = '{concept}' "
        f"ORDER BY {order} DESC, layer, unit LIMIT 3",
    )
    return {
        (layer, MLP): clamp_units(
            np.array([row["unit"] for row in rows if row["layer"] == layer], np.int64),
            np.array([row["on_p50"] for row in rows if row["layer"] == layer], np.float32),
        )
        for layer in range(3)
    }


def reference_changes(folder: Path, name: str, interventions: list[Intervention]) -> list[float]:
    """Change in log P of a word after each prompt, under that prompt's intervention."""
    reference = ReferenceModel(folder)
    sites = SteeringShard(folder, ShardSettings("float32", "mlp")).sites
    return [
        float((reference.log_p(word, sites, clamps) - reference.log_p(word, sites)).detach())
        for word, clamps in zip(make_words(folder, name), interventions, strict=True)
    ]


def test_stored_effects_match_the_reference_model(study: Path, tiny_model: Path) -> None:
    """Wrong neurons, on values or words; or neurons measured after the prompts that selected them."""
    for concept, selection, orders in (
        ("cat", "ap", ("ap", "ap")),
        ("boat", "attribution", ("attribution_even", "attribution_odd")),
    ):
        interventions = [clamp_top_three(study, concept, order) for order in orders]
        rows = query(
            study,
            "SELECT prompt, change, others FROM steering_prompts "  # noqa: S608
            "WHERE intervention = 'clamp' AND k = 3 "
            f"AND concept = '{concept}' AND selection = '{selection}'",
        )
        assert {row["prompt"] for row in rows} == set(PROMPTS)
        by_prompt = {row["prompt"]: row for row in rows}
        changes = reference_changes(tiny_model, concept, interventions)
        assert [by_prompt[prompt]["change"] for prompt in PROMPTS] == pytest.approx(changes, abs=1e-4)
        names = {"cat", "boat", "bus"} - {concept}
        others = np.mean([reference_changes(tiny_model, name, interventions) for name in names], axis=0)
        assert [by_prompt[prompt]["others"] for prompt in PROMPTS] == pytest.approx(
            list(others), abs=1e-4
        )
        (mean,) = query(
            study,
            "SELECT change, change_low, n_prompts FROM steering "  # noqa: S608
            "WHERE intervention = 'clamp' AND k = 3 "
            f"AND concept = '{concept}' AND selection = '{selection}'",
        )
        assert (mean["change"], mean["n_prompts"]) == (pytest.approx(np.mean(changes), abs=1e-4), 2)
        assert mean["change_low"] < mean["change"]


def test_effects_in_sentences_match_the_reference_model(study: Path, tiny_model: Path) -> None:
    """A word measured in another concept's sentences or after the whole sentence, or a perplexity on
    sentences with the word; or factors and zeros at other neurons."""
    file = study / "sweep.yaml"
    (stage,) = plan_sweep(read_sweep(file)).stages_of_kind("steering")
    store, params = study / "results/sweep", stage.params
    concepts, number = params["concepts"], params["concepts"].index("cat")
    words = [ConceptWord(name, "noun", "en") for name in concepts]
    sentences_stage = stage.inputs["activations"].inputs["sentences"]
    texts = steering._sample_texts(sentences_stage, store, concepts, words, params)
    own, neutral = texts[number], texts[len(concepts) + number]
    assert all(word in ("cat", "cats") for _, word in own)
    assert len(own) == 6
    assert len(neutral) == params["sentences"] == 8
    assert not any("cat" in rest for _, rest in neutral)
    experts = query(
        study,
        "SELECT layer, unit, auroc FROM experts WHERE pooling = 'max' AND concept = 'cat' "
        "ORDER BY ap DESC, layer, unit LIMIT 3",
    )
    reference = ReferenceModel(tiny_model)
    sites = SteeringShard(tiny_model, ShardSettings("float32", "mlp")).sites
    tokenizer = Tokenizer(tiny_model, 64)
    for how in ("dampen", "ablate"):
        intervention = {}
        for layer in {row["layer"] for row in experts}:
            in_layer = [row for row in experts if row["layer"] == layer]
            scales = [1 - 2 * (row["auroc"] - 0.5) if how == "dampen" else 0 for row in in_layer]
            intervention[layer, MLP] = ChangedUnits(
                np.array([row["unit"] for row in in_layer]),
                np.array(scales, np.float32),
                np.zeros(len(scales), np.float32),
            )
        changes: list[list[float]] = []
        for parts in (own, neutral):
            changes.append([])
            for part in parts:
                word = PromptedWord(*map(tuple, tokenizer.encode_prompt(*part)))
                with torch.no_grad():
                    after = reference.log_p(word, sites, intervention)
                    change = float(after - reference.log_p(word, sites))
                changes[-1].append(change / len(word.tokens) if parts is neutral else change)
        (row,) = query(
            study,
            "SELECT * FROM steering WHERE concept = 'cat' AND k = 3 AND selection = 'ap' "  # noqa: S608
            f"AND intervention = '{how}'",
        )
        assert row["n_sentences"] == 6
        assert row["in_sentences"] == pytest.approx(np.mean(changes[0]), abs=1e-4)
        assert row["log_perplexity"] == pytest.approx(-np.mean(changes[1]), abs=1e-4)
        assert abs(row["log_perplexity"]) > 1e-3
        interval = stats.ttest_1samp(changes[0], 0).confidence_interval()
        assert row["in_sentences_low"] == pytest.approx(interval.low, abs=1e-3)


def test_single_neurons_and_their_attributions_are_stored(study: Path, tiny_model: Path) -> None:
    """Effects of other neurons than the row names, or after clamping several at once."""
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
        values = clamp_units(np.array([row["unit"]]), np.array([expert["on_p50"]], np.float32))
        interventions: list[Intervention] = [{(row["layer"], MLP): values}] * len(PROMPTS)
        changes = reference_changes(tiny_model, row["concept"], interventions)
        assert row["change"] == pytest.approx(np.mean(changes), abs=1e-4)


def test_attributions_are_stored_for_both_halves_of_the_prompts(study: Path, tiny_model: Path) -> None:
    """Swapped halves, with which neurons would be selected on the prompts that measure them."""
    shard = SteeringShard(tiny_model, ShardSettings("float32", "mlp"))
    sums = []
    for word in make_words(tiny_model, "bus"):
        (batch,) = batch_sequences([SteeredSequence(word.sequence, targets=word.targets)], 100)
        sums.append(shard.backward(shard.forward_recorded(batch, None), None)[1])
    rows = query(
        study,
        "SELECT a.*, on_p50 FROM attributions AS a JOIN experts USING (pooling, concept, layer, site, "
        "unit) WHERE concept = 'bus' AND pooling = 'max' ORDER BY ap DESC LIMIT 5",
    )
    for row in rows:
        odd, even = (
            row["on_p50"] * gradients[0, row["unit"]] - products[0, row["unit"]]
            for gradients, products in (prompt_sums[row["layer"], MLP] for prompt_sums in sums)
        )
        assert (row["attribution_odd"], row["attribution_even"]) == pytest.approx((odd, even), abs=1e-5)
        assert row["attribution"] == pytest.approx((odd + even) / 2, abs=1e-5)


def test_a_concept_is_compared_with_random_others() -> None:
    """A concept among its own others would hide specific effects; all concepts would take too long."""
    words = [[PromptedWord((1, prompt), (10 + concept,)) for prompt in range(3)] for concept in range(5)]
    for n_others in (0, 2, 9):
        inputs = steering._SteeringInputs([], words, [], np.empty(0), 7, n_others, [], [])
        samples = []
        for number in range(5):
            unit = ConceptUnit(number, [""], 1)
            odd, even = inputs.compared_words(unit)
            assert [word.prefix[1] for word in odd.words[:2]] == [0, 2]
            assert [word.prefix[1] for word in even.words[:1]] == [1]
            samples.append([word.tokens[0] - 10 for word in even.words])
            assert [word.tokens[0] - 10 for word in odd.words[::2]] == samples[-1]
            assert inputs.concept_word(unit).words == words[number]
        assert [sample[0] for sample in samples] == list(range(5))
        assert all(len(set(sample)) == len(sample) == min(n_others, 4) + 1 for sample in samples)


def test_experts_have_attributions_where_they_were_computed(study: Path) -> None:
    """Attributions at a single pooling, or for concepts that were not steered."""
    counts = query(
        study,
        "SELECT concept, pooling, count(*) AS rows, count(attribution) AS attributed FROM experts "
        "GROUP BY ALL",
    )
    assert {row["pooling"] for row in counts} == {"concept", "max"}
    for row in counts:
        is_steered = row["concept"] in ("cat", "boat", "bus")
        assert row["attributed"] == (row["rows"] if is_steered else 0)
    with open_store(study / "results/sweep") as connection:
        names = connection.sql("SELECT * FROM experts LIMIT 0").columns
    assert names[-3:] == ["off_mean", "attribution", "run"]


def test_doses_are_means_over_concepts_and_include_the_unsteered_model(study: Path) -> None:
    """Curves over some of the concepts, or without their baseline."""
    rows = query(study, "SELECT * FROM steering_doses ORDER BY selection, intervention, k")
    measures = ("displacement", "change", "in_sentences", "log_perplexity")
    means = query(
        study,
        "SELECT selection, intervention, k, avg(displacement) AS displacement, avg(change) AS change, "
        "avg(in_sentences) AS in_sentences, avg(log_perplexity) AS log_perplexity "
        "FROM steering GROUP BY ALL ORDER BY ALL",
    )
    doses = [(row["selection"], row["intervention"], row["k"]) for row in rows]
    assert doses == [(row["selection"], row["intervention"], row["k"]) for row in means]
    assert {dose for dose in doses if dose[2] in (0, 3)} == {
        ("none", "none", 0),
        *((selection, "clamp", 3) for selection in SELECTIONS[1:]),
        *((selection, how, 3) for selection in ("ap", "random") for how in ("dampen", "ablate")),
    }
    for name in measures:
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in means])
    by_dose = dict(zip(doses, rows, strict=True))
    for (selection, how, k), row in by_dose.items():
        if selection in CONTROL_OF and row["n_concepts"] == 3:
            matched = by_dose[CONTROL_OF[selection], how, k]
            assert row["displacement"] == pytest.approx(matched["displacement"], rel=1e-4)
    in_concepts = query(
        study,
        "SELECT in_sentences FROM steering WHERE selection = 'ap' AND intervention = 'ablate' AND k = 3",
    )
    interval = stats.ttest_1samp([row["in_sentences"] for row in in_concepts], 0).confidence_interval()
    assert by_dose["ap", "ablate", 3]["in_sentences_low"] == pytest.approx(interval.low)
    differences = query(
        study,
        "SELECT s.k, avg(s.change - c.change) AS change, avg(s.in_sentences - c.in_sentences) AS "
        "in_sentences, count(*) AS n FROM steering AS s JOIN steering AS c USING (concept, "
        "intervention, k) WHERE s.selection = 'attribution' AND c.selection = 'random-attribution' "
        "GROUP BY ALL",
    )
    for expected in differences:
        row = by_dose["attribution", "clamp", expected["k"]]
        assert row["n_compared"] == expected["n"]
        for name in ("change", "in_sentences"):
            assert row[f"{name}_difference"] == pytest.approx(expected[name])
    (unsteered,) = (row for row in rows if row["k"] == 0)
    assert (unsteered["change"], unsteered["others"], unsteered["positive"]) == (0, 0, 0)
    texts = query(study, "SELECT continuations FROM steering_prompts")
    assert {len(row["continuations"]) for row in texts} == {2}


def test_steering_needs_no_kept_activations(study: Path, tmp_path: Path, tiny_model: Path) -> None:
    """Controls that were set to values of their own needed the activations of a large model."""
    text = (study / "sweep.yaml").read_text()
    for name in ("concepts.csv", "human.csv"):
        (tmp_path / name).write_bytes((study / name).read_bytes())
    file = tmp_path / "sweep.yaml"
    file.write_text(f"{text}experts: {{keep_activations: false}}\n")
    with in_one_process():
        done = neuralign("run", file)
    assert done.returncode == 0, done.stderr
    rows, expected = (
        query(folder, "SELECT * EXCLUDE (run) FROM steering_doses ORDER BY ALL")
        for folder in (tmp_path, study)
    )
    assert rows == expected


def test_the_table_is_printed_and_a_rerun_computes_nothing(study: Path) -> None:
    """A table wider than a terminal, or a second run that starts over."""
    printed = (study / "printed.txt").read_text()
    as_one_line = " ".join(printed.split())
    assert "max pooling: 3 concepts, 2 prompts" in as_one_line
    for row in ("attribution 10 3 ", "dampen 10 3 ", " random 10 3 ", " difference 10 3 "):
        assert row in as_one_line
    assert "clamped one at a time: mean Spearman's rho" in as_one_line
    assert max(map(len, printed.split("Steering")[1].split("  figure")[0].splitlines())) <= 80
    rerun = subprocess.run(
        [sys.executable, "-m", "jobs.steering", str(study / "sweep.yaml")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Nothing to compute: all 5 stages are done" in rerun.stderr
    assert "attribution 10 " in " ".join(rerun.stdout.split())
    (figure,) = study.glob("results/sweep/steering/*/doses.png")
    assert figure.read_bytes()[1:4] == b"PNG"
    assert neuralign("verify", study / "results/sweep").stdout == "no problems found\n"
    assert "steering" not in neuralign("gc", study / "results/sweep").stdout


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        ("{concepts: [cat, cart]}", "steering.concepts: concept 'cart' is not in any concept set"),
        ("{pooling: mean}", "steering.pooling: 'mean': expected one of neurons.pooling: max"),
        ("{k: [0]}", "steering.k[0]: 0: expected"),
        ("{k: [1, 1]}", "steering.k[1]: 1 is listed twice"),
        ("{prompts: [The]}", "steering.prompts: ['The']: List should have at least 2 items"),
        ("{prompts: ['The ', A]}", "'The ' has leading or trailing whitespace"),
        ("{seed: 1}", "steering.seed: unknown key; allowed: prompts, concepts, pooling"),
        ("{temperature: -1}", "steering.temperature: -1: expected"),
        ("{temperature: .inf}", "steering.temperature: inf: "),
    ],
)
def test_invalid_steering_is_rejected_before_the_run(
    tmp_path: Path, tiny_model: Path, steering: str, message: str
) -> None:
    """Hours of computing before an error in the sweep file."""
    file = tiny.write_sweep(tmp_path, str(tiny_model), f"steering: {steering}\n")
    with pytest.raises(UserError) as raised:
        plan_sweep(read_sweep(file))
    assert message in str(raised.value)
