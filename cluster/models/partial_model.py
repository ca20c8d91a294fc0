"""Loads a contiguous range of a model's layers using only transformers' own loading code.

The architecture's class is instantiated without memory, layers outside the range are removed, and
transformers loads what remains, so that it handles the names of weights and their conversion. A layer
keeps its number as its name and therefore matches its own weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from cluster.environment import environment_variable
from cluster.models.architecture import count_layers as layers_in_config
from cluster.models.architecture import find_layers, model_class
from cluster.models.checkpoint import Backend, layer_filter, open_tensors
from cluster.models.divisible import check_divisible, check_shards
from cluster.models.model_config import errors_of_libraries, read_config
from cluster.models.packed_linear import pack
from storage.errors import UserError

_SEQUENTIAL_LOAD = "HF_DEACTIVATE_ASYNC_LOAD"


class _Removed(nn.Identity):
    """In the place of a module that this part of the model does not need."""

    def __init__(self) -> None:
        super().__init__()
        # Not a parameter: some architectures initialize the weight of a module by its name.
        self.__dict__["weight"] = torch.empty(1, 1)


@dataclass(frozen=True)
class PartialModel:
    """A model with some of its layers.

    `model` is the causal language model, `text_model` the part of it that runs without the head, and
    `layers` are the remaining layers by number.
    """

    model: Any
    text_model: Any
    layers: dict[int, nn.Module]


def count_layers(folder: Path, trust_remote_code: bool = False) -> int:
    """Number of layers of the model in a folder."""
    return layers_in_config(read_config(folder, trust_remote_code))


def shard_layers(folder: Path, shard: int, n_shards: int, trust_remote_code: bool = False) -> range:
    """Layers of one of `n_shards` contiguous shards of nearly equal size."""
    config = read_config(folder, trust_remote_code)
    try:
        check_shards(config, n_shards)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    n_layers = layers_in_config(config)
    return range(n_layers * shard // n_shards, n_layers * (shard + 1) // n_shards)


def load_layers(
    folder: Path,
    layers: range,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    with_head: bool = False,
    pack_weights: bool = False,
) -> PartialModel:
    """Load the model with only the layers of the range, and its head only if `with_head`.

    Leaves out the input embedding unless the range starts at layer 0 or the head shares it.

    Raises:
        UserError: for a range outside the model, an architecture that cannot be divided, unreadable
            files, or missing weights (which transformers would initialize at random).
    """
    config = read_config(folder, trust_remote_code)
    n_layers = layers_in_config(config)
    if not 0 <= layers.start < layers.stop <= n_layers:
        raise UserError(
            f"{folder}: has layers 0 to {n_layers - 1}; requested {layers.start} to {layers.stop - 1}"
        )
    if len(layers) < n_layers:
        try:
            check_divisible(config)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
    full_class, config = model_class(config, trust_remote_code, folder)
    partial_class = _make_partial_class(full_class, layers, with_head)
    # Tensors that are used unchanged need no copy; the others are read and converted one by one.
    backend: Backend = "mmap" if config.dtype == dtype and not pack_weights else "pread"
    options = {"config": config, "dtype": dtype, "output_loading_info": True}
    model, missing = _load(partial_class, folder, layer_filter(layers), backend, **options)
    if missing:
        # The numbers in this model's tensor names may not be layer numbers: read all tensors.
        model, missing = _load(partial_class, folder, lambda _: True, backend, **options)
    if missing:
        raise missing_error(folder, missing)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UserError(f"{folder}: {name} was not loaded")
    _limit_config(model.text_model.config, layers, n_layers)
    if pack_weights:
        pack(model)
    return PartialModel(model, model.text_model, model.numbered_layers)


def find_missing_weights(folder: Path, config: Any) -> list[str]:
    """Names of the weights that loading all layers without the head would miss, or find in another
    shape, by the headers of the files alone."""
    tensors = open_tensors(folder, lambda _: True, "mmap")
    state = {name: torch.empty(tensor.get_shape(), device="meta") for name, tensor in tensors.items()}
    full_class, config = model_class(config)
    partial_class = _make_partial_class(full_class, range(layers_in_config(config)), with_head=False)
    options = {"device_map": "meta", "ignore_mismatched_sizes": True, "output_loading_info": True}
    with errors_of_libraries(f"{folder}: cannot be built from config.json"):
        _, report = partial_class.from_pretrained(None, config=config, state_dict=state, **options)
    return missing_names(report)


def missing_error(folder: Path, names: list[str]) -> UserError:
    """Error for weights that a model's files lack."""
    return UserError(
        f"{folder}: {len(names)} weights are missing or have the wrong shape; first: {names[0]}"
    )


def missing_names(report: dict[str, Any]) -> list[str]:
    """Names of the weights that are missing or misshapen, from transformers' report of a loading."""
    return sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})


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
    return model, missing_names(report)


def _make_partial_class(full_class: Any, layers: range, with_head: bool) -> Any:
    """Subclass whose instances have only the layers of the range and, unless `with_head`, of the other
    modules only those of the text model: no head, no image or audio tower."""

    class Partial(full_class):  # type: ignore[misc]
        def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
            super().__init__(config, *arguments, **options)
            text_model: Any
            text_model, modules = find_layers(self)
            embedding = text_model.get_input_embeddings()
            text_model.__dict__["embedding_width"] = embedding.embedding_dim
            tied: dict[str, str] = getattr(self, "all_tied_weights_keys", {})
            parameters = dict(self.named_parameters(remove_duplicate=False))
            is_tied = any(parameters[name] is embedding.weight for keys in tied.items() for name in keys)
            for number in set(range(len(modules))).difference(layers):
                del modules._modules[str(number)]
            # Not as submodules, which would give the layers a second name.
            self.__dict__["numbered_layers"] = dict(zip(layers, modules, strict=True))
            self.__dict__["text_model"] = text_model
            if not with_head:
                _remove_others(self, text_model)
            if layers.start and not (with_head and is_tied):
                text_model.set_input_embeddings(_Removed())
            remaining = {name for name, _ in self.named_parameters(remove_duplicate=False)}
            self.all_tied_weights_keys = {
                target: source
                for target, source in tied.items()
                if remaining.issuperset((target, source))
            }

    # transformers looks up weight renamings by the name of its own class.
    Partial.__name__ = Partial.__qualname__ = full_class.__name__
    Partial.__module__ = full_class.__module__
    return Partial


def _limit_config(config: Any, layers: range, n_layers: int) -> None:
    """Let settings per layer, such as attention types, match the remaining layers."""
    text_config = config.get_text_config()
    for name, value in vars(text_config).items():
        if "layer" in name and isinstance(value, list | tuple) and len(value) == n_layers:
            setattr(text_config, name, value[layers.start : layers.stop])
    text_config.num_hidden_layers = len(layers)


def _remove_others(model: nn.Module, text_model: nn.Module) -> None:
    """Replace the modules beside the text model."""
    path = next(name for name, module in model.named_modules() if module is text_model)
    owner = model
    for name in path.split(".") if path else ():
        for child in dict(owner.named_children()):
            if child != name:
                setattr(owner, child, _Removed())
        owner = getattr(owner, name)
