"""Stage `steering`: clamp experts at every token and measure the probability of the concept's word.

A work unit is one concept: its top k neurons by AP and by attribution, k random neurons of the same
layers, and its best neurons by AP one at a time. Neurons selected by attributions over one half of the
prompts are measured on the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from alignment.arrays import Floats
from alignment.statistics.resampling import IntervalEstimate
from alignment.statistics.steering import (
    Neuron,
    mean_over_prompts,
    mean_two_way_clustered,
    sample_control_neurons,
)
from alignment.text.word_matching import ConceptWord, find_word
from cluster.models.weights import Weights
from jobs import activations, attributions, sentences
from jobs.attributions import ConceptUnit
from jobs.config.analysis import SteeringSettings
from jobs.config.models import Model
from jobs.engine.stage import Stage, StageOutput, run_missing_units
from jobs.results.rows import group_rows
from storage import tables
from storage.store.commit import FileRecord, write_bytes, write_table
from storage.store.manifest import read_rows

if TYPE_CHECKING:
    from cluster.steering.actor import SteeringRequest, SteeringResult
    from cluster.steering.interventions import Intervention, PrefixSharedWords, PromptedWord
    from cluster.steering.pipeline import SteeringPipeline

KIND = "steering"
FIGURE_FILE = "doses.png"
NONE, BY_AP, BY_ATTRIBUTION, RANDOM = "none", "ap", "attribution", "random"
SELECTIONS = (BY_AP, BY_ATTRIBUTION, RANDOM)
_HALVES = range(len(attributions.HALVES))


@dataclass(frozen=True)
class _ConceptNeurons:
    """A concept's neurons in the order in which they are clamped, by selection and half of the prompts,
    with their on values; and its experts by descending AP."""

    neurons: dict[str, list[list[Neuron]]]
    on_values: dict[Neuron, float]
    experts: pa.Table

    def doses(self, sizes: Sequence[int]) -> list[tuple[str, int]]:
        """(selection, k) of every intervention with enough neurons, the unsteered model first."""
        return [(NONE, 0)] + [
            (selection, k)
            for selection in SELECTIONS
            for k in sizes
            if k <= len(self.neurons[selection][0])
        ]

    def clamp_top(self, selection: str, k: int, half: int) -> Intervention:
        """Clamp the first k neurons of a selection for the prompts of one half."""
        return self.clamp(self.neurons[selection][half][:k] if k else [])

    def clamp(self, neurons: Sequence[Neuron]) -> Intervention:
        from cluster.steering.interventions import ClampedUnits

        units_by_site: dict[tuple[int, str], list[int]] = {}
        for layer, site, unit in neurons:
            units_by_site.setdefault((layer, site), []).append(unit)
        return {
            site_key: ClampedUnits(
                np.array(units, np.int64),
                np.array([self.on_values[(*site_key, unit)] for unit in units], np.float32),
            )
            for site_key, units in units_by_site.items()
        }


@dataclass(frozen=True)
class _SteeringInputs:
    """What all units share: the words of all concepts, their tokens after each prompt, the prompts'
    tokens, and random numbers for sampling, of shape (prompts, samples, tokens)."""

    words: list[ConceptWord]
    prompted_words: list[list[PromptedWord]]
    prompt_ids: list[tuple[int, ...]]
    uniforms: Floats
    seed: int
    n_others: int

    def concept_word(self, unit: ConceptUnit) -> PrefixSharedWords:
        """The concept's word after all prompts."""
        from cluster.steering.interventions import PrefixSharedWords

        return PrefixSharedWords(self.prompted_words[unit.number])

    def compared_words(self, unit: ConceptUnit) -> list[PrefixSharedWords]:
        """The words of the concept and of random others, after the prompts of each half."""
        from cluster.steering.interventions import PrefixSharedWords

        order = np.random.default_rng([self.seed, unit.number]).permutation(len(self.prompted_words))
        concepts = [unit.number, *order[order != unit.number][: self.n_others]]
        return [
            PrefixSharedWords(
                word
                for concept in concepts
                for word in self.prompted_words[concept][half :: len(_HALVES)]
            )
            for half in _HALVES
        ]


def plan(
    attributions_stage: Stage, weights: Weights, model: Model, config: SteeringSettings, seed: int
) -> Stage:
    """The stage for one model, after its attributions."""
    activations_stage = attributions_stage.inputs["experts"].inputs["activations"]
    params = {
        **attributions_stage.params,
        "pooling": config.pooling or activations_stage.params["poolings"][0],
        "k": sorted(config.k),
        **config.model_dump(
            include={"others", "singles", "single_concepts", "samples", "tokens", "temperature"}
        ),
        "seed": seed,
    }

    def run(stage: Stage, store: Path) -> StageOutput:
        return _run(stage, store, weights, model)

    inputs = {"activations": activations_stage, "attributions": attributions_stage}
    resource = activations.resource_for(model)
    return Stage(KIND, activations_stage.label, params, run, inputs, resource)


def read_doses(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """Rows of the stage's `steering_doses` table."""
    rows: list[dict[str, Any]] = stage.read_table(store, tables.STEERING_DOSES.file).to_pylist()
    return rows


def figure_path(stage: Stage, store: Path) -> Path:
    """Path of the dose-response figure."""
    (path,) = stage.read_manifest(store).paths(FIGURE_FILE)
    return path


def read_neurons(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """Rows of the stage's `steering_neurons` table, of neurons that were clamped alone."""
    rows: list[dict[str, Any]] = stage.read_table(store, tables.STEERING_NEURONS.file).to_pylist()
    return rows


def _run(stage: Stage, store: Path, weights: Weights, model: Model) -> StageOutput:
    from cluster.runtime.placement import plan_placement
    from cluster.runtime.session import connect
    from cluster.steering.actor import TOKEN_BUDGET

    folder, params = stage.folder(store), stage.params
    activations_stage = stage.inputs["activations"]
    sentences_stage = activations_stage.inputs["sentences"]
    concepts = params["concepts"] or sentences.read_concept_names(sentences_stage, store)
    units = [ConceptUnit(number, [name], TOKEN_BUDGET) for number, name in enumerate(concepts)]
    connect()

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        remaining = list(missing)
        placement = plan_placement(weights, params["dtype"], model.shards, model.gpus_per_shard)
        inputs = _make_inputs(stage, store, weights, model, concepts)
        neurons = _select_neurons(stage, store, remaining)

        def submit(pipeline: SteeringPipeline, unit: ConceptUnit) -> Any:
            return pipeline.steer(_make_request(unit, inputs, neurons[unit.number], params))

        for unit, result in attributions.run_units(
            stage, weights, model, placement, remaining, len(concepts), submit
        ):
            unit_tables = _make_tables(unit, inputs, neurons[unit.number], params, result)
            files = [
                write_table(folder, f"{name}/{unit.name}.parquet", table)
                for name, table in unit_tables.items()
            ]
            yield unit.name, files, {}

    files, _ = run_missing_units(folder, {unit.name: unit for unit in units}, run)
    prefix = f"{tables.STEERING_PROMPTS.file}/"
    prompt_files = [record for record in files if record.path.startswith(prefix)]
    # Imports Matplotlib, which is slow to load.
    from jobs.page.figures.dose_response import draw_dose_response

    doses = _dose_table(params, read_rows(folder, prompt_files))
    rows = doses.to_pylist()
    label = f"{activations_stage.label}, {params['pooling']} pooling"
    files += [
        write_table(folder, tables.STEERING_DOSES.file, doses),
        write_bytes(folder, FIGURE_FILE, draw_dose_response(rows, label)),
    ]
    notes = [
        f"only {row['n_concepts']} of {len(concepts)} concepts have {row['k']} neurons to clamp "
        f"(selection: {row['selection']})"
        for row in rows
        if row["n_concepts"] < len(concepts)
    ]
    return StageOutput(files, notes)


def _make_inputs(
    stage: Stage, store: Path, weights: Weights, model: Model, concepts: list[str]
) -> _SteeringInputs:
    params = stage.params
    sentences_stage = stage.inputs["activations"].inputs["sentences"]
    n_continuation = params["tokens"] if params["samples"] else 0
    prompt_ids, words = attributions.tokenize_prompts(
        weights, model, params["prompts"], concepts, n_continuation
    )
    concept_set = sentences.read_concept_set(sentences_stage, store)
    concepts_by_name = {concept.name: concept for concept in concept_set.concepts}
    language = sentences_stage.params["language"]
    rng = np.random.default_rng(params["seed"])
    return _SteeringInputs(
        [sentences.concept_word(concepts_by_name[name], language) for name in concepts],
        words,
        prompt_ids,
        # The same random numbers for all interventions: only the clamped neurons differ.
        rng.random((len(prompt_ids), params["samples"], params["tokens"])),
        params["seed"],
        params["others"],
    )


def _select_neurons(stage: Stage, store: Path, units: list[ConceptUnit]) -> dict[int, _ConceptNeurons]:
    """The neurons of every unit's concept, by unit number. On values are from the experts' table or, for
    random neurons, from the activations."""
    params, pooling, max_k = stage.params, stage.params["pooling"], stage.params["k"][-1]
    widths = {
        (row["layer"], row["site"]): row["width"]
        for row in activations.read_sites(stage.inputs["activations"], store)
        if row["pooling"] == pooling
    }
    neurons = {}
    for unit in units:
        (concept,) = unit.concepts
        experts = attributions.read_attributions(stage.inputs["attributions"], store, concept, pooling)
        columns = (experts.column(name).to_pylist() for name in ("layer", "site", "unit"))
        by_ap = list(zip(*columns, strict=True))
        on_values = dict(zip(by_ap, experts.column("on_p50").to_pylist(), strict=True))
        # Neurons selected on one half of the prompts are clamped on the other.
        by_attribution = [
            [by_ap[row] for row in np.argsort(-experts.column(name).to_numpy(), kind="stable")[:max_k]]
            for name in reversed(attributions.HALVES)
        ]
        controls = sample_control_neurons(
            by_ap[:max_k], widths, on_values.keys(), [params["seed"], unit.number]
        )
        by_selection = {
            BY_AP: [by_ap[:max_k] for _ in _HALVES],
            BY_ATTRIBUTION: by_attribution,
            RANDOM: [controls for _ in _HALVES],
        }
        neurons[unit.number] = _ConceptNeurons(by_selection, on_values, experts)
    _add_control_on_values(stage, store, {unit.concepts[0]: neurons[unit.number] for unit in units})
    return neurons


def _add_control_on_values(
    stage: Stage, store: Path, neurons_by_concept: dict[str, _ConceptNeurons]
) -> None:
    """Add the on values of random neurons: medians over the concept's positives."""
    activations_stage = stage.inputs["activations"]
    sentences_stage = activations_stage.inputs["sentences"]
    names = sentences.read_concept_names(sentences_stage, store)
    ids, members, _ = sentences.read_memberships(sentences_stage, store)
    controls_by_site: dict[tuple[int, str], list[tuple[str, int]]] = {}
    for name, neurons in neurons_by_concept.items():
        for layer, site, unit in neurons.neurons[RANDOM][0]:
            controls_by_site.setdefault((layer, site), []).append((name, unit))
    for (layer, site), controls in controls_by_site.items():
        units = np.unique([unit for _, unit in controls])
        pooling = stage.params["pooling"]
        values = activations.open_site(activations_stage, store, pooling, layer, site).read_units(units)
        for name, unit in controls:
            positives = values[np.searchsorted(units, unit), ids[members == names.index(name)]]
            on_value = float(np.quantile(positives.astype(np.float32), 0.5))
            neurons_by_concept[name].on_values[layer, site, unit] = on_value


def _make_request(
    unit: ConceptUnit, inputs: _SteeringInputs, neurons: _ConceptNeurons, params: Any
) -> SteeringRequest:
    """All interventions on a concept, in the order in which `_make_tables` reads their results."""
    from cluster.steering.actor import Continuations, SteeringRequest
    from cluster.steering.interventions import SteeredSequence

    word, compared = inputs.concept_word(unit), inputs.compared_words(unit)
    interventions = [
        (half, neurons.clamp_top(selection, k, half))
        for selection, k in neurons.doses(params["k"])
        for half in _HALVES
    ]
    sequences = [
        sequence
        for half, intervention in interventions
        for sequence in compared[half].sequences(intervention)
    ]
    for row in _single_rows(unit, neurons, params):
        sequences += word.sequences(neurons.clamp([(row["layer"], row["site"], row["unit"])]))
    continuations = None
    if params["samples"]:
        prompts = [
            SteeredSequence(ids, intervention)
            for half, intervention in interventions
            for ids in inputs.prompt_ids[half :: len(_HALVES)]
            for _ in range(params["samples"])
        ]
        uniforms = np.concatenate([inputs.uniforms[half :: len(_HALVES)] for half, _ in interventions])
        continuations = Continuations(
            prompts, uniforms.reshape(-1, params["tokens"]), params["temperature"]
        )
    return SteeringRequest(unit.name, sequences, continuations, unit.budget)


def _make_tables(
    unit: ConceptUnit,
    inputs: _SteeringInputs,
    neurons: _ConceptNeurons,
    params: Any,
    result: SteeringResult,
) -> dict[str, pa.Table]:
    """The tables of one concept, by folder."""
    n_prompts, samples = len(inputs.prompt_ids), params["samples"]
    word, compared = inputs.words[unit.number], inputs.compared_words(unit)
    n_words = sum(len(words.words) for words in compared) // n_prompts
    constants = {name: params[name] for name in ("model", "revision", "concept_set", "pooling")}
    constants["concept"] = unit.concepts[0]
    log_p_values, texts = iter(result.log_p), iter(result.texts)
    prompt_rows, effect_rows, neuron_rows = [], [], []
    for selection, k in neurons.doses(params["k"]):
        log_p = np.empty((n_words, n_prompts))
        continuations: list[list[str]] = [[]] * n_prompts
        for half, words in zip(_HALVES, compared, strict=True):
            prompts = range(half, n_prompts, len(_HALVES))
            values = words.log_p([next(log_p_values) for _ in range(len(words))])
            log_p[:, prompts] = values.reshape(-1, len(prompts))
            for prompt in prompts:
                continuations[prompt] = [next(texts) for _ in range(samples)]
        if selection == NONE:
            baseline = log_p
        change = log_p - baseline
        others = change[1:].mean(axis=0) if len(change) > 1 else None
        containing = [sum(bool(find_word(text, word)) for text in batch) for batch in continuations]
        dose = {**constants, "selection": selection, "k": k}
        prompt_rows += [
            {
                **dose,
                "prompt": params["prompts"][prompt],
                "log_p": log_p[0, prompt],
                "change": change[0, prompt],
                "others": None if others is None else others[prompt],
                "containing": containing[prompt],
                "continuations": continuations[prompt],
            }
            for prompt in range(n_prompts)
        ]
        share = np.array(containing) / samples if samples else None
        effect_rows.append(
            {
                **dose,
                "n_prompts": n_prompts,
                **_mean_columns("change", change[0], mean_over_prompts),
                **_mean_columns("others", others, mean_over_prompts),
                **_mean_columns("containing", share, mean_over_prompts),
            }
        )
    concept_word = inputs.concept_word(unit)
    for row in _single_rows(unit, neurons, params):
        values = concept_word.log_p([next(log_p_values) for _ in range(len(concept_word))])
        effect = _mean_columns("change", values - baseline[0], mean_over_prompts)
        del row["on_p50"]
        neuron_rows.append({**constants, **row, **effect})
    return {
        tables.STEERING.file: pa.Table.from_pylist(effect_rows, tables.STEERING.schema),
        tables.STEERING_PROMPTS.file: pa.Table.from_pylist(prompt_rows, tables.STEERING_PROMPTS.schema),
        tables.STEERING_NEURONS.file: pa.Table.from_pylist(neuron_rows, tables.STEERING_NEURONS.schema),
    }


def _single_rows(unit: ConceptUnit, neurons: _ConceptNeurons, params: Any) -> list[dict[str, Any]]:
    """The experts of a concept that are clamped one at a time."""
    n_singles = params["singles"] if unit.number < params["single_concepts"] else 0
    rows: list[dict[str, Any]] = neurons.experts.slice(0, n_singles).to_pylist()
    return rows


def _mean_columns(
    name: str, values: Floats | None, mean: Callable[[Floats], IntervalEstimate]
) -> dict[str, float | None]:
    """Columns of a mean and its 95% CI; null without values. The CI of a share is clipped to [0, 1]."""
    if values is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    estimate = mean(values)
    low, high = estimate.low, estimate.high
    if name == "containing" and low is not None and high is not None:
        low, high = max(0.0, low), min(1.0, high)
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}


def _dose_table(params: Any, prompts: pa.Table) -> pa.Table:
    """Means over all concepts for every selection and k."""
    rows_by_dose = group_rows(prompts.to_pylist(), "selection", "k")
    order = (NONE, *SELECTIONS)
    rows = []
    for selection, k in sorted(rows_by_dose, key=lambda dose: (order.index(dose[0]), dose[1])):
        concept_rows = list(group_rows(rows_by_dose[selection, k], "concept").values())
        change, others, containing = (
            np.array([[row[name] for row in prompt_rows] for prompt_rows in concept_rows], np.float64)
            for name in ("change", "others", "containing")
        )
        share = containing / params["samples"] if params["samples"] else None
        rows.append(
            {
                **{name: params[name] for name in ("model", "revision", "concept_set", "pooling")},
                "selection": selection,
                "k": k,
                "n_concepts": len(concept_rows),
                "n_prompts": change.shape[1],
                **_mean_columns("change", change, mean_two_way_clustered),
                **_mean_columns(
                    "others", None if np.isnan(others).any() else others, mean_two_way_clustered
                ),
                **_mean_columns("containing", share, mean_two_way_clustered),
                "positive": float((change.mean(axis=1) > 0).mean()),
            }
        )
    return pa.Table.from_pylist(rows, tables.STEERING_DOSES.schema)


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("steering")
