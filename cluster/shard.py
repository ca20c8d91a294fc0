"""A model (or a range of its layers) on one device, read neuron by neuron. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel

from cluster.batching import batches
from cluster.sites import Site, find_layers, mlp_sites
from cluster.tokens import Batch, Text, Tokenizer, pad, pooled_tokens
from storage.activation_files import MEAN, RESIDUAL
from storage.errors import NeuralignError, UserError

FLOAT16_LIMIT = float(torch.finfo(torch.float16).max)
LONGEST_SENTENCE = 512
PAD_ID = 0
"""Any id of the vocabulary will do: the attention never sees padding."""


@dataclass(frozen=True)
class Reading:
    """What a work unit's sentences did: arrays of shape (units, sentences) by (pooling, site).

    Neurons are float16, the mean residual stream float32.
    """

    values: dict[tuple[str, Site], npt.NDArray[np.floating[Any]]]
    tokens: int
    truncated: int


class Shard:
    """A model's body (no language-model head) that gives pooled activations of its sites."""

    def __init__(
        self, folder: Path, dtype: str, poolings: Sequence[str], budget: int, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.model = _load(folder, getattr(torch, dtype)).eval().to(self.device)
        self.poolings = list(poolings)
        self.budget = budget
        self.config = self.model.config.get_text_config()
        longest = min(LONGEST_SENTENCE, getattr(self.config, "max_position_embeddings", 1 << 30))
        self.tokenizer = Tokenizer(folder, longest)
        self.sites = mlp_sites(self.model)
        self.residuals = [
            Site(number, RESIDUAL, "", self.config.hidden_size) for number in range(len(self.sites))
        ]

    def read(self, texts: Sequence[Text]) -> Reading:
        """Run a work unit. Raises NeuralignError for a value that float16 cannot hold."""
        sentences = self.tokenizer(texts)
        for text, sentence in zip(texts, sentences, strict=True):
            self._check(text, sentence.real, sentence.concept)
        out = {
            (pooling, site): torch.empty(len(texts), site.width, dtype=torch.float16)
            for site in self.sites
            for pooling in self.poolings
        }
        out |= {(MEAN, site): torch.empty(len(texts), site.width) for site in self.residuals}
        for rows in batches([len(sentence.ids) for sentence in sentences], self.budget):
            batch = pad([sentences[row] for row in rows], PAD_ID, self.device)
            with torch.inference_mode(), self._capture(batch, rows, out):
                self.model(batch.ids, attention_mask=batch.attention, use_cache=False)
        values = {}
        for (pooling, site), tensor in out.items():
            if not tensor.isfinite().all():
                raise NeuralignError(
                    f"{site}, pooling {pooling}: an activation is not a number or is past float16's "
                    f"range ({FLOAT16_LIMIT:.0f}); try dtype float32, or check the model's weights"
                )
            values[pooling, site] = np.ascontiguousarray(tensor.numpy().T)
        return Reading(
            values,
            tokens=sum(len(sentence.ids) for sentence in sentences),
            truncated=sum(sentence.truncated for sentence in sentences),
        )

    def embed(self, words: Sequence[str]) -> npt.NDArray[np.float32]:
        """Mean input embedding of each word's tokens, of shape (words, width)."""
        table = self.model.get_input_embeddings().weight.detach()
        rows = [table[self.tokenizer.word_ids(word)].float().mean(dim=0) for word in words]
        vectors: npt.NDArray[np.float32] = torch.stack(rows).cpu().numpy()
        return vectors

    @contextmanager
    def _capture(
        self, batch: Batch, rows: list[int], out: dict[tuple[str, Site], torch.Tensor]
    ) -> Iterator[None]:
        """Hooks that pool on the device as the layers run; only pooled values leave it."""
        fillers = {
            pooling: torch.zeros(batch.real.shape, dtype=self.model.dtype, device=self.device)
            .masked_fill(~pooled_tokens(batch, pooling), -torch.inf)
            .unsqueeze(-1)
            for pooling in self.poolings
        }
        weights = (batch.real / batch.real.sum(dim=1, keepdim=True)).unsqueeze(1)

        def read_site(site: Site) -> Any:
            def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                for pooling, filler in fillers.items():
                    pooled = (inputs[0] + filler).amax(dim=1)
                    out[pooling, site][rows] = pooled.to("cpu", torch.float16)

            return hook

        def read_residual(site: Site) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                out[MEAN, site][rows] = (weights @ hidden.float()).squeeze(1).cpu()

            return hook

        layers = find_layers(self.model)
        handles = [
            layers[site.layer].get_submodule(site.module).register_forward_pre_hook(read_site(site))
            for site in self.sites
        ]
        handles += [
            layers[site.layer].register_forward_hook(read_residual(site)) for site in self.residuals
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check(self, text: Text, real: list[bool], concept: list[bool]) -> None:
        if not any(real):
            raise UserError(f"the sentence {text.text!r} has no token for this model")
        if text.spans and not any(concept):
            raise UserError(f"the sentence {text.text!r} was cut before its concept's word; shorten it")
        if "context" in self.poolings and all(
            of_concept for of_concept, is_real in zip(concept, real, strict=True) if is_real
        ):
            raise UserError(
                f"the sentence {text.text!r} has nothing but its concept's word; pooling 'context' "
                "needs more"
            )


def _load(folder: Path, dtype: torch.dtype) -> Any:
    """The model's body. A weight that the files lack would be drawn at random, so it is an error."""
    try:
        model, found = AutoModel.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded: {error}".splitlines()[0]) from error
    lacking = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"{folder}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}"
        )
    return model
