"""Linear layers whose weights are stored in the layout of the CPU's bfloat16 matrix kernels.

Otherwise each product reorders its weights, about 5% of its time for batches of a few hundred tokens.
"""

from __future__ import annotations

import ctypes

import torch
from torch import nn

_ops = torch.ops.mkldnn
_EXPECTED_ROWS = 512
"""Rows that the layout is optimized for; the values do not depend on it."""

_release_memory = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)


class PackedLinear(nn.Linear):
    """A linear layer that is bit-identical to torch's but has no gradients."""

    _packed: torch.Tensor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dtype != torch.bfloat16 or not (self.bias is None or inputs.is_contiguous()):
            # For non-contiguous inputs torch rounds before adding the bias; it also converts or rejects
            # other dtypes.
            return super().forward(inputs)
        product: torch.Tensor = _ops._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")
        return product

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """A copy of the unpacked weights, for models that access them."""
        return self._packed.to_dense()


def supports_packing(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether linear layers of this dtype can be packed: bfloat16 on a CPU with bfloat16 kernels."""
    return (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(_ops._is_mkldnn_bf16_supported())
    )


def pack(model: nn.Module) -> None:
    """Pack a model's bfloat16 linear layers in place, one at a time to limit peak memory."""
    for module in model.modules():
        if type(module) is nn.Linear and all(p.dtype == torch.bfloat16 for p in module.parameters()):
            packed = _ops._reorder_linear_weight(module.weight.detach(), _EXPECTED_ROWS)
            # An empty parameter remains so that the model still has a dtype and a device.
            module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
            module.__class__ = PackedLinear
            module._packed = packed
            # Return freed memory to the system, or the next allocation may fail.
            _release_memory(0)
