"""Controls that are moved less than the experts, or columns of other weights, would make any effect of
the experts look specific."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from alignment.statistics.displacement import aura_factor, displacement, matched_shifts
from cluster.models.shard import ShardSettings
from cluster.steering.actor import UnitsRead
from cluster.steering.interventions import Intervention, SteeredSequence, batch_sequences
from cluster.steering.shard import SteeringShard
from jobs.interventions.neurons import (
    ABLATE,
    CLAMP,
    CONTROL_OF,
    DAMPEN,
    SELECTIONS,
    UNSTEERED,
    ConceptNeurons,
    Dose,
    select_neurons,
)
from storage.errors import NeuralignError
from tests.test_partial import ARCHITECTURES, save_model

Floats = npt.NDArray[np.float64]
MLP = "mlp.hidden"
PROMPTS = [(3, 40, 50, 60), (3, 41), (3, 70, 71)]


def moved(changes: Floats, columns: Floats) -> float:
    """Root mean square, over tokens, of the norm of the sum of changes times columns; a plain loop."""
    total = 0.0
    for token in range(changes.shape[0]):
        vector = [0.0] * columns.shape[1]
        for unit in range(changes.shape[1]):
            for output in range(columns.shape[1]):
                vector[output] += changes[token, unit] * columns[unit, output]
        total += sum(value * value for value in vector)
    return float((total / changes.shape[0]) ** 0.5)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 7))
def test_displacement_is_that_of_a_plain_loop_and_controls_have_it(
    seed: int, n_units: int, n_tokens: int, width: int
) -> None:
    """A norm of mean changes, or of columns one by one, would miss what neurons write together."""
    random = np.random.default_rng(seed)
    changes = random.normal(random.normal(), 1, (n_tokens, n_units))
    columns, control_columns = random.normal(0, 1, (2, n_units, width))
    gram, control_gram = columns @ columns.T, control_columns @ control_columns.T
    expected = moved(changes, columns)
    assert displacement(changes, gram) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    shifts = matched_shifts(changes, gram, control_gram)
    assert moved(shifts[np.newaxis], control_columns) == pytest.approx(expected, rel=1e-6)
    if n_units == 1:
        assert shifts[0] * changes.mean() > 0


def test_neurons_that_do_not_change_need_no_control_and_dead_ones_are_none() -> None:
    """A division by zero would store NaN, and controls without weights would move nothing."""
    gram = np.eye(2)
    assert matched_shifts(np.zeros((3, 2)), gram, gram).tolist() == [0, 0]
    assert displacement(np.empty((3, 0)), np.empty((0, 0))) == 0
    with pytest.raises(ValueError, match="columns of zeros"):
        matched_shifts(np.ones((3, 2)), gram, np.zeros((2, 2)))
    half_dead = matched_shifts(np.ones((3, 2)), gram, np.diag([0.0, 4.0]))
    assert half_dead.tolist() == pytest.approx([0, 2**0.5 / 2])


def test_aura_multiplies_by_one_minus_gini() -> None:
    """A neuron that does not detect the concept would be dampened, or a detector amplified."""
    auroc = np.linspace(0, 1, 11)
    expected = []
    for value in auroc:
        gini = 2 * (value - 0.5)
        expected.append(1 - gini if value > 0.5 else 1.0)
    assert aura_factor(auroc).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_columns_are_those_by_which_the_module_multiplies(
    tmp_path: Path, tiny_model: Path, name: str
) -> None:
    """The rows of a matrix, or a matrix that is stored transposed."""
    folder = save_model(tmp_path, tiny_model, _config(name), torch.float32)
    shard = SteeringShard(folder, ShardSettings("float32", "mlp"))
    units = np.array([0, 5, 17])
    products = shard.column_products({(1, MLP): units})
    assert list(products) == [(1, MLP)]
    site = next(site for site in shard.sites if site.layer == 1)
    module = shard._modules[1].get_submodule(site.module)
    zeros = torch.zeros(1, site.width)
    written = []
    for unit in units:
        moved_by_one = zeros.clone()
        moved_by_one[0, unit] = 1
        written.append((module(moved_by_one) - module(zeros))[0].double().numpy())
    np.testing.assert_allclose(products[1, MLP], np.stack(written) @ np.stack(written).T, atol=1e-5)


def test_units_that_are_outputs_of_a_module_have_unit_vectors(tiny_model: Path) -> None:
    """The weights that made an output are not what it writes."""
    shard = SteeringShard(tiny_model, ShardSettings("float32", "linears"))
    key = (0, "mlp.up_proj")
    assert shard.column_products({key: np.array([1, 4])})[key].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(NeuralignError, match="has 48 units; cannot change unit 48"):
        shard.column_products({key: np.array([48])})


def _config(name: str) -> PretrainedConfig:
    config = ARCHITECTURES[name]
    assert isinstance(config, GPT2Config | LlamaConfig)
    return config


def make_neurons() -> ConceptNeurons:
    """Experts of a tiny model, two of them in layer 0."""
    random = np.random.default_rng(1)
    keys = [(0, 7), (2, 3), (1, 30), (0, 2), (1, 4), (1, 5)]
    experts = pa.table(
        {
            "layer": [layer for layer, _ in keys],
            "site": [MLP] * len(keys),
            "unit": [unit for _, unit in keys],
            "ap": np.linspace(0.9, 0.5, len(keys)),
            "auroc": np.linspace(0.95, 0.45, len(keys)),
            "on_p50": random.normal(0.5, 1, len(keys)).astype(np.float32),
            "attribution_odd": random.normal(0, 1, len(keys)),
            "attribution_even": random.normal(0, 1, len(keys)),
        }
    )
    widths = {(layer, MLP): 48 for layer in range(3)}
    return select_neurons(experts, ["attribution_even", "attribution_odd"], widths, 5, [0, 0])


def read_units(folder: Path, neurons: ConceptNeurons) -> dict[Any, UnitsRead]:
    shard = SteeringShard(folder, ShardSettings("float32", "mlp"))
    units = neurons.units()
    read: dict[Any, list[Floats]] = {key: [] for key in units}
    for batch in batch_sequences([SteeredSequence(ids) for ids in PROMPTS], 1000):
        for key, values in shard.read_units(shard.forward_recorded(batch, None), units).items():
            read[key].append(values)
    products = shard.column_products(units)
    return {key: UnitsRead(units[key], np.concatenate(read[key]), products[key]) for key in units}


def moved_layers(folder: Path, intervention: Intervention) -> dict[int, float]:
    """Displacement of each layer of the full model in float64, by plain loops over tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    inputs: dict[int, list[Floats]] = {layer: [] for layer in range(3)}
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: inputs[layer].append(args[0][0].numpy().copy())
        )
    with torch.no_grad():
        for ids in PROMPTS:
            model(torch.tensor([ids]))
    distances = {}
    for (layer, _), change in intervention.items():
        before = np.concatenate(inputs[layer])[:, change.units]
        after = change.scales * before + change.offsets
        columns = model.model.layers[layer].mlp.down_proj.weight.detach().numpy().T[change.units]
        distances[layer] = moved(after - before, columns)
    return distances


@pytest.mark.parametrize("intervention", [CLAMP, DAMPEN, ABLATE])
def test_controls_displace_each_layer_as_far_as_the_experts(tiny_model: Path, intervention: str) -> None:
    """Random neurons that move the residual stream less would lack an effect for that reason alone."""
    neurons = make_neurons()
    reading = read_units(tiny_model, neurons)
    selections = ["ap", "attribution", "ap-later"] if intervention == CLAMP else ["ap"]
    for selection in selections:
        (control,) = (name for name, of in CONTROL_OF.items() if of == selection)
        for k in (1, 4):
            planned, controls = (
                neurons.plan(Dose(name, intervention, k), reading) for name in (selection, control)
            )
            for steered, matched in zip(planned.interventions, controls.interventions, strict=True):
                expected = moved_layers(tiny_model, steered)
                assert moved_layers(tiny_model, matched) == pytest.approx(expected, rel=1e-4)
                assert max(expected.values()) > 0
                for key, change in steered.items():
                    assert not set(change.units) & set(matched[key].units)
            totals = [
                sum(value**2 for value in moved_layers(tiny_model, half).values()) ** 0.5
                for half in planned.interventions
            ]
            assert planned.displacement == pytest.approx(np.mean(totals), rel=1e-4)
            assert controls.displacement == pytest.approx(planned.displacement, rel=1e-4)


def test_experts_of_layer_0_are_set_apart() -> None:
    """Detectors of a token would count as neurons that represent its concept."""
    neurons = make_neurons()
    for name, layers in (("ap", [0, 2, 1, 0, 1]), ("ap-layer-0", [0, 0]), ("ap-later", [2, 1, 1, 1])):
        for half in neurons.neurons[name]:
            assert [layer for layer, _, _ in half] == layers
    doses = neurons.doses([1, 3])
    assert doses[0] == UNSTEERED
    clamped = [(dose.selection, dose.k) for dose in doses if dose.intervention == CLAMP]
    with_three = [name for name in SELECTIONS[1:] if name not in ("ap-layer-0", "random-layer-0")]
    assert sorted(clamped) == sorted(
        [*((name, 1) for name in SELECTIONS[1:]), *((name, 3) for name in with_three)]
    )
    rest = {(dose.selection, dose.intervention) for dose in doses if dose.intervention != CLAMP}
    assert rest == {
        ("none", "none"),
        *((name, how) for name in ("ap", "random") for how in (DAMPEN, ABLATE)),
    }


def test_interventions_change_the_experts_as_their_names_say() -> None:
    """Values of other experts: rows are by AP, and units of a site by selection."""
    neurons = make_neurons()
    experts = [(1, MLP, 30), (0, MLP, 2), (1, MLP, 4)]
    on_values, aurocs = (neurons.experts.column(name).to_pylist() for name in ("on_p50", "auroc"))
    rows = {(1, 30): 2, (0, 2): 3, (1, 4): 4}
    for name in (CLAMP, DAMPEN, ABLATE):
        changes = neurons.change(name, experts)
        assert changes[1, MLP].units.tolist() == [30, 4]
        for (layer, _), change in changes.items():
            for unit, scale, offset in zip(change.units, change.scales, change.offsets, strict=True):
                row = rows[layer, unit]
                factor = 1 - 2 * (aurocs[row] - 0.5) if aurocs[row] > 0.5 else 1
                expected = {CLAMP: (0, on_values[row]), DAMPEN: (factor, 0), ABLATE: (0, 0)}[name]
                assert (scale, offset) == pytest.approx(expected)
