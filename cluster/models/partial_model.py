"""Loading a contiguous range of a model's layers, with transformers' own code and nothing else's.

The architecture's own class is built without memory, its layers outside the range are taken out, and
transformers loads what is left: the names of the weights, and how old names become new ones, stay its
business. A layer keeps its number as its name, so it finds its own weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from cluster.models.checkpoint import Backend, is_pickled, of_layers, open_tensors
from cluster.models.packed_linear import pack
from cluster.models.weights import read_config
from storage.errors import UserError

_IN_TURN = "HF_DEACTIVATE_ASYNC_LOAD"


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a language model's layers: the module list as long as its configuration says.

    Raises UserError when no list, or more than one, fits.
    """
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(found) != 1:
        raise UserError(
            f"{type(model).__name__}: found {len(found)} lists of {count} layers; expected one"
        )
    return found[0]


def layer_count(folder: Path, remote_code: bool = False) -> int:
    """How many layers the model in a folder has."""
    count: int = read_config(folder, remote_code).get_text_config().num_hidden_layers
    return count


def shard_layers(folder: Path, shard: int, shards: int, remote_code: bool = False) -> range:
    """Layers of one of so many shards: contiguous, and as even as can be."""
    count = layer_count(folder, remote_code)
    if shards > count:
        raise UserError(f"{folder}: has {count} layers, too few for {shards} shards")
    return range(count * shard // shards, count * (shard + 1) // shards)


def load_layers(
    folder: Path,
    layers: range,
    dtype: torch.dtype,
    remote_code: bool = False,
    head: bool = False,
    packed: bool = False,
) -> tuple[Any, dict[int, nn.Module]]:
    """The model's body, or with `head` the model that ends in logits, with only the layers of the range,
    `packed` or not; and these layers by their numbers.

    Of the weights outside the layers, the input embedding is left out unless the range begins with
    layer 0 or the head shares it. The model's own code runs only with `remote_code`. Raises UserError
    for a range that is not within the model, files that cannot be read, and weights that the files lack
    (transformers would draw them at random).
    """
    config = read_config(folder, remote_code)
    count = config.get_text_config().num_hidden_layers
    if not 0 <= layers.start < layers.stop <= count:
        raise UserError(
            f"{folder}: has layers 0 to {count - 1}; asked for {layers.start} to {layers.stop - 1}"
        )
    embeds = layers.start == 0 or (head and config.get_text_config().tie_word_embeddings)
    partial = _with_layers(_architecture(config, folder, remote_code, head), layers, embeds)
    # tensors that stay as they are need no copy; others are read one by one, to be changed
    backend: Backend = "mmap" if config.dtype == dtype and not packed else "pread"
    model, lacking = _load(partial, folder, config, dtype, of_layers(layers), backend)
    if lacking:
        # the numbers in the names may count something else than layers
        model, lacking = _load(partial, folder, config, dtype, lambda _: True, backend)
    if lacking:
        raise UserError(
            f"{folder}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}"
        )
    without = [name for name, tensor in _tensors(model) if tensor.is_meta]
    if without:
        raise UserError(f"{folder}: {without[0]} was not loaded")
    if packed:
        pack(model)
    return model, model.numbered_layers


def _load(
    partial: Any,
    folder: Path,
    config: Any,
    dtype: torch.dtype,
    keep: Callable[[str], bool],
    backend: Backend,
) -> tuple[Any, list[str]]:
    """The model with the tensors that `keep` accepts, and the names of those that it lacks."""
    given: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
    try:
        if is_pickled(folder):
            model, found = partial.from_pretrained(folder, use_safetensors=False, **given)
        else:
            tensors = open_tensors(folder, keep, backend)
            with _in_turn():
                model, found = partial.from_pretrained(None, state_dict=tensors, **given)
    except UnpicklingError as error:
        raise UserError(f"{folder}: its pickles hold more than weights; they are not loaded") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        advice = "; cut the model into more shards" if "allocate memory" in str(error) else ""
        raise UserError(f"{folder}: cannot be loaded: {error}".splitlines()[0] + advice) from error
    return model, sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})


@contextmanager
def _in_turn() -> Iterator[None]:
    """Have transformers read one tensor after another: its threads read ahead of what is converted, as
    far as all of them. It is told so by the environment alone."""
    before = os.environ.get(_IN_TURN)
    os.environ[_IN_TURN] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_IN_TURN]
        else:
            os.environ[_IN_TURN] = before


def _architecture(config: Any, folder: Path, remote_code: bool, head: bool) -> Any:
    """The class of the model, without its head or with: transformers', or that of the folder's code."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING if head else MODEL_MAPPING
    if type(config) in known:
        return known[type(config)]
    own = getattr(config, "auto_map", None) or {}
    name, what = ("AutoModelForCausalLM", "head") if head else ("AutoModel", "body")
    if not remote_code or name not in own:
        raise UserError(f"{folder}: {type(config).__name__} has no model {what} ({name}) to load")
    return get_class_from_dynamic_module(own[name], folder)


def _with_layers(whole: Any, layers: range, embeds: bool) -> Any:
    """The architecture's class, but its instances have only the layers of the range, and the input
    embedding only if `embeds`."""

    class Partial(whole):  # type: ignore[misc]
        def __init__(self, config: Any, *arguments: Any, **settings: Any) -> None:
            super().__init__(config, *arguments, **settings)
            held = find_layers(self)
            count = len(held)
            for number in range(count):
                if number not in layers:
                    del held._modules[str(number)]
            text_config = self.config.get_text_config()
            for name, value in vars(text_config).items():
                # what kind of attention each layer has, and the like
                per_layer = isinstance(value, list | tuple) and "layer" in name
                if per_layer and len(value) == count:
                    setattr(text_config, name, value[layers.start : layers.stop])
            text_config.num_hidden_layers = len(layers)
            # a plain dictionary, so that the layers keep the one name that they are loaded by
            self.__dict__["numbered_layers"] = {
                int(number): layer for number, layer in held.named_children()
            }
            if not embeds:
                self.set_input_embeddings(nn.Identity())

    # transformers looks old names of weights up by that of the class, if the class is its own
    Partial.__name__ = Partial.__qualname__ = whole.__name__
    Partial.__module__ = whole.__module__
    return Partial


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
