"""If packed layers were not bit-identical to torch's, activations would depend on the loading path."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from cluster.models.packed_linear import PackedLinear, pack, supports_packing

pytestmark = pytest.mark.skipif(
    not supports_packing(torch.bfloat16, torch.device("cpu")),
    reason="this CPU has no bfloat16 kernels",
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [576, 33, 1])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 7), (2, 250), (5, 411)])
def test_packing_is_bit_identical(bias: bool, width: int, tokens: tuple[int, int]) -> None:
    """Kernels could differ by shape."""
    torch.manual_seed(width)
    plain = nn.Sequential(nn.Linear(64, width, bias, dtype=torch.bfloat16))
    packed = copy.deepcopy(plain)
    pack(packed)
    inputs = torch.randn(*tokens, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(packed(inputs), plain(inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "arrange",
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
def test_packing_is_bit_identical_for_every_memory_layout(
    bias: bool, arrange: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """torch adds a bias before or after rounding, depending on the layout; inputs may be empty."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 48, bias, dtype=torch.bfloat16))
    packed = copy.deepcopy(plain)
    pack(packed)
    x = arrange(torch.randn(5, 17, 64, dtype=torch.bfloat16))
    with torch.inference_mode():
        assert torch.equal(packed(x), plain(x))


def test_other_dtypes_behave_as_in_torch() -> None:
    """Packing could change float32 layers, autocast or torch's error for mismatched dtypes."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16))
    plain = copy.deepcopy(model[1])
    pack(model)
    assert type(model[0]) is nn.Linear
    inputs = torch.randn(3, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model[1](inputs), plain(inputs))
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        model[1](inputs)


def test_tied_layers_are_packed() -> None:
    """Packing one of two tied layers leaves an empty parameter for the other."""
    first, second = (nn.Linear(8, 8, dtype=torch.bfloat16) for _ in range(2))
    second.weight = first.weight
    plain = nn.Sequential(first, first, second)
    packed = copy.deepcopy(plain)
    pack(packed)
    inputs = torch.randn(3, 8, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(packed(inputs), plain(inputs))


def test_weights_of_packed_layers_are_readable() -> None:
    """Models that access `weight` directly would see an empty tensor."""
    layer = nn.Linear(64, 48, dtype=torch.bfloat16)
    weight = layer.weight.detach().clone()
    pack(layer)
    assert type(layer) is PackedLinear
    assert torch.equal(layer.weight, weight)


def test_a_packed_model_still_has_a_dtype() -> None:
    """OLMo has no parameters outside linear layers; measuring sites needs their dtype and device."""
    model = nn.Sequential(nn.Linear(64, 48, bias=False, dtype=torch.bfloat16))
    pack(model)
    (parameter,) = model.parameters()
    assert (parameter.dtype, parameter.device, parameter.nbytes) == (
        torch.bfloat16,
        torch.device("cpu"),
        0,
    )


def test_subclasses_are_not_packed() -> None:
    """A subclass may compute something else."""

    class Custom(nn.Linear):
        pass

    model = nn.Sequential(Custom(4, 4, dtype=torch.bfloat16), nn.LayerNorm(4))
    pack(model)
    assert type(model[0]) is Custom
