"""A packed layer that gave other bits than torch's own would make each activation depend on how it was
loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cluster.packed import PackedLinear, is_packed, pack

pytestmark = pytest.mark.skipif(
    not is_packed(torch.bfloat16, torch.device("cpu")),
    reason="this processor does not multiply bfloat16",
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [576, 33, 1])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 7), (2, 250), (5, 411)])
def test_a_packed_layer_gives_the_same_bits(bias: bool, width: int, tokens: tuple[int, int]) -> None:
    torch.manual_seed(width)
    plain = nn.Sequential(nn.Linear(64, width, bias, dtype=torch.bfloat16))
    packed = copy.deepcopy(plain)
    pack(packed)
    given = torch.randn(*tokens, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(packed(given), plain(given))


def test_who_looks_at_its_weights_sees_them() -> None:
    layer = nn.Linear(64, 48, dtype=torch.bfloat16)
    weight = layer.weight.detach().clone()
    pack(layer)
    assert type(layer) is PackedLinear
    assert torch.equal(layer.weight, weight)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_what_computes_in_its_own_way_is_left_alone() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(4, 4), nn.LayerNorm(4))
    pack(model)
    assert type(model[0]) is Own
