"""Finds the sites of a model at which activations are recorded, by name or by regular expression."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import PretrainedConfig

from cluster.models.architecture import find_layers, model_class
from cluster.models.experts import add_expert_hook, expert_widths, is_experts
from cluster.models.hooks import Side, add_hook, extract_hidden_state
from cluster.models.mlp import find_mlp, in_out_features, linear_modules
from cluster.models.model_config import errors_of_libraries
from storage.errors import NeuralignError, UserError, describe_error
from storage.store.activation_files import MLP_EXPERTS, MLP_HIDDEN, MLP_ROUTER, MLP_SHARED

Part = Side | Literal["experts", "logits"]
"""What is read of a module: its input or output, the neurons of the experts in it, or the logits of a
router."""

_HookPoint = tuple[int, str, Side]
"""Layer number, path of a module in the layer, and side of the module."""

_MLP_NEURONS = (MLP_HIDDEN, MLP_SHARED, MLP_EXPERTS)
_NAMED_SITES = (*_MLP_NEURONS, MLP_ROUTER)

_RESIDUAL_ARGUMENTS = {"residual", "input_tensor"}
"""What transformers calls the argument of a module that adds the residual stream to its output."""

_DEFAULT_SIDE: Side = "output"

PROBE_SHAPE = (3, 2)
"""Sentences and tokens of the dummy input that widths are measured with."""


@dataclass(frozen=True)
class Site:
    """Values of one module in one layer; `module` is its path in the layer."""

    layer: int
    name: str
    module: str
    part: Part
    width: int

    def __str__(self) -> str:
        return f"L{self.layer:02d}.{self.name}"


@dataclass(frozen=True)
class ModelSites:
    """The selected sites of a model, its number of layers, the width of its residual stream, and notes
    on what has no site."""

    sites: list[Site]
    n_layers: int
    hidden_size: int
    notes: list[str]


def find_sites(
    model: nn.Module,
    layers: Mapping[int, nn.Module],
    selection: str | Sequence[str],
    is_complete: bool = True,
) -> list[Site]:
    """Find the selected sites of a text model's layers, which are keyed by layer number.

    Unless these are all layers (`is_complete`), there may be none.

    `selection` is one of
    - `mlp`: the neurons of the MLPs: `mlp.hidden`, the input of the down projection; in a mixture of
      experts, `mlp.experts` and `mlp.shared`
    - `linears`: outputs of all linear modules that run (the units of the papers), and `mlp.experts`
    - a list of these names or `mlp.router`, and of regular expressions that match the full path of a
      module in a layer, each optionally followed by `:input` or `:output` (the default)

    Raises:
        UserError: if there are no sites, if the MLP of a layer is not known, or if a matched module does
            not give one vector per token, or adds the residual stream to its output.
    """
    if selection == "linears":
        return _find_linears(model, layers)
    sites: list[Site] = []
    mlp_sites: list[Site] = []
    entries = _MLP_NEURONS if selection == "mlp" else selection
    if set(entries).intersection(_NAMED_SITES):
        architecture = type(model).__name__
        for number, layer in layers.items():
            mlp_sites += _find_mlp_sites(number, layer, architecture)
    for entry in entries:
        if entry in _NAMED_SITES:
            found = [site for site in mlp_sites if site.name == entry]
        else:
            found = _find_matches(model, layers, entry)
        if is_complete and not found and selection != "mlp":
            raise _no_site_error(model, layers, repr(entry))
        sites += found
    if is_complete and not sites:
        raise _no_site_error(model, layers, "an MLP")
    # By layer, as without shards.
    return sorted(dict.fromkeys(sites), key=lambda site: site.layer)


def find_sites_from_config(
    config: PretrainedConfig, selection: str | Sequence[str], trust_remote_code: bool = False
) -> ModelSites:
    """Find the sites of a model that is not loaded. Raises UserError as `find_sites`."""
    model, layers = find_layers(build_without_memory(config, trust_remote_code))
    _replace_code_that_needs_values(model)
    check_hidden_states(model, dict(enumerate(layers)))
    sites = find_sites(model, dict(enumerate(layers)), selection)
    notes = _describe(sites, layers, selection)
    return ModelSites(sites, len(layers), int(config.get_text_config().hidden_size), notes)


def _replace_code_that_needs_values(model: nn.Module) -> None:
    """Let a model run on the meta device: without kernels for experts, and without rotary scalings that
    depend on the length of a text."""
    for module in model.modules():
        if is_experts(module):
            add_expert_hook(module, lambda *_: None)
        if isinstance(rope := getattr(module, "rope_type", None), str | dict):
            module.rope_type = dict.fromkeys(rope, "default") if isinstance(rope, dict) else "default"  # type: ignore[assignment]


def count_layer_weights(config: PretrainedConfig) -> int:
    """Number of weights in a model's layers, by which every token is multiplied."""
    _, layers = find_layers(build_without_memory(config))
    return sum(weights.numel() for weights in layers.parameters())


def build_without_memory(config: PretrainedConfig, trust_remote_code: bool = False) -> Any:
    """Build a causal language model from its configuration on the meta device.

    Raises UserError if that is not possible.
    """
    chosen, config = model_class(config, trust_remote_code, config.name_or_path)
    problem = f"{chosen.__name__} cannot be built from its configuration"
    with errors_of_libraries(problem), torch.device("meta"):
        return chosen._from_config(config)


def _find_mlp_sites(number: int, layer: nn.Module, architecture: str) -> list[Site]:
    mlp = find_mlp(layer, number, architecture)
    linears = linear_modules(layer)
    sites = [
        Site(number, name, path, "input", in_out_features(linears[path])[0])
        for name, paths in ((MLP_HIDDEN, mlp.dense), (MLP_SHARED, mlp.shared))
        for path in paths
    ]
    if mlp.experts is not None:
        experts = layer.get_submodule(mlp.experts)
        sites.append(_experts_site(number, mlp.experts, experts))
        if mlp.router is not None:
            n_experts, _ = expert_widths(experts)
            sites.append(Site(number, MLP_ROUTER, mlp.router, "logits", n_experts))
    return sites


def _experts_site(number: int, name: str, experts: nn.Module) -> Site:
    return Site(number, MLP_EXPERTS, name, "experts", math.prod(expert_widths(experts)))


def _find_linears(model: nn.Module, layers: Mapping[int, nn.Module]) -> list[Site]:
    points: list[_HookPoint] = [
        (number, name, "output") for number, layer in layers.items() for name in linear_modules(layer)
    ]
    sites = [
        Site(number, name, name, "output", width)
        for (number, name, _), width in _measure_widths(model, layers, points).items()
    ]
    return sites + [
        _experts_site(number, name, module)
        for number, layer in layers.items()
        for name, module in layer.named_modules()
        if is_experts(module)
    ]


def _describe(sites: Sequence[Site], layers: nn.ModuleList, selection: str | Sequence[str]) -> list[str]:
    """Notes on layers without sites, linear modules that are left out, and routed experts."""
    notes = []
    if missing := sorted(set(range(len(layers))).difference(site.layer for site in sites)):
        listed = ", ".join(map(str, missing))
        notes.append(f"{len(missing)} of {len(layers)} layers have none of the selected sites: {listed}")
    if selection == "linears":
        recorded = {(site.layer, site.module) for site in sites}
        left_out = [
            name
            for number, layer in enumerate(layers)
            for name in linear_modules(layer)
            if (number, name) not in recorded
        ]
        if left_out:
            listed = ", ".join(dict.fromkeys(left_out))
            notes.append(f"linear modules without one output per token are left out: {listed}")
    if any(site.name == MLP_EXPERTS for site in sites):
        notes.append("mlp.experts: a neuron is 0 on tokens that are not routed to its expert")
    return notes


def _find_matches(model: nn.Module, layers: Mapping[int, nn.Module], pattern: str) -> list[Site]:
    """The sites at the modules whose path matches a regular expression."""
    expression, side = pattern, _DEFAULT_SIDE
    for suffix in get_args(Side):
        if pattern.endswith(f":{suffix}"):
            expression, side = pattern.removesuffix(f":{suffix}"), suffix
    try:
        matches = re.compile(expression).fullmatch
    # deep nesting raises RecursionError, and a count that is too large OverflowError
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"sites: {pattern!r} is not a valid regular expression: {error}") from error
    points: list[_HookPoint] = [
        (number, name, side)
        for number, layer in layers.items()
        for name, _ in layer.named_modules()
        if name and matches(name)
    ]
    widths = _measure_widths(model, layers, points)
    for number, name, _ in points:
        problem = None
        if (number, name, side) not in widths:
            problem = "is not one vector per token; choose another module or its other side"
        elif side == "output" and _adds_residual(layers[number].get_submodule(name)):
            problem = "includes the residual stream; choose a module in it"
        if problem:
            raise UserError(
                f"sites: the {side} of {name} in layer {number} of {type(model).__name__} {problem}"
            )
    return [
        Site(number, f"{name}.{side}", name, side, width) for (number, name, _), width in widths.items()
    ]


def _adds_residual(module: nn.Module) -> bool:
    return bool(_RESIDUAL_ARGUMENTS.intersection(inspect.signature(module.forward).parameters))


def _no_site_error(model: nn.Module, layers: Mapping[int, nn.Module], entry: str) -> UserError:
    modules = (name for layer in layers.values() for name, _ in layer.named_modules() if name)
    return UserError(
        f"sites: no layer of {type(model).__name__} has {entry}; the modules of a layer are "
        f"{', '.join(dict.fromkeys(modules))}"
    )


def _measure_widths(
    model: nn.Module, layers: Mapping[int, nn.Module], points: Sequence[_HookPoint]
) -> dict[_HookPoint, int]:
    """Width at each hook point that gives one vector per token, by running a few tokens."""
    if not points:
        return {}
    leading = ([PROBE_SHAPE], [(math.prod(PROBE_SHAPE),)])
    return {
        # A module that runs several times in a pass has no one vector either.
        point: runs[0][-1]
        for point, runs in _record_shapes(model, layers, points).items()
        if [run[:-1] for run in runs] in leading
    }


def _record_shapes(
    model: nn.Module, layers: Mapping[int, nn.Module], points: Sequence[_HookPoint]
) -> dict[_HookPoint, list[torch.Size]]:
    """Shapes of the values at each hook point, one per run of the module, when a few tokens run."""
    shapes: dict[_HookPoint, list[torch.Size]] = {point: [] for point in points}

    def record(point: _HookPoint, values: Any) -> None:
        hidden = extract_hidden_state(values)
        shapes[point].append(torch.Size() if hidden is None else hidden.shape)

    with ExitStack() as hooks:
        for point in points:
            number, name, side = point
            module = layers[number].get_submodule(name)
            hooks.callback(add_hook(module, side, partial(record, point)).remove)
        run_probe(model)
    return shapes


def check_hidden_states(model: Any, layers: Mapping[int, nn.Module]) -> None:
    """Raise UserError unless every layer runs once and gives one hidden state per token, as wide as the
    residual stream."""
    points: list[_HookPoint] = [(number, "", "output") for number in layers]
    width = model.config.get_text_config().hidden_size
    # Gemma 3n has several residual streams, of which one is read.
    n_dimensions = 4 if hasattr(model.config, "altup_active_idx") else 3
    shapes = _record_shapes(model, layers, points)
    for (number, _, _), runs in shapes.items():
        if [run[-3:] for run in runs] != [(*PROBE_SHAPE, width)] or len(runs[0]) != n_dimensions:
            found = ", ".join(str(tuple(run)) for run in runs) or "nothing"
            sentences, tokens = PROBE_SHAPE
            raise UserError(
                f"{type(model).__name__}: layer {number} gives {found} for {sentences} sentences of "
                f"{tokens} tokens, not one hidden state of width {width} per token; such architectures "
                "are not supported"
            )


def run_probe(model: Any, is_varied: bool = False) -> None:
    """Run a few tokens through a text model, which may be on the meta device; if `is_varied`, with
    another last token in each sentence.

    Raises UserError if it cannot run.
    """
    weights = next(model.parameters())
    inputs = [_probe_ids(model, weights), _probe_embeddings(model, weights)]
    if is_varied:
        for tokens in inputs:
            for values in tokens.values():
                values[:, -1] = values[:, 0]
    with torch.inference_mode():
        if not weights.is_meta:
            try:
                model(**(inputs[0] or inputs[1]), use_cache=False)
            except (NeuralignError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                # Code of hundreds of architectures, with any settings.
                reason = describe_error(error)
                raise UserError(f"{type(model).__name__} cannot run: {reason}") from error
            return
        # Models build their mask from values, which meta tensors lack; most accept a ready-made one.
        sentences, length = PROBE_SHAPE
        mask = torch.zeros(sentences, 1, length, length, dtype=torch.bool, device="meta")
        problem: Exception | None = None
        for options in ({"attention_mask": mask}, {}):
            for tokens in inputs:
                try:
                    model(**tokens, **options, use_cache=False)
                except Exception as error:
                    problem = error
                else:
                    return
    raise UserError(
        f"{type(model).__name__} cannot run without weights, as planning needs: "
        f"{describe_error(problem) if problem else 'no inputs'}"
    )


def _probe_ids(model: Any, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        return {}
    # Not the first, which often pads and has an embedding of zeros, nor the last, which may be no text.
    ids = embedding.num_embeddings // 2 + torch.arange(math.prod(PROBE_SHAPE), device=weights.device)
    return {"input_ids": ids.reshape(PROBE_SHAPE)}


def _probe_embeddings(model: Any, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    embedding = model.get_input_embeddings()
    width = getattr(model, "embedding_width", None) or embedding.embedding_dim
    shape = (*PROBE_SHAPE, width)
    values = torch.linspace(-2, 2, math.prod(shape)).sin().reshape(shape)
    return {"inputs_embeds": values.to(weights.device, weights.dtype)}
