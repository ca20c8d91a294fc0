"""Maxima compared as integers could differ from those of the numbers, or hide a NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.activations.max_pooling import POOLINGS, CompiledMaxPooler, TorchMaxPooler
from cluster.activations.pooling import mean_bfloat16

DTYPES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
SPECIAL = [0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 6e4, -6e4]


@settings(deadline=None)  # the first call compiles
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.tuples(st.integers(1, 5), st.integers(2, 9), st.integers(1, 40)),
)
def test_compiled_maxima_match_torch(seed: int, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """Any bits, either sign, padding, and words of no, one or several tokens."""
    random = np.random.default_rng(seed)
    bits = torch.from_numpy(random.integers(-(2**31), 2**31, shape)).to(DTYPES[dtype])
    hidden = bits.view(dtype).nan_to_num(1.0)
    special = torch.from_numpy(random.choice(SPECIAL, shape)).to(dtype)
    hidden = torch.where(torch.from_numpy(random.random(shape) < 0.2), special, hidden)
    # some units are negative throughout
    hidden = torch.where(torch.from_numpy(random.random(shape[2]) < 0.3), -hidden.abs(), hidden)
    real = torch.from_numpy(random.random(shape[:2]) < 0.8)
    concept = torch.from_numpy(random.random(shape[:2]) < 0.3)
    # every sentence has a context token
    real[:, 1], concept[:, 1] = True, False
    actual, expected = (pooler(real, concept)(hidden) for pooler in (CompiledMaxPooler, TorchMaxPooler))
    for pooling in POOLINGS:
        assert torch.equal(actual[pooling], expected[pooling]), pooling


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40)),
)
def test_means_match_float64_whatever_the_padding(seed: int, shape: tuple[int, int, int]) -> None:
    """Rounding to bfloat16, or sums in an order that depends on padding."""
    random = np.random.default_rng(seed)
    hidden = torch.from_numpy(random.standard_normal(shape) * 100).to(torch.bfloat16)
    real = torch.from_numpy(random.random(shape[:2]) < 0.7)
    real[:, 0] = True
    actual = mean_bfloat16(hidden, real)
    for sentence, (rows, is_real) in enumerate(zip(hidden, real, strict=True)):
        torch.testing.assert_close(
            actual[sentence].double(), rows[is_real].double().mean(dim=0), rtol=1e-5, atol=1e-4
        )
        unpadded = mean_bfloat16(
            rows[is_real][None], torch.ones(1, int(is_real.sum()), dtype=torch.bool)
        )
        assert torch.equal(actual[sentence], unpadded[0])
    hidden[0, 0, 0] = torch.nan
    assert mean_bfloat16(hidden, real)[0, 0].isnan()


@pytest.mark.parametrize("sign", [0, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_is_not_hidden_by_infinity(dtype: torch.dtype, sign: int) -> None:
    """A CPU's default NaN has the sign bit: as an integer it is smaller than all numbers."""
    hidden = torch.full((1, 3, 4), torch.inf, dtype=dtype)
    bits = hidden.view(DTYPES[dtype])
    # the smallest and the largest NaN of this sign
    bits[0, 1, 1] = (bits[0, 0, 0] + 1) | (sign << (8 * dtype.itemsize - 1))
    bits[0, 1, 2] = sign if sign else torch.iinfo(bits.dtype).max
    real = torch.ones(1, 3, dtype=torch.bool)
    for word, poolings in ((1, ("concept", "max")), (2, ("context", "max"))):
        actual = CompiledMaxPooler(real, torch.arange(3)[None] == word)(hidden)
        for pooling in poolings:
            assert actual[pooling].isnan()[0].tolist() == [False, True, True, False], pooling
