"""Sentences as tokens, and which of these each pooling looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from storage.errors import UserError


@dataclass(frozen=True)
class Text:
    """A sentence and where the words of its concepts stand: flat (start, end, start, end, ...)."""

    text: str
    spans: Sequence[int]


@dataclass(frozen=True)
class Tokens:
    """One sentence: its token ids and, for each, whether it is real and of the concept's word."""

    ids: list[int]
    real: list[bool]
    concept: list[bool]
    truncated: bool


@dataclass(frozen=True)
class Batch:
    """Sentences padded on the right to one length; each tensor has shape (sentences, tokens)."""

    ids: torch.Tensor
    attention: torch.Tensor
    real: torch.Tensor
    concept: torch.Tensor


class Tokenizer:
    """A model's tokenizer, with the offsets that tell which tokens are the concept's word."""

    def __init__(self, folder: Path, longest: int, remote_code: bool = False) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
        if not self._tokenizer.is_fast:
            raise UserError(f"{folder}: the tokenizer gives no character offsets (it is not fast)")
        self._longest = longest

    def __call__(self, texts: Sequence[Text]) -> list[Tokens]:
        """Tokens of each sentence. Special tokens are read by the model but never real."""
        encoded = self._tokenizer(
            [text.text for text in texts],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [
            self._one(text, *parts)
            for text, *parts in zip(
                texts,
                encoded["input_ids"],
                encoded["offset_mapping"],
                encoded["special_tokens_mask"],
                strict=True,
            )
        ]

    def word_ids(self, word: str) -> list[int]:
        """Token ids of a word as it stands inside a sentence, without special tokens."""
        text = f" {word}"
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # some tokenizers make tokens of the space before it
        return [
            token
            for token, offset in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if _overlap(text, offset, (1, len(text)))
        ]

    def after(self, prompt: str, word: str) -> tuple[list[int], list[int]]:
        """Tokens of a prompt, with the special ones that begin a text, and of a word that follows it.

        Without a word the second is empty.
        """
        text = f"{prompt} {word}" if word else prompt
        encoded = self._tokenizer(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        real = [at for at, special in enumerate(encoded["special_tokens_mask"]) if not special]
        of_word = [at for at in real if offsets[at][1] > len(prompt)]
        # what may stand at the end of a text is left out
        end = min(of_word, default=real[-1] + 1 if real else 0)
        return ids[:end], [ids[at] for at in of_word]

    def text(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _one(
        self, text: Text, ids: list[int], offsets: list[tuple[int, int]], special: list[int]
    ) -> Tokens:
        spans = list(zip(text.spans[::2], text.spans[1::2], strict=True))
        concept = [
            not is_special and any(_overlap(text.text, offset, span) for span in spans)
            for offset, is_special in zip(offsets, special, strict=True)
        ]
        end = self._longest
        return Tokens(ids[:end], [not mark for mark in special][:end], concept[:end], len(ids) > end)


def pad(sentences: Sequence[Tokens], pad_id: int, device: torch.device) -> Batch:
    """A batch, padded on the right with `pad_id`, which the attention never sees."""
    longest = max(len(sentence.ids) for sentence in sentences)

    def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])

    return Batch(
        ids=padded([sentence.ids for sentence in sentences], pad_id).to(device),
        attention=padded([[1] * len(sentence.ids) for sentence in sentences], 0).to(device),
        real=padded([sentence.real for sentence in sentences], 0).bool().to(device),
        concept=padded([sentence.concept for sentence in sentences], 0).bool().to(device),
    )


def _overlap(text: str, offset: tuple[int, int], span: tuple[int, int]) -> bool:
    """Whether a token shares a character with the span, the white space before a word aside."""
    start, end = offset
    return any(not text[at].isspace() for at in range(max(start, span[0]), min(end, span[1])))
