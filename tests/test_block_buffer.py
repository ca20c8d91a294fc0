"""A value that is not finite is named by its first place in the model: others are made of it."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from cluster.activations.block_buffer import BlockBuffer
from cluster.activations.column_order import transpose_rows
from cluster.models.sites import Site
from storage.errors import NeuralignError

GATE, UP = (Site(2, name, name, "output", 8) for name in ("mlp.gate_proj", "mlp.up_proj"))
DOWN = Site(2, "mlp.down_proj", "mlp.down_proj", "output", 4)
STATES = Site(2, "residual", "", "output", 4)
NEXT = Site(3, "self_attn.q_proj", "self_attn.q_proj", "output", 4)
TEXTS = ["first", "second", "third"]
ORDER = [2, 0, 1]
"""The sentences in the order in which they are written."""


def dtypes(sites: list[Site], poolings: list[str]) -> dict[tuple[str, Site], torch.dtype]:
    neurons = {(pooling, site): torch.float16 for site in sites for pooling in poolings}
    return {**neurons, ("mean", STATES): torch.float32}


def name_first(
    poolings: list[str], broken: list[tuple[Site, str, int]], sites: list[Site] | None = None
) -> str:
    """The error for values that are not finite at these sites, poolings and sentences."""
    buffer = BlockBuffer(dtypes(sites or [NEXT, DOWN, GATE, UP], poolings), 3, torch.device("cpu"))
    for group in buffer.groups:
        group.values.zero_()
    for site, pooling, sentence in broken:
        ((together, values),) = [each for each in buffer.of_site(site) if pooling in each[0]]
        values[together.index(pooling), 1, ORDER.index(sentence)] = torch.inf
    with pytest.raises(NeuralignError) as caught:
        buffer.finish(ORDER, TEXTS)
    return str(caught.value).partition(":")[0]


def test_the_lowest_layer_is_named_then_the_site_that_runs_first() -> None:
    """The down projection of an MLP whose up projection overflows, or another layer: sites of one width
    are checked together."""
    everything = [(site, "max", 0) for site in (NEXT, DOWN, UP)] + [(STATES, "mean", 0)]
    sites = [NEXT, GATE, UP, DOWN]
    assert name_first(["max"], everything, sites) == f"{UP}, pooling max, sentence 'first'"
    assert name_first(["max"], everything[:2], sites) == f"{DOWN}, pooling max, sentence 'first'"
    assert name_first(["max"], [everything[0], everything[3]]) == (
        f"{STATES}, pooling mean, sentence 'first'"
    )


@pytest.mark.parametrize("poolings", list(permutations(["concept", "mean", "max"])))
def test_poolings_are_named_in_their_own_order(poolings: tuple[str, ...]) -> None:
    """Another one of a layer, or the pooling `concept` of the next layer, where a NaN of the context has
    reached all tokens."""
    in_layer = [(GATE, pooling, 1) for pooling in ("max", "mean")]
    after = [(NEXT, pooling, 0) for pooling in ("concept", "max", "mean")]
    expected = next(pooling for pooling in poolings if pooling != "concept")
    assert (
        name_first(list(poolings), in_layer + after) == f"{GATE}, pooling {expected}, sentence 'second'"
    )


def test_the_first_sentence_of_the_set_is_named() -> None:
    """The first of the batches, which are sorted by length."""
    broken = [(GATE, "max", sentence) for sentence in (2, 1)]
    assert name_first(["max"], broken) == f"{GATE}, pooling max, sentence 'second'"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sentences_are_put_in_order_with_every_bit(dtype: torch.dtype) -> None:
    """A value under another sentence, or a -0 or subnormal that is changed on the way."""
    rows = torch.randn(50, 7).mul(1e-7).to(dtype)
    rows[4, 3] = -0.0
    order, expected = torch.randperm(50), rows.clone()
    columns, is_finite = transpose_rows(rows, order)
    bits = torch.int16 if dtype == torch.float16 else torch.int32
    assert is_finite
    assert columns.is_contiguous()
    assert torch.equal(columns.view(bits), expected.view(bits)[order].T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, -torch.nan])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, number: float) -> None:
    """It would be scored as an activation."""
    rows = torch.full((5, 3), torch.finfo(dtype).max).to(dtype)
    rows[:, 0] *= -1
    assert transpose_rows(rows.clone(), torch.arange(5))[1]
    rows[4, 1] = number
    assert not transpose_rows(rows, torch.arange(5))[1]
