"""A shard that pools the activations of its neurons. Imports no Ray."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alignment.arrays import AnyFloats
from cluster.activations.batching import batch_sentences, pad
from cluster.activations.buffer import ActivationBuffer, PooledSite
from cluster.activations.pooling import Pooler
from cluster.activations.sentence_checks import check_tokens
from cluster.models.hooks import extract_hidden_state
from cluster.models.shard import ForwardState, ModelShard, ShardSettings
from cluster.models.sites import Site, find_sites
from cluster.models.sparse_autoencoder import LatentEncoder, SparseAutoencoder
from cluster.models.tokenizer import AS_TOKENIZED, InputOptions, Text, TokenizedText
from storage.errors import NeuralignError, UserError, excerpt
from storage.store.activation_files import LAST, MEAN, RESIDUAL
from storage.store.commit import all_finite

FLOAT16_MAX = float(torch.finfo(torch.float16).max)
PAD_ID = 0  # any valid token id: padding is masked

HiddenStates = list[torch.Tensor]


@dataclass(frozen=True)
class ActivationSettings(ShardSettings):
    """Which activations to record: pooled neurons, or a sparse autoencoder's latents instead; and
    optionally the hidden states after each layer."""

    poolings: list[str]
    include_hidden_states: bool = True
    sparse_autoencoder: SparseAutoencoder | None = None
    inputs: InputOptions = AS_TOKENIZED


@dataclass(frozen=True)
class UnitActivations:
    """Activations of a work unit, (units, sentences) by pooled site: float16 for neurons, float32 for
    hidden states (their mean and last token)."""

    values: dict[PooledSite, AnyFloats]
    n_tokens: int
    n_truncated: int


@dataclass
class UnitState:
    """A work unit in progress: its sentences, batches of sentence indices, and pooled activations."""

    sentences: list[TokenizedText]
    batches: list[list[int]]
    buffer: ActivationBuffer


@dataclass(kw_only=True)
class _PoolingState(ForwardState):
    pooler: Pooler
    pooled: dict[PooledSite, torch.Tensor] = field(default_factory=dict)


class ActivationShard(ModelShard[_PoolingState]):
    """Layers [a, b) of a model's body. Hooks pool on the device as the layers run; only pooled values
    leave it."""

    def __init__(
        self,
        folder: Path,
        settings: ActivationSettings,
        layers: range | None = None,
        device: str = "cpu",
    ) -> None:
        self._encoder: LatentEncoder | None = None
        super().__init__(folder, settings, layers, device)
        self._spare_buffers: list[ActivationBuffer] = []
        self._poolings = dict.fromkeys(self.sites, settings.poolings)
        self._neuron_poolings = settings.poolings
        self._inputs = settings.inputs
        for layer in self.layers if settings.include_hidden_states else ():
            site = Site(layer, RESIDUAL, "", "output", self.hidden_size)
            self._poolings[site] = [MEAN, LAST]
            self._hook_site(site)

    def run(self, texts: Sequence[Text], budget: int) -> UnitActivations:
        """Run a work unit through a shard that holds the complete model."""
        state = self.begin(texts, budget)
        self.step(state, range(len(state.batches)), None)
        return self.finish(state)

    def begin(self, texts: Sequence[Text], budget: int) -> UnitState:
        """Tokenize a work unit and split it into batches of at most `budget` tokens, the same in all
        shards. Raises UserError if a sentence has no tokens to pool."""
        sentences = self.tokenizer(texts, self._inputs)
        n_embeddings = self._text_model.get_input_embeddings().weight.shape[0] if self.is_first else None
        for text, sentence in zip(texts, sentences, strict=True):
            if n_embeddings and max(sentence.ids, default=0) >= n_embeddings:
                raise UserError(
                    f"the sentence {excerpt(text.text)} has token {max(sentence.ids)}, but the "
                    f"embedding table has {n_embeddings} rows; remove the special token's text"
                )
            check_tokens(text, sentence, self._neuron_poolings)
        batches = batch_sentences([len(sentence.ids) for sentence in sentences], budget)
        return UnitState(sentences, batches, self._get_buffer(len(texts)))

    def step(self, state: UnitState, indices: range, incoming: HiddenStates | None) -> HiddenStates:
        """Run some of a unit's batches: from hidden states before the shard (None at layer 0) to those
        after it. Raises NeuralignError if a site has no output."""
        outgoing = []
        for step, index in enumerate(indices):
            rows = state.batches[index]
            batch = pad([state.sentences[row] for row in rows], PAD_ID, self.device)
            forward = _PoolingState(pooler=Pooler(batch))
            inputs = batch.ids if incoming is None else incoming[step]
            with torch.inference_mode():
                self._run_model(forward, inputs, attention_mask=batch.attention, use_cache=False)
            outgoing.append(self._outgoing(forward))
            pooled_sites = {site for _, site in forward.pooled}
            if missing := [site for site in self._poolings if site not in pooled_sites]:
                raise NeuralignError(
                    f"{missing[0]}: has no output; choose another module, or its other side "
                    "(:input, :output)"
                )
            state.buffer.add_batch(rows, forward.pooled)
        return outgoing

    def finish(self, state: UnitState) -> UnitActivations:
        """The unit's activations, as views of its buffer (see `recycle`). Raises NeuralignError if a
        value is not finite in float16."""
        values = state.buffer.values()
        for (pooling, site), tensor in values.items():
            if not all_finite(tensor.numpy()):
                raise NeuralignError(
                    f"{site}, pooling {pooling}: an activation is NaN or exceeds float16's range "
                    f"({FLOAT16_MAX:.0f}); try dtype float32, or check the model's weights"
                )
        return UnitActivations(
            {key: tensor.numpy().T for key, tensor in values.items()},
            n_tokens=sum(len(sentence.ids) for sentence in state.sentences),
            n_truncated=sum(sentence.truncated for sentence in state.sentences),
        )

    def recycle(self, state: UnitState) -> None:
        """Reuse a unit's buffer once its activations are no longer needed: the system zeroes new memory
        page by page, which takes as long as filling it."""
        self._spare_buffers.append(state.buffer)

    def embed(self, words: Sequence[str]) -> npt.NDArray[np.float32]:
        """Mean input embedding of each word's tokens, (words, width); first shard only."""
        table = self._text_model.get_input_embeddings().weight.detach()
        rows = [table[self.tokenizer.word_ids(word)].float().mean(dim=0) for word in words]
        return torch.stack(rows).cpu().numpy()

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

    def _get_buffer(self, n_sentences: int) -> ActivationBuffer:
        while self._spare_buffers:
            buffer = self._spare_buffers.pop()
            if buffer.sentences == n_sentences:
                return buffer
        dtypes = {
            (pooling, site): torch.float16 if site in self.sites else torch.float32
            for site, poolings in self._poolings.items()
            for pooling in poolings
        }
        return ActivationBuffer(dtypes, n_sentences)

    def _on_site(self, site: Site, values: Any, first_unit: int = 0) -> None:
        state, hidden = self._state, extract_hidden_state(values)
        if state is None or hidden is None:
            return
        if not site.module and hidden.dim() == 4:
            # Gemma 3n carries several residual streams, of which its layers read and write one.
            hidden = hidden[self._config.altup_active_idx]
        if self._encoder is not None and site in self.sites:
            hidden = self._encoder(hidden)
        for pooling, pooled in state.pooler(hidden, self._poolings[site]).items():
            key = pooling, site
            if site.part == "experts":
                # An expert without tokens is not run: its neurons stay 0.
                if key not in state.pooled:
                    state.pooled[key] = pooled.new_zeros(len(pooled), site.width)
                state.pooled[key][:, first_unit : first_unit + pooled.shape[1]] = pooled
            elif key in state.pooled:
                raise NeuralignError(f"{site}: its module runs more than once in a forward pass")
            else:
                state.pooled[key] = pooled
