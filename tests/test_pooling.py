"""Maxima compared as integers could differ from those of the numbers, or hide a NaN."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.activations import pooling as pooling_module
from cluster.activations.batching import PaddedBatch
from cluster.activations.max_pooling import CompiledMaxPooler, TorchMaxPooler
from cluster.activations.pooling import Pooler, mean_bfloat16
from cluster.models.token_roles import (
    AFTER,
    BEFORE,
    IGNORED,
    NO_WORD,
    POOLED_ROLES,
    WORD,
    WORD_END,
    find_roles,
    has_state_at_word,
)
from tests.operations import count_operations

DTYPES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
CPU = torch.device("cpu")
SPECIAL = [0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 6e4, -6e4]


Occurrences = list[list[int]]
POOLINGS = tuple(POOLED_ROLES)


def plain_maxima(hidden: torch.Tensor, is_real: Sequence[bool], words: Occurrences) -> dict[str, Any]:
    """Maxima of one sentence, (tokens, units), whose words are at some tokens."""
    tokens = [token for token in range(len(hidden)) if is_real[token]]
    in_words = {token for word in words for token in word}
    ends = [[token for token in word if is_real[token]][-1:] for word in words]
    pooled = {
        "max": tokens,
        "concept": [token for end in ends for token in end],
        "concept-max": [token for token in tokens if token in in_words],
        "context": [token for token in tokens if token not in in_words],
        "before": [token for token in tokens if not words or token < words[0][0]],
    }
    if not words:
        pooled |= dict.fromkeys(("concept", "concept-max"), tokens)
    nothing = torch.zeros(hidden.shape[1], dtype=hidden.dtype)
    return {name: hidden[which].amax(0) if which else nothing for name, which in pooled.items()}


def draw_words(random: np.random.Generator, n_tokens: int) -> Occurrences:
    """Up to three occurrences of one to three tokens."""
    n_words = min(n_tokens, int(random.integers(0, 4)))
    starts = np.sort(random.choice(n_tokens, n_words, replace=False))
    stops = np.append(starts, n_tokens)[1:]
    return [
        list(range(start, min(stop, start + random.integers(1, 4))))
        for start, stop in zip(starts, stops, strict=True)
    ]


@settings(deadline=None)  # the first call compiles
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40)),
    poolings=st.lists(st.sampled_from(POOLINGS), min_size=1, unique=True),
)
def test_maxima_match_plain_loops(
    seed: int, dtype: torch.dtype, shape: tuple[int, int, int], poolings: list[str]
) -> None:
    """Any bits, either sign, padding, and words of no, one or several tokens and occurrences."""
    random = np.random.default_rng(seed)
    bits = torch.from_numpy(random.integers(-(2**31), 2**31, shape)).to(DTYPES[dtype])
    hidden = bits.view(dtype).nan_to_num(1.0)
    special = torch.from_numpy(random.choice(SPECIAL, shape)).to(dtype)
    hidden = torch.where(torch.from_numpy(random.random(shape) < 0.2), special, hidden)
    # some units are negative throughout
    hidden = torch.where(torch.from_numpy(random.random(shape[2]) < 0.3), -hidden.abs(), hidden)
    real = random.random(shape[:2]) < 0.8
    words = [draw_words(random, shape[1]) for _ in real]
    roles = np.array([find_roles(*each) for each in zip(real, words, strict=True)], np.int8)
    expected = [plain_maxima(*each) for each in zip(hidden, real, words, strict=True)]
    for pooler in (CompiledMaxPooler(roles, poolings), TorchMaxPooler(roles, poolings, CPU)):
        actual = pooler(hidden)
        assert list(actual) == poolings
        for pooling in poolings:
            rows = torch.stack([row[pooling] for row in expected])
            assert torch.equal(actual[pooling], rows), (pooler, pooling)


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
    for word, poolings in ((1, ("concept", "max")), (2, ("context", "before", "max"))):
        roles = np.array([find_roles([True] * 3, [[word]])], np.int8)
        actual = CompiledMaxPooler(roles, POOLINGS)(hidden)
        for pooling in poolings:
            assert actual[pooling].isnan()[0].tolist() == [False, True, True, False], pooling


def random_batch(dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, npt.NDArray[np.int8]]:
    """Hidden values of 70 sentences of up to 9 tokens, and the roles of the tokens."""
    random = np.random.default_rng(0)
    roles = random.integers(IGNORED, NO_WORD + 1, (70, 9)).astype(np.int8)
    roles[0] = WORD
    return torch.from_numpy(random.standard_normal((70, 9, 40))).to(dtype), roles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poolings", [POOLINGS, ("max", "concept"), ("before",)])
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
    out = torch.empty(5, 40, 70, dtype=torch.float16)
    for poolings, most in (POOLINGS, 4), (("max",), 4), (("last",), 2):
        pool = partial(pooler.write, hidden, poolings, out[: len(poolings)], are_states=False)
        pool()  # makes the batch's own tensors
        counted = count_operations(pool)
        assert sum(counted.values()) <= most, counted


def test_the_mean_of_hidden_states_leaves_out_the_first_position() -> None:
    """In a model without a BOS the first token's state is about 100 times as large as all others, and
    all means would point in its direction."""
    values = [1000.0, 2.0, 4.0, 7.0]
    roles = np.array(
        [
            [BEFORE, WORD_END, AFTER, IGNORED],
            [NO_WORD, *[IGNORED] * 3],
            [IGNORED, NO_WORD, NO_WORD, NO_WORD],
        ],
        np.int8,
    )
    for dtype in (torch.bfloat16, torch.float32):
        hidden = torch.tensor(values, dtype=dtype).repeat(3, 1)[:, :, None]
        pooler = Pooler(PaddedBatch(torch.zeros(1), torch.zeros(1), roles))
        for are_states, expected in ((True, [3, 1000, 13 / 3]), (False, [1006 / 3, 1000, 13 / 3])):
            out = torch.zeros(1, 1, 3)
            pooler.write(hidden, ("mean",), out, are_states=are_states)
            torch.testing.assert_close(out[0, 0], torch.tensor(expected))


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 30), st.integers(1, 40)),
    longest=st.sampled_from([2, 30]),
)
def test_states_at_the_word_match_plain_loops(
    seed: int, dtype: torch.dtype, shape: tuple[int, int, int], longest: int
) -> None:
    """A state of the first position, of another token of the word, or of a sentence without one; a
    sentence without a state that is not counted as such."""
    random = np.random.default_rng(seed)
    hidden = torch.from_numpy(random.standard_normal(shape) * 100).to(dtype)
    real = random.random(shape[:2]) < 0.8
    words = [[word for word in draw_words(random, shape[1]) if word[-1] < longest] for _ in real]
    roles = np.array([find_roles(*each) for each in zip(real, words, strict=True)], np.int8)
    out = torch.full((1, shape[2], shape[0]), torch.nan)
    Pooler(PaddedBatch(torch.zeros(1), torch.zeros(1), roles)).write(
        hidden, ("concept",), out, are_states=True
    )
    for sentence, (rows, is_real) in enumerate(zip(hidden.double(), real, strict=True)):
        ends = []
        for word in words[sentence]:
            tokens = [token for token in word if is_real[token]]
            if tokens and tokens[-1] > 0:
                ends.append(rows[tokens[-1]])
        expected = torch.stack(ends).mean(0) if ends else torch.zeros(shape[2], dtype=torch.float64)
        torch.testing.assert_close(out[0, :, sentence].double(), expected, rtol=1e-5, atol=1e-4)
        assert has_state_at_word(roles[sentence].tolist()) == bool(ends)


def test_the_triton_kernel_gives_the_same_maxima() -> None:
    """A kernel that no machine without a GPU runs."""
    pytest.importorskip("triton")
    code = (
        "from tests import test_pooling as t; from cluster.activations.triton_max_pooling import *\n"
        "for dtype in t.DTYPES:\n"
        "  hidden, roles = t.random_batch(dtype); hidden[3, 0, 5] = t.torch.nan\n"
        "  for poolings in (t.POOLINGS, ('max',), ('context', 'before')):\n"
        "    expected = t.CompiledMaxPooler(roles, poolings)(hidden)\n"
        "    actual = TritonMaxPooler(roles, poolings, t.CPU)(hidden)\n"
        "    for name in poolings:\n"
        "      assert t.torch.equal(actual[name].nan_to_num(7), expected[name].nan_to_num(7)), name\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
