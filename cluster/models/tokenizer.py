"""Tokenization, with the tokens of a sentence's concept words marked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from storage.errors import UserError


@dataclass(frozen=True)
class Text:
    """A sentence and the character spans of its concepts' words: flat (start, end, start, end, ...)."""

    text: str
    spans: Sequence[int]


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of a sentence and, for each, whether it is real (not special) and part of a concept's
    word."""

    ids: list[int]
    real: list[bool]
    concept: list[bool]
    truncated: bool


class Tokenizer:
    """A model's tokenizer, which must give character offsets: they locate a concept's word."""

    def __init__(self, folder: Path, max_tokens: int, trust_remote_code: bool = False) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if not self._tokenizer.is_fast:
            raise UserError(f"{folder}: the tokenizer gives no character offsets (it is not fast)")
        self._max_tokens = max_tokens

    def __call__(self, texts: Sequence[Text]) -> list[TokenizedText]:
        """Tokenize sentences. The model reads special tokens too, but they are never real."""
        encoded = self._tokenizer(
            [text.text for text in texts],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        encodings = (encoded[key] for key in ("input_ids", "offset_mapping", "special_tokens_mask"))
        return [self._mark(*parts) for parts in zip(texts, *encodings, strict=True)]

    def word_ids(self, word: str) -> list[int]:
        """Token ids of a word inside a sentence, without special tokens."""
        text = f" {word}"
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # Some tokenizers make a token of the preceding space.
        return [
            token
            for token, offset in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if _overlap(text, offset, (1, len(text)))
        ]

    def encode_prompt(self, prompt: str, word: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt, with leading special tokens, and of the word, if any, after it."""
        text = f"{prompt} {word}" if word else prompt
        encoded = self._tokenizer(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        real = [index for index, special in enumerate(encoded["special_tokens_mask"]) if not special]
        word_indices = [index for index in real if offsets[index][1] > len(prompt)]
        # Leaves out special tokens that end a text.
        end = min(word_indices, default=real[-1] + 1 if real else 0)
        return ids[:end], [ids[index] for index in word_indices]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _mark(
        self, text: Text, ids: list[int], offsets: list[tuple[int, int]], special: list[int]
    ) -> TokenizedText:
        spans = list(zip(text.spans[::2], text.spans[1::2], strict=True))
        concept = [
            not is_special and any(_overlap(text.text, offset, span) for span in spans)
            for offset, is_special in zip(offsets, special, strict=True)
        ]
        end = self._max_tokens
        return TokenizedText(
            ids[:end], [not is_special for is_special in special][:end], concept[:end], len(ids) > end
        )


def _overlap(text: str, offset: tuple[int, int], span: tuple[int, int]) -> bool:
    """Whether a token shares a character with the span, ignoring whitespace."""
    start, end = max(offset[0], span[0]), min(offset[1], span[1])
    return any(not character.isspace() for character in text[start:end])
