"""Proves on a few tokens that the sites of an MLP are its neurons, before anything is read from them.

Modules are found by name, so a new architecture could give a known name to another module. In one layer
of each kind, values are changed and the effects are followed: an up projection must change one neuron of
one token, a neuron the output of the down projection by its column of weights, and thereby the layer's
output in that sentence alone. Routed experts must give the same output as in transformers' own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from cluster.models.experts import add_expert_hook
from cluster.models.hooks import Side, add_hook, extract_hidden_state
from cluster.models.mlp import linear_modules, up_projections
from cluster.models.sites import PROBE_SHAPE, Site, run_probe
from storage.errors import UserError
from storage.store.activation_files import MLP_EXPERTS, MLP_HIDDEN, MLP_SHARED

_Edit = Callable[[torch.Tensor], torch.Tensor]
_Point = tuple[str, Side]
"""Path of a module, and its input or output."""

_TOLERANCE = 0.05
"""Share of the largest change, above the rounding of bfloat16."""


def prove_sites(model: Any, layers: Mapping[int, nn.Module], sites: Iterable[Site]) -> None:
    """Prove the neurons of the MLPs among the sites, in one layer of each kind.

    Raises UserError, naming the site, if one is not the neurons of an MLP.
    """
    by_kind: dict[Any, list[Site]] = {}
    for site in sites:
        if site.name in (MLP_HIDDEN, MLP_SHARED, MLP_EXPERTS):
            kind = (type(layers[site.layer]), site.name, site.module)
            by_kind.setdefault(kind, []).append(site)
    by_layer: dict[int, list[Site]] = {}
    for same in by_kind.values():
        by_layer.setdefault(same[0].layer, []).append(same[0])
    architecture = type(model).__name__
    proven = set()
    with ExitStack() as hooks:
        for number, of_layer in by_layer.items():

            def prove(
                layer: nn.Module, args: Any, kwargs: Any, _: Any, of_layer: list[Site] = of_layer
            ) -> None:
                if of_layer[0].layer in proven:
                    return
                proven.add(of_layer[0].layer)
                for site in of_layer:
                    _LayerProof(layer, args, kwargs, site, architecture).run()

            hook = layers[number].register_forward_hook(prove, with_kwargs=True)
            hooks.callback(hook.remove)
        if by_layer:
            run_probe(model)
    for number in set(by_layer).difference(proven):
        raise UserError(f"{by_layer[number][0]} of {architecture}: its layer does not run on text")


def prove_causality(model: Any, layers: Mapping[int, nn.Module]) -> None:
    """Raise UserError if hidden states depend on later tokens, as in an encoder."""
    runs: list[list[torch.Tensor]] = [[], []]
    for states, is_varied in zip(runs, (False, True), strict=True):
        with ExitStack() as hooks:
            for layer in layers.values():
                hook = add_hook(layer, "output", partial(_append, states))
                hooks.callback(hook.remove)
            run_probe(model, is_varied)
    for state, varied in zip(*runs, strict=True):
        first, difference = state[..., 0, :], (state - varied)[..., 0, :]
        if difference.abs().max() > _TOLERANCE * first.abs().max():
            raise UserError(
                f"{type(model).__name__} reads later tokens too, so it is no causal language model; if "
                "it is one, set is_decoder in its configuration"
            )


def _append(states: list[torch.Tensor], values: Any) -> None:
    hidden = extract_hidden_state(values)
    if hidden is not None:
        states.append(hidden.float())


class _LayerProof:
    """Runs a layer again on the same arguments, with values of its modules changed."""

    def __init__(self, layer: nn.Module, args: Any, kwargs: Any, site: Site, architecture: str) -> None:
        self._layer, self._args, self._kwargs = layer, args, kwargs
        self._site, self._architecture = site, architecture

    def run(self) -> None:
        if self._site.part == "experts":
            self._prove_experts()
            return
        down = self._site.module
        linears = linear_modules(self._layer)
        ups = up_projections(down, linears)
        base = self._replay({}, down, *ups)
        if (down, "input") not in base:
            self._reject("its module does not run")
        neurons, output = base[down, "input"], base[down, "output"]
        # A neuron that no gate holds at 0, on the first token of a sentence, which all others could see.
        first, unit = divmod(int(neurons[:: PROBE_SHAPE[1]].abs().argmax()), neurons.shape[1])
        token = first * PROBE_SHAPE[1]
        others = torch.arange(len(neurons)) != token
        for up in ups:
            change = self._replay(
                {(up, "output"): _add(token, unit, _size(base[up, "output"]))}, up, down
            )
            changed = _changed(change[down, "input"], neurons)
            # All neurons are 0 where an architecture initializes the gate with zeros.
            if changed[others].any() or (neurons.any() and not changed[token].any()):
                self._reject(f"{up} does not change it for its own token alone")
            if changed[token].sum() > 1 and not self._has_norm(down):
                self._reject(f"an output of {up} changes several of its units")
        size = _size(neurons)
        change = self._replay({(down, "input"): _add(token, unit, size)}, down)
        effect = change[down, "output"][token] - output[token]
        weight = linears[down].weight.detach().float()
        column = (weight[:, unit] if isinstance(linears[down], nn.Linear) else weight[unit]) * size
        error = (effect - column).abs().max()
        if error > _TOLERANCE * (column.abs().max() + output[token].abs().max()):
            self._reject(f"{down} does not multiply it by its weights")
        # (residual streams, sentences, tokens x units); a mixer after the MLP may reach later tokens.
        shape = (-1, PROBE_SHAPE[0], PROBE_SHAPE[1] * change["", "output"].shape[-1])
        changed = _changed(change["", "output"], base["", "output"]).reshape(shape).any(2).any(0)
        # Some models begin their training with down projections of zeros.
        has_effect = bool(changed[first]) or not column.any()
        if not has_effect or changed.sum() > changed[first]:
            self._reject("it does not change the layer's output in its sentence alone")

    def _prove_experts(self) -> None:
        experts: Any = self._layer.get_submodule(self._site.module)
        own = self._replay({})["", "output"]
        add_expert_hook(experts, lambda *_: None)
        try:
            read = self._replay({})["", "output"]
        finally:
            del experts.forward
        if (own - read).abs().max() > _TOLERANCE * own.abs().max():
            self._reject("reading the experts one by one changes their output")

    def _replay(self, edits: Mapping[_Point, _Edit], *paths: str) -> dict[_Point, torch.Tensor]:
        """Values, (tokens, width), at the input and output of some modules, and at the layer's output,
        when some of them are changed."""
        values: dict[_Point, torch.Tensor] = {}

        def change(point: _Point, given: Any) -> Any:
            hidden = extract_hidden_state(given)
            if hidden is None:
                return None
            flat = hidden.reshape(-1, hidden.shape[-1])
            if point in edits:
                flat = edits[point](flat)
            values[point] = flat.float()
            if point not in edits:
                return None
            edited = flat.reshape(hidden.shape)
            return (edited, *given[1:]) if isinstance(given, tuple) else edited

        points: list[_Point] = [(path, side) for path in paths for side in get_args(Side)]
        with ExitStack() as hooks:
            for path, side in (*points, ("", "output")):
                module = self._layer.get_submodule(path)
                hooks.callback(add_hook(module, side, partial(change, (path, side))).remove)
            self._layer(*self._args, **self._kwargs)
        return values

    def _has_norm(self, down: str) -> bool:
        block = self._layer.get_submodule(down.rpartition(".")[0])
        return any("norm" in name.lower() for name, _ in block.named_children())

    def _reject(self, reason: str) -> None:
        raise UserError(
            f"{self._site} of {self._architecture} ({self._site.module}) is not an MLP's neurons: "
            f"{reason}; select sites by regular expressions"
        )


def _add(token: int, unit: int, size: float) -> _Edit:
    """Change a unit of a token."""

    def edit(values: torch.Tensor) -> torch.Tensor:
        edited = values.clone()
        edited[token, unit] += size
        return edited

    return edit


def _size(values: torch.Tensor) -> float:
    """A change that is large beside the values."""
    return float(1 + 4 * values.abs().max())


def _changed(values: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Which values, (tokens, units), differ by more than rounding."""
    difference = (values - base).abs()
    return difference > 0.01 * difference.max()
