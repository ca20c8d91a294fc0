"""A shard whose hooks pool the values of its sites. Imports no Ray."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from cluster.activations.batching import PaddedBatch
from cluster.activations.pooling import Pooler
from cluster.models.hooks import extract_hidden_state
from cluster.models.shard import ForwardState, ModelShard, ShardSettings
from cluster.models.sites import Site, find_sites
from cluster.models.sparse_autoencoder import LatentEncoder, SparseAutoencoder
from cluster.models.tokenizer import AS_TOKENIZED, InputOptions
from storage.errors import NeuralignError
from storage.store.activation_files import RESIDUAL, STATE_POOLINGS

PAD_ID = 0
"""Any valid token id: padding is masked."""

FLOAT16_MAX = float(torch.finfo(torch.float16).max)


@dataclass(frozen=True)
class ActivationSettings(ShardSettings):
    """Which activations to record: pooled neurons, or a sparse autoencoder's latents instead; and
    optionally the hidden states after each layer."""

    poolings: list[str]
    include_hidden_states: bool = True
    sparse_autoencoder: SparseAutoencoder | None = None
    inputs: InputOptions = AS_TOKENIZED


@dataclass(kw_only=True)
class PoolingState(ForwardState):
    """A forward pass of one batch, and the sites whose values have been pooled."""

    pooler: Pooler
    pooled_sites: set[Site] = field(default_factory=set)


StateT = TypeVar("StateT", bound=PoolingState)


class PoolingShard(ModelShard[StateT]):
    """Layers [a, b) of a model's body. Hooks pool on the device as the layers run; only pooled values
    leave it. Subclasses define where to."""

    poolings: dict[Site, list[str]]
    """The poolings of each site."""

    def __init__(
        self,
        folder: Path,
        settings: ActivationSettings,
        layers: range | None = None,
        device: str = "cpu",
    ) -> None:
        self._encoder: LatentEncoder | None = None
        super().__init__(folder, settings, layers, device)
        self.poolings = dict.fromkeys(self.sites, settings.poolings)
        for layer in self.layers if settings.include_hidden_states else ():
            site = Site(layer, RESIDUAL, "", "output", self.hidden_size)
            self.poolings[site] = list(STATE_POOLINGS)
            self._hook_site(site)

    @property
    def n_embeddings(self) -> int:
        """Rows of the table of input embeddings, which the first shard has."""
        return int(self._text_model.get_input_embeddings().weight.shape[0])

    @property
    def pooled_dtypes(self) -> dict[tuple[str, Site], torch.dtype]:
        """Stored dtype by pooling and site: float16 for neurons, float32 for hidden states."""
        return {
            (pooling, site): torch.float16 if site in self.sites else torch.float32
            for site, poolings in self.poolings.items()
            for pooling in poolings
        }

    def embed_tokens(self, words: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Mean input embedding of the tokens of each word, (words, width); first shard only."""
        table = self._text_model.get_input_embeddings().weight.detach()
        return torch.stack([table[ids].float().mean(dim=0) for ids in words]).cpu().numpy()

    @abstractmethod
    def _pool(self, state: StateT, site: Site, hidden: torch.Tensor, first_unit: int) -> None:
        """Pool a site's hidden values, whose units are those from `first_unit` on."""

    def _run_batch(self, state: StateT, batch: PaddedBatch, incoming: torch.Tensor | None) -> None:
        """Run a batch from hidden states before the shard (None at layer 0). Raises NeuralignError if a
        site has no output."""
        inputs = batch.ids if incoming is None else incoming
        with torch.inference_mode():
            self._run_model(state, inputs, attention_mask=batch.attention, use_cache=False)
        if missing := [site for site in self.poolings if site not in state.pooled_sites]:
            raise NeuralignError(
                f"{missing[0]}: has no output; choose another module, or its other side "
                "(:input, :output)"
            )

    def _find_sites(self, settings: ActivationSettings) -> list[Site]:
        autoencoder = settings.sparse_autoencoder
        if autoencoder is None:
            return super()._find_sites(settings)
        if autoencoder.layer not in self._modules:
            return []
        width = self.hidden_size
        if autoencoder.module:
            layers = {autoencoder.layer: self._modules[autoencoder.layer]}
            pattern = f"{re.escape(autoencoder.module)}:{autoencoder.side}"
            width = find_sites(self._text_model, layers, [pattern])[0].width
        self._encoder = LatentEncoder(autoencoder, width, self.device)
        return [autoencoder.site(self._encoder.width)]

    def _on_site(self, site: Site, values: Any, first_unit: int = 0) -> None:
        state, hidden = self._state, extract_hidden_state(values)
        if state is None or hidden is None:
            return
        if site in state.pooled_sites and site.part != "experts":
            raise NeuralignError(f"{site}: its module runs more than once in a forward pass")
        if not site.module and hidden.dim() == 4:
            # Gemma 3n carries several residual streams, of which its layers read and write one.
            hidden = hidden[self._config.altup_active_idx]
        if self._encoder is not None and site in self.sites:
            hidden = self._encoder(hidden)
        self._pool(state, site, hidden, first_unit)
        state.pooled_sites.add(site)


def overflow_error(site: Site, pooling: str, sentence: str = "") -> NeuralignError:
    """Error for an activation that is not finite in float16."""
    return NeuralignError(
        f"{site}, pooling {pooling}{sentence}: an activation is NaN or exceeds float16's range "
        f"({FLOAT16_MAX:.0f}); try dtype float32, or check the model's weights"
    )
