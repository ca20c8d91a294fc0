"""Runs the routed experts of a mixture of experts one after another, so that their neurons can be read.

transformers keeps all experts of a layer in one tensor and multiplies them in one kernel. The weights,
the gate and the order of operations here are those of its own experts, whose output this equals within
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

ExpertHook = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]
"""Called with an expert's number, the indices of its tokens, (n,), and its neurons' values on them,
(n, width); a result other than None replaces the values."""

_FUSED = ("num_experts", "down_proj", "has_gate", "has_bias", "is_transposed")
"""Attributes of the experts that transformers can run in one kernel."""
_SCALED_INPUT = "Llama4TextExperts"


def is_experts(module: nn.Module) -> bool:
    """Whether a module is a layer's routed experts, in a layout that can be read."""
    if type(module).__name__ == _SCALED_INPUT:
        return True
    return all(hasattr(module, name) for name in _FUSED)


def expert_widths(module: Any) -> tuple[int, int]:
    """Number of experts, and of the neurons of each."""
    n_experts, *shape = module.down_proj.shape
    return n_experts, shape[0 if _is_transposed(module) else 1]


def expert_columns(module: Any, units: torch.Tensor) -> torch.Tensor:
    """Columns of the experts' down projections, (units, outputs), of units numbered over all experts."""
    _, width = expert_widths(module)
    experts, indices = units // width, units % width
    if _is_transposed(module):
        return module.down_proj[experts, indices]  # type: ignore[no-any-return]
    return module.down_proj[experts, :, indices]  # type: ignore[no-any-return]


def _is_transposed(module: Any) -> bool:
    return type(module).__name__ == _SCALED_INPUT or module.is_transposed


def add_expert_hook(module: Any, function: ExpertHook) -> None:
    """Call a function with the values of each expert's neurons."""
    run = _run_scaled if type(module).__name__ == _SCALED_INPUT else _run_fused
    module.forward = partial(run, module, function)


def _run_fused(
    self: Any,
    function: ExpertHook,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    if hidden_states.is_meta:
        return torch.empty_like(hidden_states)
    output = torch.zeros_like(hidden_states)
    for expert in sorted(set(top_k_index.flatten().tolist())):
        if expert >= self.num_experts:
            # Some routers choose no expert by a number beyond the last.
            continue
        tokens, slots = torch.where(top_k_index == expert)
        up = "gate_up_proj" if self.has_gate else "up_proj"
        product = _project(self, up, expert, hidden_states[tokens])
        values = self._apply_gate(product) if self.has_gate else self.act_fn(product)
        replaced = function(expert, tokens, values)
        values = values if replaced is None else replaced
        product = _project(self, "down_proj", expert, values)
        weighted = product * top_k_weights[tokens, slots, None]
        output = output.index_add(0, tokens, weighted.to(output.dtype))
    return output


def _project(self: Any, name: str, expert: int, inputs: torch.Tensor) -> torch.Tensor:
    weight = getattr(self, name)[expert]
    bias = getattr(self, f"{name}_bias")[expert] if self.has_bias else None
    return linear(inputs.to(weight.dtype), weight.T if self.is_transposed else weight, bias)


def _run_scaled(self: Any, function: ExpertHook, hidden_states: torch.Tensor) -> torch.Tensor:
    """Experts that get every token, multiplied by the router's weight, which is 0 if it is not routed
    there (Llama 4)."""
    inputs = hidden_states.view(self.num_experts, -1, hidden_states.shape[-1])
    if hidden_states.is_meta:
        return torch.empty_like(hidden_states)
    tokens = torch.arange(inputs.shape[1], device=inputs.device)
    outputs = []
    for expert in range(self.num_experts):
        gate, up = (inputs[expert] @ self.gate_up_proj[expert]).chunk(2, dim=-1)
        values = up * self.act_fn(gate)
        replaced = function(expert, tokens, values)
        values = values if replaced is None else replaced
        outputs.append(values @ self.down_proj[expert])
    return torch.cat(outputs)
