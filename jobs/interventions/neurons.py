"""The neurons of a concept that are steered, what is done to them, and random neurons as controls.

The controls of an intervention are random neurons of the same layers and sites that are shifted by
constants, so that they displace what each site writes as far as the intervention does
(`alignment.statistics.displacement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from alignment.arrays import Floats, Ints
from alignment.statistics.displacement import aura_factor, displacement, matched_shifts
from alignment.statistics.steering import Neuron, sample_control_neurons
from storage.errors import NeuralignError

if TYPE_CHECKING:
    from cluster.steering.actor import UnitsRead
    from cluster.steering.interventions import ChangedUnits, Intervention, SiteKey

NONE = "none"
BY_AP, FIRST_LAYER, LATER_LAYERS, BY_ATTRIBUTION = "ap", "ap-layer-0", "ap-later", "attribution"
CONTROL_OF = {
    "random": BY_AP,
    "random-layer-0": FIRST_LAYER,
    "random-later": LATER_LAYERS,
    "random-attribution": BY_ATTRIBUTION,
}
"""The selection whose displacement each selection of random neurons has."""

SELECTIONS = (NONE, *(name for control in CONTROL_OF.items() for name in reversed(control)))
"""Each selection, followed by its control."""

CLAMP, DAMPEN, ABLATE = "clamp", "dampen", "ablate"
INTERVENTIONS = (NONE, CLAMP, DAMPEN, ABLATE)


@dataclass(frozen=True)
class Dose:
    """An intervention on the first k neurons of a selection."""

    selection: str
    intervention: str
    k: int


UNSTEERED = Dose(NONE, NONE, 0)


@dataclass(frozen=True)
class PlannedDose:
    """A dose: its intervention for each half of the prompts, and the mean of their displacements."""

    dose: Dose
    interventions: list[Intervention]
    displacement: float


@dataclass(frozen=True)
class ConceptNeurons:
    """A concept's experts by descending AP, and its neurons by selection and half of the prompts, in the
    order in which they are steered."""

    experts: pa.Table
    neurons: dict[str, list[list[Neuron]]]

    def doses(self, sizes: Sequence[int]) -> list[Dose]:
        """Every intervention with enough neurons, the unsteered model first."""
        return [UNSTEERED] + [
            Dose(selection, intervention, k)
            for intervention in INTERVENTIONS[1:]
            for selection in SELECTIONS[1:]
            if intervention == CLAMP or CONTROL_OF.get(selection, selection) == BY_AP
            for k in sizes
            if k <= min(map(len, self.neurons[selection]))
        ]

    def units(self) -> dict[SiteKey, Ints]:
        """Distinct units of all selections by site, ascending."""
        neurons = {neuron for halves in self.neurons.values() for half in halves for neuron in half}
        return {key: np.sort(units) for key, units in _by_site(neurons).items()}

    def plan(self, dose: Dose, reading: Mapping[SiteKey, UnitsRead]) -> PlannedDose:
        """The interventions of a dose; `reading` has the `units` in the unsteered model."""
        planned, distances = [], []
        for steered, chosen in zip(
            self.neurons[CONTROL_OF.get(dose.selection, dose.selection)],
            self.neurons[dose.selection],
            strict=True,
        ):
            intervention = self.change(dose.intervention, steered[: dose.k])
            if dose.selection in CONTROL_OF:
                intervention = _match(intervention, _by_site(chosen[: dose.k]), reading)
            planned.append(intervention)
            squares = [_displacement(change, reading[key]) ** 2 for key, change in intervention.items()]
            distances.append(np.sqrt(sum(squares)))
        return PlannedDose(dose, planned, float(np.mean(distances)))

    def change(self, intervention: str, neurons: Sequence[Neuron]) -> Intervention:
        """Clamp experts to their on values, dampen them as AurA does, or set them to 0."""
        from cluster.steering.interventions import ChangedUnits

        changes = {}
        for (layer, site), units in _by_site(neurons).items():
            rows = [self._rows[layer, site, unit] for unit in units.tolist()]
            scales, offsets = np.zeros((2, len(units)), np.float32)
            if intervention == CLAMP:
                offsets = self.experts.column("on_p50").to_numpy()[rows].astype(np.float32)
            elif intervention == DAMPEN:
                auroc = self.experts.column("auroc").to_numpy()[rows]
                scales = aura_factor(auroc).astype(np.float32)
            changes[layer, site] = ChangedUnits(units, scales, offsets)
        return changes

    @cached_property
    def _rows(self) -> dict[Neuron, int]:
        columns = (self.experts.column(name).to_pylist() for name in ("layer", "site", "unit"))
        return {neuron: row for row, neuron in enumerate(zip(*columns, strict=True))}


def select_neurons(
    experts: pa.Table,
    attributions_by_half: Sequence[str],
    widths: dict[SiteKey, int],
    max_k: int,
    seed: Sequence[int],
) -> ConceptNeurons:
    """Choose a concept's neurons.

    `experts` are by descending AP. `attributions_by_half` are the columns by whose values neurons are
    selected for each half of the prompts. `widths` has the number of units of each site.
    """
    columns = (experts.column(name).to_pylist() for name in ("layer", "site", "unit"))
    by_ap: list[Neuron] = list(zip(*columns, strict=True))
    halves = range(len(attributions_by_half))
    neurons: dict[str, list[list[Neuron]]] = {
        NONE: [[] for _ in halves],
        BY_AP: [by_ap[:max_k] for _ in halves],
        FIRST_LAYER: [[neuron for neuron in by_ap if neuron[0] == 0][:max_k] for _ in halves],
        LATER_LAYERS: [[neuron for neuron in by_ap if neuron[0] > 0][:max_k] for _ in halves],
        BY_ATTRIBUTION: [
            [by_ap[row] for row in np.argsort(-experts.column(name).to_numpy(), kind="stable")[:max_k]]
            for name in attributions_by_half
        ],
    }
    excluded = set(by_ap)
    for number, (control, selection) in enumerate(CONTROL_OF.items()):
        neurons[control] = [
            sample_control_neurons(steered, widths, excluded, [*seed, number])
            for steered in neurons[selection]
        ]
    return ConceptNeurons(experts, neurons)


def _by_site(neurons: Iterable[Neuron]) -> dict[SiteKey, Ints]:
    units: dict[SiteKey, list[int]] = {}
    for layer, site, unit in neurons:
        units.setdefault((layer, site), []).append(unit)
    return {key: np.array(values, np.int64) for key, values in units.items()}


def _match(
    intervention: Intervention,
    controls: Mapping[SiteKey, Ints],
    reading: Mapping[SiteKey, UnitsRead],
) -> Intervention:
    """Shift as many control units of each site as an intervention changes, with its displacement."""
    from cluster.steering.interventions import ChangedUnits

    matched = {}
    for key, change in intervention.items():
        units = controls[key]
        try:
            shifts = matched_shifts(
                _changes(change, reading[key]),
                _products(change.units, reading[key]),
                _products(units, reading[key]),
            )
        except ValueError as error:
            layer, site = key
            raise NeuralignError(
                f"layer {layer}, {site}: the effect of its experts has no control: {error}"
            ) from error
        ones = np.ones(len(units), np.float32)
        matched[key] = ChangedUnits(units, ones, shifts.astype(np.float32))
    return matched


def _displacement(change: ChangedUnits, reading: UnitsRead) -> float:
    return displacement(_changes(change, reading), _products(change.units, reading))


def _changes(change: ChangedUnits, reading: UnitsRead) -> Floats:
    """Changes of activations, (tokens, units)."""
    activations = reading.activations[:, np.searchsorted(reading.units, change.units)]
    scales, offsets = (values.astype(np.float64) for values in (change.scales, change.offsets))
    changes: Floats = (scales - 1) * activations + offsets
    return changes


def _products(units: Ints, reading: UnitsRead) -> Floats:
    indices = np.searchsorted(reading.units, units)
    products: Floats = reading.products[np.ix_(indices, indices)]
    return products
