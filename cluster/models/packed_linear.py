"""Linear layers whose weights lie in memory as the processor's matrix products read them.

A product in bfloat16 otherwise lays its weights out anew each time, which takes some 5% of it for
batches of a few hundred tokens.
"""

from __future__ import annotations

import ctypes

import torch
from torch import nn

_ops = torch.ops.mkldnn
_TOKENS = 512
"""Rows that a product is expected to have; any other number gives the same values."""

_give_back_memory = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)


class PackedLinear(nn.Linear):
    """A linear layer that gives the values of torch's, bit for bit, but no gradients."""

    _packed: torch.Tensor

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        if given.dtype != torch.bfloat16 or not (self.bias is None or given.is_contiguous()):
            # torch rounds before it adds a bias to what does not lie side by side; and says what is
            # wrong with other types, or converts them
            return super().forward(given)
        product: torch.Tensor = _ops._linear_pointwise(given, self._packed, self.bias, "none", [], "")
        return product

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weights as they were: a copy, for models that look at them."""
        return self._packed.to_dense()


def is_packed(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether linear layers of this type are packed on this device: in bfloat16, on processors that
    multiply it."""
    return (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(_ops._is_mkldnn_bf16_supported())
    )


def pack(model: nn.Module) -> None:
    """Pack a model's linear layers, one after another, so that only one of them is there twice. Those
    that a model keeps in another type stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear and _in_bfloat16(module):
            packed = _ops._reorder_linear_weight(module.weight.detach(), _TOKENS)
            # an empty one is left, for who asks a model for the type and the device of its parameters
            module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
            module.__class__ = PackedLinear
            module._packed = packed
            # what was freed goes back to the system, or the next one may find no room in it
            _give_back_memory(0)


def _in_bfloat16(module: nn.Module) -> bool:
    return all(parameter.dtype == torch.bfloat16 for parameter in module.parameters())
