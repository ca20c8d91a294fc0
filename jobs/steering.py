"""Stage `steering`: change experts at every token and measure the probability of the concept's word.

A work unit is one concept: its top k neurons by AP (all, those of layer 0, those of later layers) and by
attribution, each with k random neurons that displace the layers as far, and its best neurons by AP one
at a time. Neurons selected by attributions over one half of the prompts are measured on the other half.
A unit first reads the neurons in the unsteered model, which gives the displacements to its next unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from alignment.arrays import Floats
from alignment.statistics.steering import mean_of_sample
from alignment.text.word_matching import ConceptWord, find_word
from cluster.models.weights import Weights
from jobs import activations, attributions, sentences
from jobs.attributions import ConceptUnit
from jobs.config.analysis import SteeringSettings
from jobs.config.models import Model
from jobs.engine.stage import Stage, StageOutput, run_missing_units
from jobs.interventions.effects import MEASURES, dose_table, mean_columns
from jobs.interventions.neurons import (
    CLAMP,
    CONTROL_OF,
    UNSTEERED,
    ConceptNeurons,
    PlannedDose,
    select_neurons,
)
from jobs.interventions.texts import ConceptSentence, TextParts, sample_neutral, sample_own
from storage import tables
from storage.store.commit import FileRecord, write_bytes, write_table
from storage.store.manifest import read_rows

if TYPE_CHECKING:
    from cluster.steering.actor import SteeringRequest, SteeringResult, UnitsRead, UnitsRequest
    from cluster.steering.interventions import PrefixSharedWords, PromptedWord, SiteKey
    from cluster.steering.pipeline import SteeringPipeline

KIND = "steering"
FIGURE_FILE = "doses.png"
_HALVES = range(len(attributions.HALVES))


@dataclass(frozen=True)
class _SteeringUnit(ConceptUnit):
    """A concept, whose doses are known once its neurons were read in the unsteered model."""

    planned: Sequence[PlannedDose] = ()


@dataclass(frozen=True)
class _SteeringInputs:
    """What all units share: the words of all concepts, their tokens after each prompt, the prompts'
    tokens, and random numbers for sampling, of shape (prompts, samples, tokens); and, for each concept,
    its word in its own sentences, and neutral sentences."""

    words: list[ConceptWord]
    prompted_words: list[list[PromptedWord]]
    prompt_ids: list[tuple[int, ...]]
    uniforms: Floats
    seed: int
    n_others: int
    own: list[list[PromptedWord]]
    neutral: list[list[PromptedWord]]

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

    def texts(self, unit: ConceptUnit, half: int) -> list[PromptedWord]:
        """The word in every other one of the concept's sentences, and every other neutral sentence."""
        return [
            text
            for texts in (self.own[unit.number], self.neutral[unit.number])
            for text in texts[half :: len(_HALVES)]
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
            include={
                *("others", "sentences", "singles", "single_concepts", "samples", "tokens"),
                "temperature",
            }
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
    units = [_SteeringUnit(number, [name], TOKEN_BUDGET) for number, name in enumerate(concepts)]
    connect()

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        remaining = list(missing)
        placement = plan_placement(weights, params["dtype"], model.shards, model.gpus_per_shard)
        inputs = _make_inputs(stage, store, weights, model, concepts)
        neurons = _select_neurons(stage, store, remaining)

        def submit(pipeline: SteeringPipeline, unit: _SteeringUnit) -> Any:
            of_concept = neurons[unit.number]
            if not unit.planned:
                return pipeline.read_units(_make_reading(unit, inputs, of_concept))
            return pipeline.steer(_make_request(unit, unit.planned, inputs, of_concept, params))

        def make_next(unit: _SteeringUnit, result: Any) -> _SteeringUnit | None:
            if unit.planned:
                return None
            reading: dict[SiteKey, UnitsRead] = result
            of_concept = neurons[unit.number]
            doses = of_concept.doses(params["k"])
            return replace(unit, planned=[of_concept.plan(dose, reading) for dose in doses])

        for unit, result in attributions.run_units(
            stage, weights, model, placement, remaining, len(concepts), submit, make_next
        ):
            unit_tables = _make_tables(unit, unit.planned, inputs, neurons[unit.number], params, result)
            files = [
                write_table(folder, f"{name}/{unit.name}.parquet", table)
                for name, table in unit_tables.items()
            ]
            yield unit.name, files, {}

    files, _ = run_missing_units(folder, {unit.name: unit for unit in units}, run)
    prompt_rows, effect_rows = (
        read_rows(folder, [record for record in files if record.path.startswith(f"{table.file}/")])
        for table in (tables.STEERING_PROMPTS, tables.STEERING)
    )
    # Imports Matplotlib, which is slow to load.
    from jobs.page.figures.dose_response import draw_dose_response

    doses = dose_table(params, prompt_rows, effect_rows)
    rows = doses.to_pylist()
    label = f"{activations_stage.label}, {params['pooling']} pooling"
    files += [
        write_table(folder, tables.STEERING_DOSES.file, doses),
        write_bytes(folder, FIGURE_FILE, draw_dose_response(rows, label)),
    ]
    return StageOutput(files, _make_notes(rows, len(concepts)))


def _make_notes(doses: list[dict[str, Any]], n_concepts: int) -> list[str]:
    """Notes on selections of which some concepts have too few neurons, and on their controls."""
    counts = {
        (row["selection"], row["k"]): row["n_concepts"]
        for row in doses
        if row["n_concepts"] < n_concepts
    }
    return [
        f"only {count} of {n_concepts} concepts have {k} neurons to steer (selection: {selection})"
        for (selection, k), count in counts.items()
        if counts.get((CONTROL_OF.get(selection, ""), k)) != count
    ]


def _make_inputs(
    stage: Stage, store: Path, weights: Weights, model: Model, concepts: list[str]
) -> _SteeringInputs:
    params = stage.params
    sentences_stage = stage.inputs["activations"].inputs["sentences"]
    n_continuation = params["tokens"] if params["samples"] else 0
    prompt_ids, prompted_words = attributions.tokenize_prompts(
        weights, model, params["prompts"], concepts, n_continuation
    )
    concept_set = sentences.read_concept_set(sentences_stage, store)
    concepts_by_name = {concept.name: concept for concept in concept_set.concepts}
    language = sentences_stage.params["language"]
    words = [sentences.concept_word(concepts_by_name[name], language) for name in concepts]
    parts = _sample_texts(sentences_stage, store, concepts, words, params)
    texts = attributions.tokenize_texts(weights, model, parts)
    rng = np.random.default_rng(params["seed"])
    return _SteeringInputs(
        words,
        prompted_words,
        prompt_ids,
        # The same random numbers for all interventions: only the changed neurons differ.
        rng.random((len(prompt_ids), params["samples"], params["tokens"])),
        params["seed"],
        params["others"],
        texts[: len(concepts)],
        texts[len(concepts) :],
    )


def _sample_texts(
    sentences_stage: Stage, store: Path, concepts: list[str], words: list[ConceptWord], params: Any
) -> list[list[TextParts]]:
    """Own sentences of each concept, followed by neutral sentences for each."""
    pool = [ConceptSentence(*row) for row in sentences.read_positives(sentences_stage, store)]
    by_concept: dict[str, list[ConceptSentence]] = {name: [] for name in concepts}
    for sentence in pool:
        if sentence.concept in by_concept:
            by_concept[sentence.concept].append(sentence)
    own, neutral = [], []
    for number, (name, word) in enumerate(zip(concepts, words, strict=True)):
        rng = np.random.default_rng([params["seed"], number])
        own.append(sample_own(by_concept[name], params["sentences"], rng))
        neutral.append(sample_neutral(pool, name, word, params["sentences"], rng))
    return own + neutral


def _select_neurons(stage: Stage, store: Path, units: list[_SteeringUnit]) -> dict[int, ConceptNeurons]:
    """The neurons of every unit's concept, by unit number."""
    params = stage.params
    widths = {
        (row["layer"], row["site"]): row["width"]
        for row in activations.read_sites(stage.inputs["activations"], store)
        if row["pooling"] == params["pooling"]
    }
    # Neurons selected on one half of the prompts are measured on the other.
    by_half = list(reversed(attributions.HALVES))
    neurons = {}
    for unit in units:
        (concept,) = unit.concepts
        experts = attributions.read_attributions(
            stage.inputs["attributions"], store, concept, params["pooling"]
        )
        seed = [params["seed"], unit.number]
        neurons[unit.number] = select_neurons(experts, by_half, widths, params["k"][-1], seed)
    return neurons


def _make_reading(unit: _SteeringUnit, inputs: _SteeringInputs, neurons: ConceptNeurons) -> UnitsRequest:
    """Read the concept's neurons and their controls at all tokens of the prompts."""
    from cluster.steering.actor import UnitsRequest
    from cluster.steering.interventions import SteeredSequence

    prompts = [SteeredSequence(ids) for ids in inputs.prompt_ids]
    return UnitsRequest(unit.name, prompts, neurons.units(), unit.budget)


def _make_request(
    unit: ConceptUnit,
    planned: Sequence[PlannedDose],
    inputs: _SteeringInputs,
    neurons: ConceptNeurons,
    params: Any,
) -> SteeringRequest:
    """All interventions on a concept, in the order in which `_make_tables` reads their results."""
    from cluster.steering.actor import Continuations, SteeringRequest
    from cluster.steering.interventions import SteeredSequence

    word, compared = inputs.concept_word(unit), inputs.compared_words(unit)
    interventions = [(half, dose.interventions[half]) for dose in planned for half in _HALVES]
    sequences: list[SteeredSequence] = []
    for half, intervention in interventions:
        sequences += compared[half].sequences(intervention)
        sequences += [
            SteeredSequence(text.sequence, intervention, text.targets)
            for text in inputs.texts(unit, half)
        ]
    for row in _single_rows(unit, neurons, params):
        sequences += word.sequences(neurons.change(CLAMP, [(row["layer"], row["site"], row["unit"])]))
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
    planned: Sequence[PlannedDose],
    inputs: _SteeringInputs,
    neurons: ConceptNeurons,
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
    for dose in planned:
        log_p = np.empty((n_words, n_prompts))
        text_log_p: list[float] = []
        continuations: list[list[str]] = [[]] * n_prompts
        for half, words in zip(_HALVES, compared, strict=True):
            prompts = range(half, n_prompts, len(_HALVES))
            values = words.log_p([next(log_p_values) for _ in range(len(words))])
            log_p[:, prompts] = values.reshape(-1, len(prompts))
            text_log_p += [next(log_p_values).sum() for _ in inputs.texts(unit, half)]
            for prompt in prompts:
                continuations[prompt] = [next(texts) for _ in range(samples)]
        if dose.dose == UNSTEERED:
            baseline, text_baseline = log_p, np.array(text_log_p)
        change = log_p - baseline
        in_sentences, log_perplexity = _split_texts(np.array(text_log_p) - text_baseline, unit, inputs)
        others = change[1:].mean(axis=0) if len(change) > 1 else None
        containing = [sum(bool(find_word(text, word)) for text in batch) for batch in continuations]
        key = {**constants, **vars(dose.dose)}
        prompt_rows += [
            {
                **key,
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
        samples_of = dict(
            zip(MEASURES, (change[0], others, share, in_sentences, log_perplexity), strict=True)
        )
        effect_rows.append(
            {
                **key,
                "displacement": dose.displacement,
                "n_prompts": n_prompts,
                "n_sentences": len(in_sentences),
                **mean_columns(samples_of, mean_of_sample),
            }
        )
    concept_word = inputs.concept_word(unit)
    for row in _single_rows(unit, neurons, params):
        values = concept_word.log_p([next(log_p_values) for _ in range(len(concept_word))])
        effect = mean_columns({"change": values - baseline[0]}, mean_of_sample)
        neuron_rows.append({**constants, **row, **effect})
    return {
        tables.STEERING.file: pa.Table.from_pylist(effect_rows, tables.STEERING.schema),
        tables.STEERING_PROMPTS.file: pa.Table.from_pylist(prompt_rows, tables.STEERING_PROMPTS.schema),
        tables.STEERING_NEURONS.file: pa.Table.from_pylist(neuron_rows, tables.STEERING_NEURONS.schema),
    }


def _split_texts(changes: Floats, unit: ConceptUnit, inputs: _SteeringInputs) -> tuple[Floats, Floats]:
    """Changes in log P of the word in each own sentence, and in log perplexity of each neutral one, from
    the changes in log P of the texts of both halves."""
    own, neutral = [], []
    values = iter(changes)
    for half in _HALVES:
        own += [next(values) for _ in inputs.own[unit.number][half :: len(_HALVES)]]
        for text in inputs.neutral[unit.number][half :: len(_HALVES)]:
            neutral.append(-next(values) / len(text.tokens))
    return np.array(own), np.array(neutral)


def _single_rows(unit: ConceptUnit, neurons: ConceptNeurons, params: Any) -> list[dict[str, Any]]:
    """The experts of a concept that are clamped one at a time."""
    n_singles = params["singles"] if unit.number < params["single_concepts"] else 0
    names = ["layer", "site", "unit", "ap", "attribution"]
    rows: list[dict[str, Any]] = neurons.experts.select(names).slice(0, n_singles).to_pylist()
    return rows


if __name__ == "__main__":
    from jobs.commands.main import run_stage

    run_stage("steering")
