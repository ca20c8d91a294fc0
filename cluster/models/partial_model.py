"""Loads a contiguous range of a model's layers using only transformers' own loading code.

The architecture's class is instantiated without memory, layers outside the range are removed, and
transformers loads what remains, so that it handles the names of weights and their conversion. A layer
keeps its number as its name and therefore matches its own weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from cluster.environment import environment_variable
from cluster.models.checkpoint import Backend, layer_filter, open_tensors
from cluster.models.packed_linear import pack
from cluster.models.weights import read_config
from storage.errors import UserError

_SEQUENTIAL_LOAD = "HF_DEACTIVATE_ASYNC_LOAD"


def find_layers(model: nn.Module) -> nn.ModuleList:
    """Find the layers of a language model: the module list whose length matches its configuration.

    Raises UserError unless exactly one list matches.
    """
    n_layers = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    matches = [layers for layers in lists if len(layers) == n_layers]
    if len(matches) != 1:
        raise UserError(
            f"{type(model).__name__}: expected one list of {n_layers} layers, got {len(matches)}"
        )
    return matches[0]


def count_layers(folder: Path, trust_remote_code: bool = False) -> int:
    """Number of layers of the model in a folder."""
    return int(read_config(folder, trust_remote_code).get_text_config().num_hidden_layers)


def shard_layers(folder: Path, shard: int, n_shards: int, trust_remote_code: bool = False) -> range:
    """Layers of one of `n_shards` contiguous shards of nearly equal size."""
    n_layers = count_layers(folder, trust_remote_code)
    if n_shards > n_layers:
        raise UserError(f"{folder}: has {n_layers} layers, too few for {n_shards} shards")
    return range(n_layers * shard // n_shards, n_layers * (shard + 1) // n_shards)


def load_layers(
    folder: Path,
    layers: range,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    with_head: bool = False,
    pack_weights: bool = False,
) -> tuple[Any, dict[int, nn.Module]]:
    """Load the model with only the layers of the range; also return these layers by number.

    Loads the model's body, or, if `with_head`, the causal language model. Leaves out the input embedding
    unless the range starts at layer 0 or the head shares it.

    Raises:
        UserError: for a range outside the model, unreadable files, or missing weights (which
            transformers would initialize at random).
    """
    config = read_config(folder, trust_remote_code)
    n_layers = config.get_text_config().num_hidden_layers
    if not 0 <= layers.start < layers.stop <= n_layers:
        raise UserError(
            f"{folder}: has layers 0 to {n_layers - 1}; requested {layers.start} to {layers.stop - 1}"
        )
    has_embedding = layers.start == 0 or (with_head and config.get_text_config().tie_word_embeddings)
    full_class = _model_class(config, folder, trust_remote_code, with_head)
    partial_class = _make_partial_class(full_class, layers, has_embedding)
    # Tensors that are used unchanged need no copy; the others are read and converted one by one.
    backend: Backend = "mmap" if config.dtype == dtype and not pack_weights else "pread"
    options = {"config": config, "dtype": dtype, "output_loading_info": True}
    model, missing = _load(partial_class, folder, layer_filter(layers), backend, **options)
    if missing:
        # The numbers in this model's tensor names may not be layer numbers: read all tensors.
        model, missing = _load(partial_class, folder, lambda _: True, backend, **options)
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} weights are missing or have the wrong shape; first: {missing[0]}"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UserError(f"{folder}: {name} was not loaded")
    if pack_weights:
        pack(model)
    return model, model.numbered_layers


def _load(
    partial_class: Any, folder: Path, keep: Callable[[str], bool], backend: Backend, **options: Any
) -> tuple[Any, list[str]]:
    """Load the tensors whose names `keep` accepts; also return the names of missing weights."""
    try:
        if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            model, report = partial_class.from_pretrained(folder, use_safetensors=False, **options)
        else:
            tensors = open_tensors(folder, keep, backend)
            # transformers' loader threads would otherwise hold many unconverted tensors in memory.
            with environment_variable(_SEQUENTIAL_LOAD, "1"):
                model, report = partial_class.from_pretrained(None, state_dict=tensors, **options)
    except UnpicklingError as error:
        raise UserError(f"{folder}: unsafe pickle content (more than weights); not loaded") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        advice = "; use more shards" if "allocate memory" in str(error) else ""
        raise UserError(f"{folder}: cannot be loaded: {error}".splitlines()[0] + advice) from error
    return model, sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})


def _model_class(config: Any, folder: Path, trust_remote_code: bool, with_head: bool) -> Any:
    """Class of the model, with or without its head, from transformers or from the folder's code."""
    model_classes = MODEL_FOR_CAUSAL_LM_MAPPING if with_head else MODEL_MAPPING
    if type(config) in model_classes:
        return model_classes[type(config)]
    auto_map = getattr(config, "auto_map", None) or {}
    name, part = ("AutoModelForCausalLM", "head") if with_head else ("AutoModel", "body")
    if not trust_remote_code or name not in auto_map:
        raise UserError(f"{folder}: {type(config).__name__} has no model {part} ({name}) to load")
    return get_class_from_dynamic_module(auto_map[name], folder)


def _make_partial_class(full_class: Any, layers: range, has_embedding: bool) -> Any:
    """Subclass whose instances have only the layers of the range, and optionally no input embedding."""

    class Partial(full_class):  # type: ignore[misc]
        def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(config, *arguments, **options)
            modules = find_layers(self)
            n_layers = len(modules)
            for number in set(range(n_layers)).difference(layers):
                del modules._modules[str(number)]
            text_config = self.config.get_text_config()
            for name, value in vars(text_config).items():
                # Settings per layer, such as attention types, must match the remaining layers.
                if "layer" in name and isinstance(value, list | tuple) and len(value) == n_layers:
                    setattr(text_config, name, value[layers.start : layers.stop])
            text_config.num_hidden_layers = len(layers)
            # Not as submodules, which would give the layers a second name.
            self.__dict__["numbered_layers"] = dict(zip(layers, modules, strict=True))
            if not has_embedding:
                self.set_input_embeddings(nn.Identity())

    # transformers looks up weight renamings by the name of its own class.
    Partial.__name__ = Partial.__qualname__ = full_class.__name__
    Partial.__module__ = full_class.__module__
    return Partial
