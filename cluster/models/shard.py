"""A contiguous range of a model's layers on one device, with hooks on its sites. Imports no Ray."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from cluster.models.device_copy import move_to_device
from cluster.models.experts import add_expert_hook
from cluster.models.hooks import add_hook, add_logits_hook, extract_hidden_state, replace_hidden_state
from cluster.models.packed_linear import supports_packing
from cluster.models.partial_model import count_layers, load_layers
from cluster.models.site_proof import prove_causality, prove_sites
from cluster.models.sites import Site, check_hidden_states, find_sites
from cluster.models.tokenizer import Tokenizer
from storage.errors import NeuralignError

MAX_TOKENS = 512

_PADDED_POSITIONS = (
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Types of models that number positions from that of the padding token on."""


@dataclass(frozen=True)
class ShardSettings:
    """How a model is loaded and where its neurons are hooked; the same for all its shards."""

    dtype: str
    sites: str | list[str]
    trust_remote_code: bool = field(default=False, kw_only=True)


@dataclass
class ForwardState:
    """A forward pass of shape (rows, tokens): the hidden states before the first layer, unless it starts
    from token ids, and after the last."""

    shape: Sequence[int] = ()
    incoming: torch.Tensor | None = None
    outgoing: torch.Tensor | None = None


StateT = TypeVar("StateT", bound=ForwardState)


class ModelShard(ABC, Generic[StateT]):
    """Layers [a, b) of a model, by default all. Subclasses define what happens at a site."""

    with_head: ClassVar[bool] = False
    """Whether the last shard has the language-model head."""

    with_tokenizer: ClassVar[bool] = True

    def __init__(
        self, folder: Path, settings: ShardSettings, layers: range | None = None, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        n_layers = count_layers(folder, settings.trust_remote_code)
        self.layers = range(n_layers) if layers is None else layers
        self.is_first, self.is_last = self.layers.start == 0, self.layers.stop == n_layers
        has_head = self.with_head and self.is_last
        loaded = load_layers(
            folder,
            self.layers,
            self.dtype,
            settings.trust_remote_code,
            with_head=has_head,
            # Packed layers have no gradients, which attributions need.
            pack_weights=not self.with_head and supports_packing(self.dtype, self.device),
        )
        self._modules = loaded.layers
        self._text_model = loaded.text_model
        self._model_type = loaded.model.config.model_type
        self.model = loaded.model if has_head else loaded.text_model
        self.model.eval().requires_grad_(False)
        move_to_device(self.model, self.device)
        self._config = self._text_model.config.get_text_config()
        self.hidden_size: int = self._config.hidden_size
        if self.with_tokenizer:
            limit = token_limit(self._config)
            self.tokenizer = Tokenizer(folder, limit, settings.trust_remote_code)
        self._in_thread = threading.local()
        check_hidden_states(self._text_model, self._modules)
        prove_causality(self._text_model, self._modules)
        self.sites = self._find_sites(settings)
        prove_sites(self._text_model, self._modules, self.sites)
        self._modules[self.layers.start].register_forward_pre_hook(self._on_entry, with_kwargs=True)
        for site in self.sites:
            self._hook_site(site)
        self._modules[self.layers.stop - 1].register_forward_hook(self._on_exit)

    @property
    def _state(self) -> StateT | None:
        """The forward pass of this thread; None between batches, when hooks are idle."""
        return getattr(self._in_thread, "state", None)

    def _find_sites(self, settings: Any) -> list[Site]:
        is_complete = self.is_first and self.is_last
        return find_sites(self._text_model, self._modules, settings.sites, is_complete)

    def _hook_site(self, site: Site) -> None:
        module = self._modules[site.layer].get_submodule(site.module)
        if site.part == "experts":
            add_expert_hook(module, partial(self._on_expert, site))
        elif site.part == "logits":
            add_logits_hook(module, partial(self._on_site, site))
        else:
            add_hook(module, site.part, partial(self._on_site, site))

    def _run_model(self, state: StateT, inputs: Any, **arguments: Any) -> Any:
        """Run the layers on token ids, (rows, tokens), or on hidden states, (rows, tokens, width)."""
        inputs = torch.as_tensor(inputs).to(self.device)
        state.shape = inputs.shape[:2]
        if inputs.is_floating_point():
            # The model derives masks and positions from zeros; `_on_entry` puts in the hidden state.
            shape = (*state.shape, self._text_model.embedding_width)
            arguments["inputs_embeds"] = inputs.new_zeros(shape, dtype=self.dtype)
            state.incoming = inputs
        else:
            arguments["input_ids"] = inputs
        self._in_thread.state = state
        try:
            return self.model(**arguments)
        finally:
            self._in_thread.state = None

    def _on_entry(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._state is None or self._state.incoming is None:
            return None
        return replace_hidden_state(self._state.incoming, args, kwargs)

    @abstractmethod
    def _on_site(self, site: Site, values: Any, first_unit: int = 0) -> Any:
        """Handle the values of a site's units from `first_unit` on; a result other than None replaces
        them."""

    def _on_expert(
        self, site: Site, expert: int, tokens: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor | None:
        """Handle an expert's neurons, which are 0 on the tokens that are not routed to it."""
        if self._state is None:
            return None
        n_tokens, width = math.prod(self._state.shape), values.shape[-1]
        padded = values.new_zeros(n_tokens, width).index_copy(0, tokens, values)
        replaced = self._on_site(site, padded, expert * width)
        return None if replaced is None else replaced[tokens]

    def _on_exit(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if self._state is not None:
            self._state.outgoing = extract_hidden_state(output)

    def _outgoing(self, state: StateT) -> torch.Tensor:
        if state.outgoing is None:
            raise NeuralignError(f"{type(self.model).__name__}: its last layer did not run")
        return state.outgoing


def token_limit(config: Any) -> int:
    """Longest sequence read from a model with this configuration, in tokens.

    Sparse attention that selects `index_topk` tokens may select padding in longer ones.
    """
    names = ("max_position_embeddings", "max_target_positions", "index_topk")
    limits = {name: int(value) for name in names if (value := getattr(config, name, None))}
    if config.model_type in _PADDED_POSITIONS and "max_position_embeddings" in limits:
        limits["max_position_embeddings"] -= (config.pad_token_id or 0) + 1
    return min([MAX_TOKENS, *limits.values()])
