"""Stage `steering`: force experts at every token and see whether the model says the concept's word.

A work unit is one concept: its best neurons by AP, by attribution, and random others of the same layers,
k at a time; and its best by AP one at a time. What attributions over one half of the prompts choose is
measured on the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alignment.statistics.resampling import Interval
from alignment.statistics.steering import Neuron, draw_like, mean_over_both, mean_over_prompts
from alignment.text.word_matching import Word as ConceptWord
from alignment.text.word_matching import find_word
from cluster.models.weights import Weights
from jobs import activations, attributions, sentences
from jobs.config import Model, Steering
from jobs.engine.progress import progress
from jobs.engine.stage import Outcome, Stage, run_missing_units
from storage import tables
from storage.store.commit import FileRecord, write_bytes, write_table
from storage.store.paths import read_table

if TYPE_CHECKING:
    from cluster.steering.interventions import Forced, Reading, Word
    from cluster.steering.pipeline import Steered, SteeringUnit

Floats = npt.NDArray[np.float64]

KIND = "steering"
EFFECTS_FOLDER, PROMPTS_FOLDER, NEURONS_FOLDER = "steering", "prompts", "neurons"
DOSES_FILE = "doses.parquet"
PICTURE_FILE = "doses.png"
NONE, BY_AP, BY_ATTRIBUTION, RANDOM = "none", "ap", "attribution", "random"
SELECTIONS = (BY_AP, BY_ATTRIBUTION, RANDOM)
_HALVES = range(len(attributions.HALVES))


@dataclass(frozen=True)
class _Unit:
    number: int
    concept: str
    budget: int

    def smaller(self) -> _Unit:
        return replace(self, budget=max(1, self.budget // 2))

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


@dataclass(frozen=True)
class _Chosen:
    """A concept's neurons in the order in which they are forced, by selection and for either half of the
    prompts, with their on values; and its experts, the best by AP first."""

    neurons: dict[str, list[list[Neuron]]]
    on: dict[Neuron, float]
    experts: pa.Table

    def interventions(self, wanted: Sequence[int]) -> list[tuple[str, int]]:
        """(selection, k), without forcing first; only those for which there are so many neurons."""
        return [(NONE, 0)] + [
            (selection, k)
            for selection in SELECTIONS
            for k in wanted
            if k <= len(self.neurons[selection][0])
        ]

    def best(self, selection: str, k: int, half: int) -> Forced:
        """The first k neurons of a selection, forced after the prompts of one half."""
        return self.forced(self.neurons[selection][half][:k] if k else [])

    def forced(self, neurons: Sequence[Neuron]) -> Forced:
        from cluster.steering.interventions import Values

        units: dict[tuple[int, str], list[int]] = {}
        for layer, site, unit in neurons:
            units.setdefault((layer, site), []).append(unit)
        return {
            place: Values(
                np.array(some, np.int64),
                np.array([self.on[(*place, unit)] for unit in some], np.float32),
            )
            for place, some in units.items()
        }


@dataclass(frozen=True)
class _Question:
    """What all units ask alike: the concepts' words, their tokens after each prompt, the prompts, and
    how texts go on; and how many words of others are asked for beside a concept's own."""

    words: list[ConceptWord]
    after_prompts: list[list[Word]]
    starts: list[tuple[int, ...]]
    chances: Floats
    seed: int
    others: int

    def own(self, unit: _Unit) -> Reading:
        """A concept's word after all prompts."""
        from cluster.steering.interventions import Reading

        return Reading(self.after_prompts[unit.number])

    def compared(self, unit: _Unit) -> list[Reading]:
        """The words of a concept and of others, drawn by lot, after the prompts of either half."""
        from cluster.steering.interventions import Reading

        lot = np.random.default_rng([self.seed, unit.number]).permutation(len(self.after_prompts))
        chosen = [unit.number, *lot[lot != unit.number][: self.others]]
        return [
            Reading(word for each in chosen for word in self.after_prompts[each][half :: len(_HALVES)])
            for half in _HALVES
        ]


def plan(
    read: Stage, attributed: Stage, weights: Weights, model: Model, wanted: Steering, seed: int
) -> Stage:
    """The stage for one model whose experts' attributions are known."""
    params = {
        **attributed.params,
        "pooling": wanted.pooling or read.params["poolings"][0],
        "k": sorted(wanted.k),
        **wanted.model_dump(
            include={"others", "singles", "single_concepts", "samples", "tokens", "temperature"}
        ),
        "seed": seed,
    }

    def run(stage: Stage, store: Path) -> Outcome:
        return _run(stage, store, weights, model)

    inputs = {"activations": read, "attributions": attributed}
    return Stage(KIND, read.label, params, run, inputs, activations.lane_of(model))


def read_doses(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """The rows of the stage's table of doses."""
    (path,) = stage.result(store).paths(DOSES_FILE)
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def picture(stage: Stage, store: Path) -> Path:
    """The picture of the dose-response curves."""
    (path,) = stage.result(store).paths(PICTURE_FILE)
    return path


def read_neurons(stage: Stage, store: Path) -> list[dict[str, Any]]:
    """The rows of the stage's table of neurons that were forced alone."""
    paths = stage.result(store).paths(NEURONS_FOLDER)
    return [row for path in paths for row in read_table(path).to_pylist()]


def _run(stage: Stage, store: Path, weights: Weights, model: Model) -> Outcome:
    from cluster.runtime.queue import WorkQueue
    from cluster.runtime.session import connect
    from cluster.steering.pipeline import TOKEN_BUDGET

    folder, params = stage.folder(store), stage.params
    read = stage.inputs["activations"]
    concepts = params["concepts"] or sentences.read_concept_names(read.inputs["sentences"], store)
    units = [_Unit(number, name, TOKEN_BUDGET) for number, name in enumerate(concepts)]
    connect()

    def run(missing: Iterable[Any]) -> Iterator[tuple[str, list[FileRecord], dict[str, Any]]]:
        todo = list(missing)
        placed = attributions.place_steering(weights, params["dtype"], model)
        asked = _question(stage, store, weights, concepts)
        chosen = _choose(stage, store, todo)
        queue: WorkQueue[_Unit, Steered] = WorkQueue(
            lambda: attributions.start_pipeline(weights, params["dtype"], read.params["sites"], placed),
            lambda pipeline, unit: pipeline.steer(_ask(unit, asked, chosen[unit.concept], params)),
            lambda unit: f"{stage.name}, concept {unit.concept}",
            _Unit.smaller,
        )
        left = len(todo)
        with progress(stage.name, len(concepts), "concepts", len(concepts) - left) as advance:
            for unit, found in queue.run(todo, min(placed.replicas, left), model.wait_seconds):
                tables = _measure(unit, asked, chosen[unit.concept], params, found)
                files = [
                    write_table(folder, f"{name}/{unit.name}.parquet", table)
                    for name, table in tables.items()
                ]
                yield unit.name, files, {}
                advance(1)

    files, _ = run_missing_units(folder, {unit.name: unit for unit in units}, run)
    paths = [folder / record.path for record in files if record.path.startswith(f"{PROMPTS_FOLDER}/")]
    # slow to load
    from jobs.page.figures.dose_figure import draw_doses

    doses = _doses(params, pa.concat_tables([read_table(path) for path in paths]))
    described = f"{read.label}, {params['pooling']} pooling"
    files += [
        write_table(folder, DOSES_FILE, doses),
        write_bytes(folder, PICTURE_FILE, draw_doses(doses.to_pylist(), described)),
    ]
    fewer = [row for row in doses.to_pylist() if row["n_concepts"] < len(concepts)]
    notes = [
        f"only {row['n_concepts']} of {len(concepts)} concepts have {row['k']} neurons to force by "
        f"{row['selection']}"
        for row in fewer
    ]
    return Outcome(files, notes)


def _question(stage: Stage, store: Path, weights: Weights, concepts: list[str]) -> _Question:
    params = stage.params
    texts = stage.inputs["activations"].inputs["sentences"]
    further = params["tokens"] if params["samples"] else 0
    starts, words = attributions.read_words(weights, params["prompts"], concepts, further)
    known = {each.name: each for each in sentences.read_set(texts, store).concepts}
    random = np.random.default_rng(params["seed"])
    return _Question(
        [sentences.word_of(known[name], texts.params["language"]) for name in concepts],
        words,
        starts,
        # the same chances for all interventions, so that these alone make a difference
        random.random((len(starts), params["samples"], params["tokens"])),
        params["seed"],
        params["others"],
    )


def _choose(stage: Stage, store: Path, units: list[_Unit]) -> dict[str, _Chosen]:
    """The neurons of each concept. On values of random ones are from the activations, those of experts
    from their table."""
    params = stage.params
    read, attributed = stage.inputs["activations"], stage.inputs["attributions"]
    pooling, most = params["pooling"], params["k"][-1]
    widths = {
        (row["layer"], row["site"]): row["width"]
        for row in activations.read_sites(read, store)
        if row["pooling"] == pooling
    }
    chosen = {}
    for unit in units:
        table = attributions.read_attributions(attributed, store, unit.concept, pooling)
        places = (table.column(name).to_pylist() for name in ("layer", "site", "unit"))
        by_ap = list(zip(*places, strict=True))
        on = dict(zip(by_ap, table.column("on_p50").to_pylist(), strict=True))
        # what is chosen on a half is forced on the other
        by_attribution = [
            [by_ap[at] for at in np.argsort(-table.column(name).to_numpy(), kind="stable")[:most]]
            for name in reversed(attributions.HALVES)
        ]
        drawn = draw_like(by_ap[:most], widths, on.keys(), [params["seed"], unit.number])
        neurons = {
            BY_AP: [by_ap[:most] for _ in _HALVES],
            BY_ATTRIBUTION: by_attribution,
            RANDOM: [drawn for _ in _HALVES],
        }
        chosen[unit.concept] = _Chosen(neurons, on, table)
    _add_on_values(stage, store, chosen)
    return chosen


def _add_on_values(stage: Stage, store: Path, chosen: dict[str, _Chosen]) -> None:
    """Medians on the concept's positives of the random neurons, each site read once."""
    read = stage.inputs["activations"]
    texts = read.inputs["sentences"]
    names = sentences.read_concept_names(texts, store)
    ids, members, _ = sentences.read_memberships(texts, store)
    wanted: dict[tuple[int, str], list[tuple[str, int]]] = {}
    for name, each in chosen.items():
        for layer, site, unit in each.neurons[RANDOM][0]:
            wanted.setdefault((layer, site), []).append((name, unit))
    for (layer, site), asked in wanted.items():
        units = np.unique([unit for _, unit in asked])
        files = activations.site_files(read, store, stage.params["pooling"], layer, site)
        values = files.read_units(units)
        for name, unit in asked:
            own = values[np.searchsorted(units, unit), ids[members == names.index(name)]]
            chosen[name].on[layer, site, unit] = float(np.quantile(own.astype(np.float32), 0.5))


def _ask(unit: _Unit, asked: _Question, chosen: _Chosen, params: Any) -> SteeringUnit:
    from cluster.steering.interventions import Row
    from cluster.steering.pipeline import Growth, SteeringUnit

    own, compared = asked.own(unit), asked.compared(unit)
    forced = [
        (half, chosen.best(selection, k, half))
        for selection, k in chosen.interventions(params["k"])
        for half in _HALVES
    ]
    rows = [row for half, each in forced for row in compared[half].rows(each)]
    for row in chosen.experts.slice(0, _singles(unit, params)).to_pylist():
        rows += own.rows(chosen.forced([(row["layer"], row["site"], row["unit"])]))
    growth = None
    if params["samples"]:
        growing = [
            Row(start, each)
            for half, each in forced
            for start in asked.starts[half :: len(_HALVES)]
            for _ in range(params["samples"])
        ]
        chances = np.concatenate([asked.chances[half :: len(_HALVES)] for half, _ in forced])
        growth = Growth(growing, chances.reshape(-1, params["tokens"]), params["temperature"])
    return SteeringUnit(unit.name, rows, growth, unit.budget)


def _measure(
    unit: _Unit, asked: _Question, chosen: _Chosen, params: Any, found: Steered
) -> dict[str, pa.Table]:
    """The tables of one concept."""
    n_prompts, word, compared = len(asked.starts), asked.words[unit.number], asked.compared(unit)
    described = {name: params[name] for name in ("model", "revision", "concept_set", "pooling")} | {
        "concept": unit.concept
    }
    log_p, texts = iter(found.log_p), iter(found.texts)
    prompts, effects = [], []
    for selection, k in chosen.interventions(params["k"]):
        measured = np.empty((sum(len(each.words) for each in compared) // n_prompts, n_prompts))
        written: list[list[str]] = [[]] * n_prompts
        for half in _HALVES:
            of_half = range(half, n_prompts, len(_HALVES))
            given = [next(log_p) for _ in range(len(compared[half]))]
            measured[:, of_half] = compared[half].log_p(given).reshape(-1, len(of_half))
            for number in of_half:
                written[number] = [next(texts) for _ in range(params["samples"])]
        if selection == NONE:
            without = measured
        change = measured - without
        named = [sum(bool(find_word(text, word)) for text in some) for some in written]
        of_others = change[1:].mean(axis=0) if len(change) > 1 else None
        steered = {**described, "selection": selection, "k": k}
        prompts += [
            {
                **steered,
                "prompt": params["prompts"][number],
                "log_p": measured[0, number],
                "change": change[0, number],
                "others": None if of_others is None else of_others[number],
                "containing": named[number],
                "continuations": written[number],
            }
            for number in range(n_prompts)
        ]
        shares = np.array(named) / params["samples"] if params["samples"] else None
        effects.append(
            {
                **steered,
                "n_prompts": n_prompts,
                **_columns("change", mean_over_prompts(change[0])),
                **_columns("others", None if of_others is None else mean_over_prompts(of_others)),
                **_columns("containing", None if shares is None else _share(mean_over_prompts(shares))),
            }
        )
    own = asked.own(unit)
    neurons = []
    for row in chosen.experts.slice(0, _singles(unit, params)).to_pylist():
        del row["on_p50"]
        alone = own.log_p([next(log_p) for _ in range(len(own))]) - without[0]
        neurons.append({**described, **row, **_columns("change", mean_over_prompts(alone))})
    return {
        EFFECTS_FOLDER: pa.Table.from_pylist(effects, tables.STEERING),
        PROMPTS_FOLDER: pa.Table.from_pylist(prompts, tables.STEERING_PROMPTS),
        NEURONS_FOLDER: pa.Table.from_pylist(neurons, tables.STEERING_NEURONS),
    }


def _singles(unit: _Unit, params: Any) -> int:
    """How many experts of a concept are forced one at a time."""
    return int(params["singles"]) if unit.number < params["single_concepts"] else 0


def _share(found: Interval) -> Interval:
    """An interval of a share, kept within 0 and 1."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _columns(name: str, found: Interval | None) -> dict[str, float | None]:
    if found is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _doses(params: Any, prompts: pa.Table) -> pa.Table:
    """Means over all concepts of each selection and k."""
    grouped: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for row in prompts.to_pylist():
        of_concepts = grouped.setdefault((row["selection"], row["k"]), {})
        of_concepts.setdefault(row["concept"], []).append(row)
    rows = []
    for selection, k in sorted(grouped, key=lambda dose: ((NONE, *SELECTIONS).index(dose[0]), dose[1])):
        found = list(grouped[selection, k].values())

        def values(name: str, found: list[list[dict[str, Any]]] = found) -> Floats:
            return np.array([[row[name] for row in some] for some in found], np.float64)

        change, others = values("change"), values("others")
        shares = values("containing") / max(1, params["samples"])
        rows.append(
            {
                **{name: params[name] for name in ("model", "revision", "concept_set", "pooling")},
                "selection": selection,
                "k": k,
                "n_concepts": len(found),
                "n_prompts": change.shape[1],
                **_columns("change", mean_over_both(change)),
                **_columns("others", None if np.isnan(others).any() else mean_over_both(others)),
                **_columns("containing", _share(mean_over_both(shares)) if params["samples"] else None),
                "positive": float((change.mean(axis=1) > 0).mean()),
            }
        )
    return pa.Table.from_pylist(rows, tables.STEERING_DOSES)


if __name__ == "__main__":
    from jobs.commands.main import run_file

    run_file("steering")
