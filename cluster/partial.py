"""Loading a contiguous range of a model's layers, with transformers' own code and nothing else's.

The architecture's own class is built without memory, its layers outside the range are taken out, and
transformers loads what is left: the names of the weights, and how old names become new ones, stay its
business. A layer keeps its number as its name, so it finds its own weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from storage.errors import UserError


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


def layer_count(folder: Path) -> int:
    """How many layers the model in a folder has."""
    count: int = AutoConfig.from_pretrained(folder).get_text_config().num_hidden_layers
    return count


def shard_layers(folder: Path, shard: int, shards: int) -> range:
    """Layers of one of so many shards: contiguous, and as even as can be."""
    count = layer_count(folder)
    if shards > count:
        raise UserError(f"{folder}: has {count} layers, too few for {shards} shards")
    return range(count * shard // shards, count * (shard + 1) // shards)


def load_layers(folder: Path, layers: range, dtype: torch.dtype) -> tuple[Any, dict[int, nn.Module]]:
    """The model's body with only the layers of the range; and these layers by their numbers.

    Of the weights outside the layers, the input embedding is left out unless the range begins with
    layer 0. Raises UserError for a range that is not within the model, files that cannot be read, and
    weights that the files lack (transformers would draw them at random).
    """
    config = AutoConfig.from_pretrained(folder)
    count = config.get_text_config().num_hidden_layers
    if not 0 <= layers.start < layers.stop <= count:
        raise UserError(
            f"{folder}: has layers 0 to {count - 1}; asked for {layers.start} to {layers.stop - 1}"
        )
    whole = MODEL_MAPPING[type(config)]
    try:
        model, found = _with_layers(whole, layers).from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded: {error}".splitlines()[0]) from error
    lacking = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"{folder}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}"
        )
    without = [name for name, tensor in _tensors(model) if tensor.is_meta]
    if without:
        raise UserError(f"{folder}: {without[0]} was not loaded")
    return model, model.numbered_layers


def _with_layers(whole: Any, layers: range) -> Any:
    """The architecture's class, but its instances have only the layers of the range."""

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
            if layers.start:
                self.set_input_embeddings(nn.Identity())

    # transformers looks names up by that of the class
    Partial.__name__ = Partial.__qualname__ = whole.__name__
    return Partial


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
