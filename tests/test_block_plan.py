"""Blocks of layers must fit the memory of a device, and be as few as possible."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from cluster.activations import prepared_pass
from cluster.activations.block_plan import LayerBytes, ModelBytes, measure_model, plan_blocks
from cluster.activations.block_shard import BlockShard
from cluster.activations.layer_writer import LayerWriter
from cluster.activations.pass_request import PassRequest
from cluster.activations.pooling_shard import ActivationSettings
from cluster.activations.prepared_pass import PreparedPass
from cluster.models.sparse_autoencoder import SparseAutoencoder
from storage.errors import UserError
from tests import tiny
from tests.test_shard import make_texts

_sizes = st.integers(0, 40)
_models = st.builds(
    ModelBytes,
    st.lists(st.builds(LayerBytes, _sizes, st.integers(0, 4)), min_size=1, max_size=8),
    embeddings=_sizes,
    token=st.integers(0, 3),
    attention=st.integers(0, 1),
)


def needed(model: ModelBytes, block: range, sentences: int) -> int:
    layers = [model.layers[layer] for layer in block]
    size = sum(layer.weights + layer.pooled * sentences for layer in layers)
    return size + (model.embeddings if 0 in block else 0)


@given(
    model=_models,
    sentences=st.integers(0, 8),
    budget=st.integers(1, 8),
    memory=st.integers(1, 400),
    consumer_bytes=st.integers(0, 40),
    longest=st.integers(1, 4),
)
def test_blocks_fit_and_fewer_would_not(
    model: ModelBytes, sentences: int, budget: int, memory: int, consumer_bytes: int, longest: int
) -> None:
    """A block without room, weights that are read more often than needed, or a layer that is left out;
    against all divisions."""

    def plan() -> list[range]:
        return plan_blocks(model, sentences, budget, memory, consumer_bytes, longest)

    n_layers = len(model.layers)
    one_by_one = [range(layer, layer + 1) for layer in range(n_layers)]
    if any(needed(model, layer, sentences) > memory for layer in one_by_one):
        with pytest.raises(UserError, match="need"):
            plan()
        return
    reordered = sum(layer.pooled for layer in model.layers) * sentences
    batches = max(budget, longest) * (model.token + longest * model.attention)
    room = int(0.9 * memory) - max(batches, consumer_bytes, reordered)

    def fits(block: range) -> bool:
        return len(block) == 1 or needed(model, block, sentences) <= room

    blocks = plan()
    assert [layer for block in blocks for layer in block] == list(range(n_layers))
    assert all(map(fits, blocks))
    for n_cuts in range(len(blocks) - 1):
        for cuts in combinations(range(1, n_layers), n_cuts):
            fewer = [range(*edges) for edges in pairwise([0, *cuts, n_layers])]
            assert not all(map(fits, fewer)), fewer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"), 3)


def test_the_weights_of_an_autoencoder_count(model: Path, tmp_path: Path) -> None:
    """Gigabytes in float32 beside a model in bfloat16."""
    save_file({"encoder.weight": torch.randn(5000, 32), "W_dec": torch.ones(9)}, tmp_path / "sae")
    autoencoder = SparseAutoencoder("sae", tmp_path / "sae", 1, "", "output", "relu", None, None)

    def settings(**more: Any) -> ActivationSettings:
        return ActivationSettings("bfloat16", "mlp", ["max"], include_hidden_states=False, **more)

    plain = measure_model(model, settings())
    measured = measure_model(model, settings(sparse_autoencoder=autoencoder))
    more = [
        layer.weights - before.weights
        for layer, before in zip(measured.layers, plain.layers, strict=True)
    ]
    assert more == [0, 5000 * 32 * 4, 0]
    assert [layer.pooled for layer in measured.layers] == [0, 5000 * 2, 0]
    assert measured.token - plain.token == 5000 * 4 * 4


def test_a_batch_has_room_for_attention_and_for_layers_wider_than_the_sites(model: Path) -> None:
    """Blocks without room for the scores of long sentences, or for an MLP whose neurons are not read."""
    settings = ActivationSettings("float32", ["self_attn.q_proj"], ["max"])
    shard = BlockShard(model, settings)
    config: Any = shard.model.config
    measured = measure_model(model, settings)
    tokens, longest = 600, 300
    scores = (tokens // longest) * config.num_attention_heads * longest**2
    # in the weights' dtype before and after the softmax, which is in float32
    assert measured.batch_bytes(tokens, longest) - tokens * measured.token == scores * 3 * 4
    assert measured.token == (8 * config.hidden_size + 4 * config.intermediate_size) * 4
    # one sentence may be longer than a batch
    assert measured.batch_bytes(10, longest) == measured.batch_bytes(longest, longest)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_blocks_are_smaller_after_a_worker_was_lost(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """A worker that the kernel kills for memory three times, with the same blocks."""
    settings = ActivationSettings("float32", "mlp", ["max"])
    request = PassRequest(make_texts(6), [], 64, tmp_path, None, LayerWriter(tmp_path))
    monkeypatch.setattr(prepared_pass, "free_memory", lambda _: 1 << 40)
    counts, memory = [], []
    for _ in range(4):
        prepared = PreparedPass(model, settings, request, device, 1)
        blocks = prepared.plan_blocks()
        assert [layer for block in blocks for layer in block] == list(range(3))
        counts.append(len(blocks))
        memory.append(prepared.spool_memory())
        request = request.halve_blocks()
    assert counts == [1, 2, 3, 3]
    # Hidden states may have been what was too much.
    assert memory[1] == memory[0] // 2
