"""Maxima compared as integers could differ from those of the numbers, or hide a NaN."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.activations import pooling as pooling_module
from cluster.activations.batching import CONCEPT, CONTEXT, IGNORED, PaddedBatch
from cluster.activations.max_pooling import POOLINGS, CompiledMaxPooler, TorchMaxPooler
from cluster.activations.pooling import Pooler, mean_bfloat16
from tests.operations import count_operations

DTYPES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
CPU = torch.device("cpu")
SPECIAL = [0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 6e4, -6e4]


def make_roles(real: torch.Tensor, concept: torch.Tensor) -> npt.NDArray[np.int8]:
    roles = np.where(concept.numpy(), CONCEPT, CONTEXT)
    return np.where(real.numpy(), roles, IGNORED).astype(np.int8)


def plain_maxima(
    hidden: torch.Tensor, real: torch.Tensor, concept: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Maxima of one sentence after another."""
    maxima: dict[str, list[torch.Tensor]] = {pooling: [] for pooling in POOLINGS}
    for values, is_real, is_concept in zip(hidden, real, real & concept, strict=True):
        context = values[is_real & ~is_concept].amax(0)
        word = values[is_concept].amax(0) if is_concept.any() else context
        for pooling, row in (("concept", word), ("context", context), ("max", values[is_real].amax(0))):
            maxima[pooling].append(row)
    return {pooling: torch.stack(rows) for pooling, rows in maxima.items()}


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
    roles = make_roles(real, concept)
    expected = plain_maxima(hidden, real, concept)
    for pooler in (CompiledMaxPooler(roles, POOLINGS), TorchMaxPooler(roles, POOLINGS, CPU)):
        actual = pooler(hidden)
        for pooling in POOLINGS:
            assert torch.equal(actual[pooling], expected[pooling]), (pooler, pooling)


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
    actual = mean_bfloat16(hidden, real.numpy())
    for sentence, (rows, is_real) in enumerate(zip(hidden, real, strict=True)):
        torch.testing.assert_close(
            actual[sentence].double(), rows[is_real].double().mean(dim=0), rtol=1e-5, atol=1e-4
        )
        unpadded = mean_bfloat16(rows[is_real][None], np.ones((1, int(is_real.sum())), bool))
        assert torch.equal(actual[sentence], unpadded[0])
    hidden[0, 0, 0] = torch.nan
    assert mean_bfloat16(hidden, real.numpy())[0, 0].isnan()


@pytest.mark.parametrize("sign", [0, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_is_not_hidden_by_infinity(dtype: torch.dtype, sign: int) -> None:
    """A CPU's default NaN has the sign bit: as an integer it is smaller than all numbers."""
    hidden = torch.full((1, 3, 4), torch.inf, dtype=dtype)
    bits = hidden.view(DTYPES[dtype])
    # the smallest and the largest NaN of this sign
    bits[0, 1, 1] = (bits[0, 0, 0] + 1) | (sign << (8 * dtype.itemsize - 1))
    bits[0, 1, 2] = sign if sign else torch.iinfo(bits.dtype).max
    for word, poolings in ((1, ("concept", "max")), (2, ("context", "max"))):
        roles = np.where(np.arange(3) == word, CONCEPT, CONTEXT).astype(np.int8)[np.newaxis]
        actual = CompiledMaxPooler(roles, POOLINGS)(hidden)
        for pooling in poolings:
            assert actual[pooling].isnan()[0].tolist() == [False, True, True, False], pooling


def random_batch(dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, npt.NDArray[np.int8]]:
    """Hidden values of 70 sentences of up to 9 tokens, and the roles of the tokens."""
    random = np.random.default_rng(0)
    roles = random.integers(-1, 2, (70, 9)).astype(np.int8)
    roles[:, 0] = CONTEXT
    return torch.from_numpy(random.standard_normal((70, 9, 40))).to(dtype), roles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poolings", [POOLINGS, ("max", "concept"), ("context",)])
def test_poolers_write_float16_neuron_by_neuron(dtype: torch.dtype, poolings: tuple[str, ...]) -> None:
    """Values beside the batch's columns, or rows in another order than asked for."""
    hidden, roles = random_batch(dtype)
    for pooler in (CompiledMaxPooler(roles, poolings), TorchMaxPooler(roles, poolings, CPU)):
        buffer = torch.full((len(poolings), 40, 80), 7, dtype=torch.float16)
        pooler.write(hidden, buffer[:, :, 5:75])
        expected = pooler(hidden)
        for row, pooling in zip(buffer, poolings, strict=True):
            assert torch.equal(row[:, 5:75], expected[pooling].to(torch.float16).T)
            assert (row[:, :5] == 7).all()
            assert (row[:, 75:] == 7).all()


def test_pooling_takes_few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some fifteen kernels for each site and batch, which leave a GPU waiting."""
    monkeypatch.setattr(pooling_module, "make_max_pooler", TorchMaxPooler)
    hidden, roles = random_batch()
    pooler = Pooler(PaddedBatch(torch.zeros(1), torch.zeros(1), roles))
    out = torch.empty(3, 40, 70, dtype=torch.float16)
    for poolings, most in (("max", "concept", "context"), 4), (("max",), 4), (("last",), 2):
        pool = partial(pooler.write, hidden, poolings, out[: len(poolings)])
        pool()  # makes the batch's own tensors
        counted = count_operations(pool)
        assert sum(counted.values()) <= most, counted


def test_the_triton_kernel_gives_the_same_maxima() -> None:
    """A kernel that no machine without a GPU runs."""
    pytest.importorskip("triton")
    code = (
        "from tests import test_pooling as t; from cluster.activations.triton_max_pooling import *\n"
        "for dtype in t.DTYPES:\n"
        "  hidden, roles = t.random_batch(dtype); hidden[3, 0, 5] = t.torch.nan\n"
        "  for poolings in (t.POOLINGS, ('max',), ('context', 'concept')):\n"
        "    expected = t.CompiledMaxPooler(roles, poolings)(hidden)\n"
        "    actual = TritonMaxPooler(roles, poolings, t.CPU)(hidden)\n"
        "    for name in poolings:\n"
        "      assert t.torch.equal(actual[name].nan_to_num(7), expected[name].nan_to_num(7)), name\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
