"""A contiguous range of a model's layers on one device, read neuron by neuron. Knows nothing of Ray."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cluster.activations.batching import batches
from cluster.activations.buffer import Gathered, Place
from cluster.activations.pooling import Pooler
from cluster.activations.tokens import Batch, Text, Tokenizer, Tokens, pad
from cluster.models.packed_linear import is_packed
from cluster.models.partial_model import layer_count, load_layers
from cluster.models.sites import Site, find_sites, hidden_values, with_hidden
from cluster.models.sparse_autoencoder import Dictionary, Encoder
from storage.errors import NeuralignError, UserError, excerpt
from storage.store.activation_files import LAST, MEAN, RESIDUAL
from storage.store.commit import all_finite

FLOAT16_LIMIT = float(torch.finfo(torch.float16).max)
LONGEST_SENTENCE = 512
PAD_ID = 0
"""Any id of the vocabulary will do: the attention never sees padding."""

Hidden = list[torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How a model is read; the same for all its shards. `states` says whether the hidden states after
    each layer are read too; with a `dictionary`, its latents are read in the place of `sites`."""

    dtype: str
    sites: str | list[str]
    poolings: list[str]
    remote_code: bool = False
    states: bool = True
    dictionary: Dictionary | None = None


@dataclass(frozen=True)
class Reading:
    """What a work unit's sentences did: arrays of shape (units, sentences) by (pooling, site).

    Neurons are float16, the residual stream (its mean and its last token) float32.
    """

    values: dict[Place, npt.NDArray[np.floating[Any]]]
    tokens: int
    truncated: int


@dataclass
class Work:
    """A work unit on its way through a shard: its tokens, its batches (positions of sentences) and
    what was read so far."""

    tokens: list[Tokens]
    batches: list[list[int]]
    gathered: Gathered


@dataclass
class _Now:
    """The batch that the hooks are reading, and what they have pooled of it."""

    pooler: Pooler
    incoming: torch.Tensor | None
    pooled: dict[Place, torch.Tensor] = field(default_factory=dict)
    outgoing: torch.Tensor | None = None


class Shard:
    """Layers [a, b) of a model's body (no language-model head), with the sites in them."""

    def __init__(
        self, folder: Path, settings: Settings, layers: range | None = None, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.poolings = settings.poolings
        self.states = (MEAN, LAST) if settings.states else ()
        self.layers = layers if layers is not None else range(layer_count(folder, settings.remote_code))
        self.model, numbered = load_layers(
            folder,
            self.layers,
            self.dtype,
            settings.remote_code,
            packed=is_packed(self.dtype, self.device),
        )
        self.model.eval().to(self.device)
        config = self.model.config.get_text_config()
        self.hidden_size: int = config.hidden_size
        self._encoder: Encoder | None = None
        if settings.dictionary is None:
            self.sites = find_sites(self.model, numbered, settings.sites)
        else:
            self.sites = self._latents(settings.dictionary, numbered)
        self.residuals = [
            Site(number, RESIDUAL, "", "output", self.hidden_size) for number in self.layers
        ]
        longest = min(LONGEST_SENTENCE, getattr(config, "max_position_embeddings", 1 << 30))
        self.tokenizer = Tokenizer(folder, longest, settings.remote_code)
        self._now: _Now | None = None
        self._spare: list[Gathered] = []
        self._watch(numbered)

    def _latents(self, dictionary: Dictionary, numbered: dict[int, nn.Module]) -> list[Site]:
        """The site of a dictionary's latents, where this shard holds its layer."""
        if dictionary.layer not in numbered:
            return []
        width = self.hidden_size
        if dictionary.module:
            layers = {dictionary.layer: numbered[dictionary.layer]}
            place = f"{re.escape(dictionary.module)}:{dictionary.side}"
            width = find_sites(self.model, layers, [place])[0].width
        self._encoder = Encoder(dictionary, width, self.device)
        return [dictionary.site(self._encoder.width)]

    def read(self, texts: Sequence[Text], budget: int) -> Reading:
        """Run a work unit through a shard that holds the whole model."""
        work = self.begin(texts, budget)
        self.step(work, range(len(work.batches)), None)
        return self.finish(work)

    def begin(self, texts: Sequence[Text], budget: int) -> Work:
        """Tokenise a work unit and cut its batches, of at most `budget` tokens: the same in all shards.

        Raises UserError for a sentence that one of the poolings cannot read.
        """
        tokens = self.tokenizer(texts)
        for text, sentence in zip(texts, tokens, strict=True):
            self._check(text, sentence)
        cut = batches([len(sentence.ids) for sentence in tokens], budget)
        return Work(tokens, cut, self._room(len(texts)))

    def step(self, work: Work, numbers: range, incoming: Hidden | None) -> Hidden:
        """Run the batches of these numbers. `incoming` is the hidden state before the first layer of the
        shard, for each batch, and None where that is layer 0; returned is that after the last."""
        outgoing = []
        for at, number in enumerate(numbers):
            rows = work.batches[number]
            before = incoming[at] if incoming is not None else None
            batch = pad([work.tokens[row] for row in rows], PAD_ID, self.device)
            hidden, pooled = self._forward(batch, before)
            if lacking := work.gathered.lacking(pooled):
                _, site = lacking[0]
                raise NeuralignError(f"{site}: gave no values; name another module, or its other side")
            outgoing.append(hidden)
            work.gathered.take(rows, pooled)
        return outgoing

    def finish(self, work: Work) -> Reading:
        """What was read: views into the unit's memory (see `recycle`). Raises NeuralignError for a value
        that float16 cannot hold."""
        values = work.gathered.values()
        for (pooling, site), tensor in values.items():
            if not all_finite(tensor.numpy()):
                raise NeuralignError(
                    f"{site}, pooling {pooling}: an activation is not a number or is past float16's "
                    f"range ({FLOAT16_LIMIT:.0f}); try dtype float32, or check the model's weights"
                )
        return Reading(
            {place: tensor.numpy().T for place, tensor in values.items()},
            tokens=sum(len(sentence.ids) for sentence in work.tokens),
            truncated=sum(sentence.truncated for sentence in work.tokens),
        )

    def recycle(self, work: Work) -> None:
        """Leave the memory of a unit, whose reading is no longer looked at, to those that come: the
        system clears new memory page by page, which takes as long as filling it."""
        self._spare.append(work.gathered)

    def embed(self, words: Sequence[str]) -> npt.NDArray[np.float32]:
        """Mean input embedding of each word's tokens, of shape (words, width); in the first shard."""
        table = self.model.get_input_embeddings().weight.detach()
        rows = [table[self.tokenizer.word_ids(word)].float().mean(dim=0) for word in words]
        vectors: npt.NDArray[np.float32] = torch.stack(rows).cpu().numpy()
        return vectors

    def _room(self, sentences: int) -> Gathered:
        """Memory for what is read in so many sentences."""
        while self._spare:
            spare = self._spare.pop()
            if spare.sentences == sentences:
                return spare
        neurons = [(pooling, site) for site in self.sites for pooling in self.poolings]
        states = [(pooling, site) for site in self.residuals for pooling in self.states]
        dtypes = dict.fromkeys(neurons, torch.float16) | dict.fromkeys(states, torch.float32)
        return Gathered(dtypes, sentences)

    def _forward(
        self, batch: Batch, incoming: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[Place, torch.Tensor]]:
        """The hidden state after the last layer of the shard, and what the hooks have pooled."""
        if incoming is None:
            given = {"input_ids": batch.ids}
        else:
            # the model makes its masks and positions from these; the first layer gets the real ones
            shape = (*batch.ids.shape, self.hidden_size)
            given = {"inputs_embeds": torch.zeros(shape, dtype=self.dtype, device=self.device)}
            incoming = incoming.to(self.device)
        now = self._now = _Now(Pooler(batch, self.poolings), incoming)
        try:
            with torch.inference_mode():
                self.model(**given, attention_mask=batch.attention, use_cache=False)
        finally:
            # without a batch to read, the hooks do nothing
            self._now = None
        if now.outgoing is None:
            raise NeuralignError(f"{type(self.model).__name__}: its last layer did not run")
        return now.outgoing, now.pooled

    def _watch(self, numbered: dict[int, nn.Module]) -> None:
        """Hooks that pool on the device as the layers run; only pooled values leave it."""
        numbered[self.layers.start].register_forward_pre_hook(self._inject, with_kwargs=True)
        for site in self.sites:
            module = numbered[site.layer].get_submodule(site.module)
            if site.side == "input":
                module.register_forward_pre_hook(lambda _, given, site=site: self._take(site, given))
            else:
                module.register_forward_hook(lambda _, __, given, site=site: self._take(site, given))
        for site in self.residuals:
            numbered[site.layer].register_forward_hook(
                lambda _, __, given, site=site: self._take_residual(site, given)
            )

    def _inject(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._now is None or self._now.incoming is None:
            return None
        return with_hidden(self._now.incoming, inputs, named)

    def _take(self, site: Site, given: Any) -> None:
        hidden = hidden_values(given)
        if self._now is not None and hidden is not None:
            if self._encoder is not None:
                hidden = self._encoder(hidden)
            for pooling, values in self._now.pooler(hidden).items():
                self._now.pooled[pooling, site] = values

    def _take_residual(self, site: Site, given: Any) -> None:
        hidden = hidden_values(given)
        if self._now is not None and hidden is not None:
            if self.states:
                self._now.pooled[MEAN, site] = self._now.pooler.mean(hidden)
                self._now.pooled[LAST, site] = self._now.pooler.last(hidden)
            if site.layer == self.layers.stop - 1:
                self._now.outgoing = hidden

    def _check(self, text: Text, sentence: Tokens) -> None:
        shown = excerpt(text.text)
        if not any(sentence.real):
            raise UserError(f"the sentence {shown} has no token for this model")
        if not {"concept", "context"}.intersection(self.poolings):
            return
        if text.spans and not any(sentence.concept):
            raise UserError(
                f"the sentence {shown} is cut after {len(sentence.ids)} tokens, before its concept's "
                "word; shorten it"
            )
        bare = all(
            of_concept
            for of_concept, is_real in zip(sentence.concept, sentence.real, strict=True)
            if is_real
        )
        if "context" in self.poolings and bare:
            raise UserError(
                f"the sentence {shown} has nothing but its concept's word; pooling 'context' needs more"
            )
