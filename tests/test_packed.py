"""A packed layer that gave other bits than torch's own would make each activation depend on how it was
loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from cluster.models.packed_linear import PackedLinear, is_packed, pack

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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        lambda x: x[0, 0],
        lambda x: x[:, :0],
        lambda x: x[:0],
        lambda x: x.unsqueeze(1),
        lambda x: x.transpose(0, 1),
        lambda x: x[..., :1].expand(-1, -1, 64),
        lambda x: torch.cat([x, x], dim=-1)[..., 1:65],
    ],
    ids=["a token", "no tokens", "no sentences", "4-D", "transposed", "expanded", "sliced"],
)
def test_it_does_so_however_its_input_lies_in_memory(
    bias: bool, given: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """torch adds a bias before or after rounding, as the input lies; experts may be given no token."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 48, bias, dtype=torch.bfloat16))
    packed = copy.deepcopy(plain)
    pack(packed)
    x = given(torch.randn(5, 17, 64, dtype=torch.bfloat16))
    with torch.inference_mode():
        assert torch.equal(packed(x), plain(x))


def test_other_types_are_torchs_business() -> None:
    """A layer that is kept in float32 stays one; autocast converts; else torch says what is wrong."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16))
    plain = copy.deepcopy(model[1])
    pack(model)
    assert type(model[0]) is nn.Linear
    given = torch.randn(3, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model[1](given), plain(given))
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        model[1](given)


def test_layers_that_share_their_weights_are_packed_too() -> None:
    first, second = (nn.Linear(8, 8, dtype=torch.bfloat16) for _ in range(2))
    second.weight = first.weight
    plain = nn.Sequential(first, first, second)
    packed = copy.deepcopy(plain)
    pack(packed)
    given = torch.randn(3, 8, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(packed(given), plain(given))


def test_who_looks_at_its_weights_sees_them() -> None:
    layer = nn.Linear(64, 48, dtype=torch.bfloat16)
    weight = layer.weight.detach().clone()
    pack(layer)
    assert type(layer) is PackedLinear
    assert torch.equal(layer.weight, weight)


def test_a_model_of_linear_layers_alone_still_tells_its_type() -> None:
    """OLMo has no parameters but those of linear layers; sites by name ask for their type."""
    model = nn.Sequential(nn.Linear(64, 48, bias=False, dtype=torch.bfloat16))
    pack(model)
    (left,) = model.parameters()
    assert (left.dtype, left.device, left.nbytes) == (torch.bfloat16, torch.device("cpu"), 0)


def test_what_computes_in_its_own_way_is_left_alone() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(4, 4, dtype=torch.bfloat16), nn.LayerNorm(4))
    pack(model)
    assert type(model[0]) is Own
