"""Finds the MLP of a layer by the names that transformers' architectures give to its modules.

Widths alone do not tell an MLP from a mixer or a projection of per-layer inputs, so nothing is inferred
from them: a layer whose MLP has other names is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers.pytorch_utils import Conv1D

from cluster.models.experts import expert_widths, is_experts
from storage.errors import UserError

Linear = nn.Linear | Conv1D

_BLOCKS = r"(mlp|feed_forward|ffn|mlp_block|mixer|block_sparse_moe|shared_transf(ormer)?\.feed_forward)"
"""Paths of MLPs in a layer. `mixer` is any kind of block of Nemotron-H."""

_UP_PROJECTIONS: dict[str, tuple[str, ...]] = {
    "down_proj": ("up_proj", "gate_up_proj"),
    "fc2": ("fc1",),
    "c_proj": ("c_fc",),
    "dense_4h_to_h": ("dense_h_to_4h",),
    "fc_out": ("fc_in",),
    "w2": ("w1",),
    "Wo": ("Wi",),
    "proj_down": ("proj_up",),
    "output_linear": ("input_linear",),
    "2": ("0",),
    "value": ("key",),
}
"""Names of the up projections, by that of the down projection in the same module."""

_IN_LAYER: dict[str, tuple[str, ...]] = {"fc2": ("fc1",), "output.dense": ("intermediate.dense",)}
"""The same where the projections have no module of their own in the layer."""

_SHARED = rf"({_BLOCKS}\.(shared_expert|shared_experts|shared_mlp)|shared_mlp)"
_ROUTERS = ("gate", "router", "gate.wg", "router.gate", "router.layer", "router.proj")
_MIXTURE_PARTS = r"(\w+\.)?(gate|router|shared_expert_gate|fc1_latent_proj|fc2_latent_proj)(\..+)?"
"""Modules of a mixture of experts that are not neurons."""

_WITHOUT_MLP = (
    "MambaBlock",
    "Mamba2Block",
    "FalconMambaBlock",
    "NemotronHBlock",
    "ZambaMambaDecoderLayer",
    "Zamba2MambaDecoderLayer",
)
"""Classes of layers that may have no MLP."""


@dataclass(frozen=True)
class Mlp:
    """A layer's MLP, as paths of modules: down projections of the dense part and of the shared experts,
    the routed experts, and the router if its logits are the product with one matrix."""

    dense: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    experts: str | None = None
    router: str | None = None


def find_mlp(layer: nn.Module, number: int, architecture: str) -> Mlp:
    """Find the MLP of a layer; empty if the layer has none.

    Raises UserError, with the names of the linear modules, if the layer may have an MLP that is not
    known, or several.
    """
    linears = linear_modules(layer)
    experts = [name for name, module in layer.named_modules() if is_experts(module)]
    downs = [name for name in linears if _is_down_projection(name, linears)]
    shared = [name for name in downs if re.fullmatch(_SHARED, name.rpartition(".")[0])]
    dense = [name for name in downs if name not in shared]
    if shared and not experts:
        # Granite's hybrid without experts
        dense, shared = dense + shared, []
    problem = None
    if len(dense) > 1 or len(shared) > 1 or len(experts) > 1:
        problem = f"several MLPs ({', '.join(dense + shared + experts)})"
    elif not downs and not experts and type(layer).__name__ not in _WITHOUT_MLP:
        problem = "no MLP with known names"
    elif unread := _unread_modules(layer, downs + experts):
        problem = f"an MLP with an unknown part ({unread[0]})"
    if problem:
        raise UserError(
            f"layer {number} of {architecture} has {problem}; select sites by regular expressions; its "
            f"linear modules are {', '.join(linears) or 'none'}"
        )
    if not experts:
        return Mlp(dense)
    return Mlp(dense, shared, experts[0], _find_router(layer, experts[0]))


def linear_modules(layer: nn.Module) -> dict[str, Linear]:
    """The linear modules of a layer, by path."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, Linear)}


def in_out_features(module: Linear) -> tuple[int, int]:
    """Input and output width of a linear module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.nf


def up_projections(name: str, linears: Mapping[str, Linear]) -> list[str]:
    """Paths of the projections that give the input of a down projection."""
    return [up for up in _candidates(name) if up in linears]


def _candidates(name: str) -> list[str]:
    block, _, last = name.rpartition(".")
    ups: tuple[str, ...] = _IN_LAYER.get(name, ())
    if re.fullmatch(f"{_BLOCKS}|{_SHARED}", block):
        ups = _UP_PROJECTIONS.get(last, ())
    return [f"{block}.{up}" if block and name not in _IN_LAYER else up for up in ups]


def _is_down_projection(name: str, linears: Mapping[str, Linear]) -> bool:
    width, out = in_out_features(linears[name])
    return any(
        in_out_features(linears[up])[0] == out and in_out_features(linears[up])[1] in (width, 2 * width)
        for up in up_projections(name, linears)
    )


def _find_router(layer: nn.Module, experts: str) -> str | None:
    block = experts.rpartition(".")[0]
    n_experts, _ = expert_widths(layer.get_submodule(experts))
    for name in _ROUTERS:
        path = f"{block}.{name}" if block else name
        try:
            weight = getattr(layer.get_submodule(path), "weight", None)
        except AttributeError:
            continue
        if weight is not None and weight.dim() == 2 and weight.shape[0] == n_experts:
            return path
    return None


def _unread_modules(layer: nn.Module, read: list[str]) -> list[str]:
    """Modules with matrices, in the blocks of the given modules, that are none of the known parts."""
    blocks = {match[0] for name in read if (match := re.match(_BLOCKS, name))}
    known = [name for down in read for name in (down, *_candidates(down), *_gates(down))]
    matrices = [path.rpartition(".")[0] for path, p in layer.named_parameters() if p.dim() > 1]
    return [
        path
        for path in matrices
        if any(path.startswith(f"{block}.") for block in blocks)
        and not any(f"{path}.".startswith(f"{name}.") for name in known)
        and not re.fullmatch(_MIXTURE_PARTS, path)
    ]


def _gates(down: str) -> list[str]:
    """Paths that the gates of a gated MLP may have, and Zamba2's adapters of its up projection."""
    block = down.rpartition(".")[0]
    names = ("gate_proj", "w3", "proj_up_gate", "receptance", "gate_up_proj_adapter_list")
    return [f"{block}.{name}" for name in names]
