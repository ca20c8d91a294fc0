"""A maximum that is taken from the bits of numbers must be theirs, and must not hide a NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.activations.max_pooling import POOLINGS, CompiledMaxima, TorchMaxima
from cluster.activations.mean_pooling import bfloat16_means

DTYPES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
SPECIAL = [0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 6e4, -6e4]


@settings(deadline=None)  # the first call compiles
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.tuples(st.integers(1, 5), st.integers(2, 9), st.integers(1, 40)),
)
def test_compiled_maxima_are_those_of_torch(
    seed: int, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Any bits there are, of numbers of either sign, with padding, words of some tokens and none."""
    random = np.random.default_rng(seed)
    bits = torch.from_numpy(random.integers(-(2**31), 2**31, shape)).to(DTYPES[dtype])
    hidden = bits.view(dtype).nan_to_num(1.0)
    special = torch.from_numpy(random.choice(SPECIAL, shape)).to(dtype)
    hidden = torch.where(torch.from_numpy(random.random(shape) < 0.2), special, hidden)
    # in some units all are below zero
    hidden = torch.where(torch.from_numpy(random.random(shape[2]) < 0.3), -hidden.abs(), hidden)
    real = torch.from_numpy(random.random(shape[:2]) < 0.8)
    concept = torch.from_numpy(random.random(shape[:2]) < 0.3)
    # each sentence has a token of its context
    real[:, 1], concept[:, 1] = True, False
    found, expected = (way(real, concept)(hidden) for way in (CompiledMaxima, TorchMaxima))
    for pooling in POOLINGS:
        assert torch.equal(found[pooling], expected[pooling]), pooling


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40)),
)
def test_means_are_those_of_float64_and_do_not_depend_on_padding(
    seed: int, shape: tuple[int, int, int]
) -> None:
    random = np.random.default_rng(seed)
    hidden = torch.from_numpy(random.standard_normal(shape) * 100).to(torch.bfloat16)
    real = torch.from_numpy(random.random(shape[:2]) < 0.7)
    real[:, 0] = True
    found = bfloat16_means(hidden, real)
    for sentence, (rows, kept) in enumerate(zip(hidden, real, strict=True)):
        torch.testing.assert_close(
            found[sentence].double(), rows[kept].double().mean(dim=0), rtol=1e-5, atol=1e-4
        )
        alone = bfloat16_means(rows[kept][None], torch.ones(1, int(kept.sum()), dtype=torch.bool))
        assert torch.equal(found[sentence], alone[0])
    hidden[0, 0, 0] = torch.nan
    assert bfloat16_means(hidden, real)[0, 0].isnan()


@pytest.mark.parametrize("sign", [0, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_is_not_hidden_by_a_greater_one(dtype: torch.dtype, sign: int) -> None:
    """A processor's own NaN has the sign bit: as a whole number it is below all others."""
    hidden = torch.full((1, 3, 4), torch.inf, dtype=dtype)
    bits = hidden.view(DTYPES[dtype])
    # the least and the greatest NaN of this sign
    bits[0, 1, 1] = (bits[0, 0, 0] + 1) | (sign << (8 * dtype.itemsize - 1))
    bits[0, 1, 2] = sign if sign else torch.iinfo(bits.dtype).max
    real = torch.ones(1, 3, dtype=torch.bool)
    for word, poolings in ((1, ("concept", "max")), (2, ("context", "max"))):
        found = CompiledMaxima(real, torch.arange(3)[None] == word)(hidden)
        for pooling in poolings:
            assert found[pooling].isnan()[0].tolist() == [False, True, True, False], pooling
