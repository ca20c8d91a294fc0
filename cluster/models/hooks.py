"""Hooks on the modules of a model: what they read, and how a result replaces it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

Side = Literal["input", "output"]


def add_hook(module: nn.Module, side: Side, function: Callable[[Any], Any]) -> RemovableHandle:
    """Call a function with each input or output of a module; a result other than None replaces it."""
    register = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
    # The last argument of a hook is the module's input or output.
    return register(lambda *arguments: function(arguments[-1]))


def add_logits_hook(router: Any, function: Callable[[torch.Tensor], Any]) -> RemovableHandle:
    """Call a function with the logits of a router, (tokens, experts), in float32: the product of its
    input with its matrix, which is in its output at a place that depends on the architecture."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        bias = getattr(router, "bias", None)
        offset = None if bias is None else bias.float()
        function(linear(inputs[0].float(), router.weight.float(), offset))

    return router.register_forward_pre_hook(hook)  # type: ignore[no-any-return]


def extract_hidden_state(values: Any) -> torch.Tensor | None:
    """Hidden state in the positional inputs or the output of a module; None if there is none."""
    if isinstance(values, tuple | list):
        values = values[0] if values else None
    return values if isinstance(values, torch.Tensor) else None


def replace_hidden_state(
    hidden: torch.Tensor, inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a layer with its hidden state replaced."""
    if inputs:
        return (hidden, *inputs[1:]), keywords
    return inputs, {**keywords, "hidden_states": hidden}
