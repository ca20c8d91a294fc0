"""Tokenization, with the tokens of a sentence's concept words marked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from cluster.models.model_config import errors_of_libraries
from cluster.models.token_roles import find_roles
from storage.errors import UserError

_Offset = tuple[int, int]


@dataclass(frozen=True)
class Text:
    """A sentence and the character spans of its concepts' words: flat (start, end, start, end, ...)."""

    text: str
    spans: Sequence[int]


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of a sentence, and the role of each (`cluster.models.token_roles`)."""

    ids: list[int]
    roles: list[int]
    truncated: bool


@dataclass(frozen=True)
class InputOptions:
    """How a model's inputs differ from what its tokenizer makes of a text.

    `add_bos`: whether texts begin with a BOS; None: as the tokenizer does. `skip_first_token`: whether
    the first position, on which much attention falls whatever it holds, is left out of poolings.
    """

    add_bos: bool | None = None
    skip_first_token: bool = False


AS_TOKENIZED = InputOptions()


class _Token(NamedTuple):
    """A token of a text: its id, its characters, whether it is special, and whether the tokenizer added
    it."""

    id: int
    offset: _Offset
    is_special: bool
    is_added: bool


class Tokenizer:
    """A model's tokenizer, which must give character offsets: they locate a concept's word."""

    def __init__(self, folder: Path, max_tokens: int, trust_remote_code: bool = False) -> None:
        with errors_of_libraries(f"{folder}: its tokenizer cannot be read"):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if not self._tokenizer.is_fast:
            raise UserError(f"{folder}: the tokenizer gives no character offsets (it is not fast)")
        self._folder = folder
        self.max_tokens = max_tokens
        self._special_ids = set(self._tokenizer.all_special_ids)
        self._special_ids.update(
            number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special
        )

    def __call__(
        self, texts: Sequence[Text], options: InputOptions = AS_TOKENIZED
    ) -> list[TokenizedText]:
        """Tokenize sentences. The model reads special tokens too, but they are never real, even where
        the sentence contains their text. Raises UserError for a BOS that the tokenizer lacks."""
        tokens_of_texts = self._encode([text.text for text in texts], options)
        return [
            self._mark(text, tokens, options)
            for text, tokens in zip(texts, tokens_of_texts, strict=True)
        ]

    def offsets(
        self, texts: Sequence[Text], options: InputOptions = AS_TOKENIZED
    ) -> list[list[tuple[int, int]]]:
        """Start and end of each token that `__call__` gives, in characters of its text without the
        whitespace at both ends, unless there is nothing else."""
        tokens_of_texts = self._encode([text.text for text in texts], options)
        return [
            [_strip(text.text, token.offset) for token in tokens[: self.max_tokens]]
            for text, tokens in zip(texts, tokens_of_texts, strict=True)
        ]

    def word_ids(self, word: str) -> list[int]:
        """Token ids of a word inside a sentence, without special tokens."""
        text = f" {word}"
        (tokens,) = self._encode([text], AS_TOKENIZED)
        # Some tokenizers make a token of the preceding space.
        return [
            token.id
            for token in tokens
            if not token.is_special and _overlap(text, token.offset, (1, len(text)))
        ]

    def encode_prompt(
        self, prompt: str, word: str, options: InputOptions = AS_TOKENIZED
    ) -> tuple[list[int], list[int]]:
        """Token ids of a prompt, with leading special tokens, and of the word, if any, after it. Raises
        UserError for a BOS that the tokenizer lacks."""
        text = f"{prompt} {word}" if word else prompt
        (tokens,) = self._encode([text], options)
        real = [index for index, token in enumerate(tokens) if not token.is_special]
        word_indices = [index for index in real if tokens[index].offset[1] > len(prompt)]
        word_span = (len(prompt), len(text))
        if not any(_overlap(text, tokens[index].offset, word_span) for index in word_indices):
            # Only the space before the word is not special.
            word_indices = []
        # Leaves out special tokens that end a text.
        end = min(word_indices, default=real[-1] + 1 if real else 0)
        ids = [token.id for token in tokens]
        return ids[:end], [ids[index] for index in word_indices]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def tokens_beyond(self, n_embeddings: int) -> dict[int, str]:
        """Tokens of text that an embedding table with this many rows lacks, by id."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return {
            number: token
            for token, number in vocabulary.items()
            # Special tokens, such as those of images or padding, are in no text.
            if number >= n_embeddings and number not in self._special_ids
        }

    def check_options(self, options: InputOptions) -> None:
        """Raise UserError for a BOS that the tokenizer lacks."""
        if options.add_bos and self._tokenizer.bos_token_id is None:
            raise UserError(f"{self._folder}: add_bos: the tokenizer has no BOS token; remove add_bos")

    def _encode(self, texts: list[str], options: InputOptions) -> list[list[_Token]]:
        """The tokens of each text, not truncated."""
        self.check_options(options)
        encoded = self._tokenizer(
            texts,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        columns = (encoded[key] for key in ("input_ids", "offset_mapping", "special_tokens_mask"))
        return [
            self._set_bos(
                [
                    _Token(number, offset, is_added or self._is_special(text, number, offset), is_added)
                    for number, offset, is_added in zip(ids, offsets, map(bool, mask), strict=True)
                ],
                options.add_bos,
            )
            for text, ids, offsets, mask in zip(texts, *columns, strict=True)
        ]

    def _set_bos(self, tokens: list[_Token], add_bos: bool | None) -> list[_Token]:
        """A text's tokens with or without a BOS among those that the tokenizer adds before it."""
        if add_bos is None:
            return tokens
        bos = _Token(self._tokenizer.bos_token_id, (0, 0), is_special=True, is_added=True)
        leading = list(takewhile(lambda token: token.is_added, tokens))
        without = [token for token in leading if token.id != bos.id]
        if add_bos:
            return tokens if len(without) < len(leading) else [bos, *tokens]
        if leading and len(without) == len(leading) < len(tokens):
            name = self._tokenizer.convert_ids_to_tokens(leading[0].id)
            raise UserError(
                f"{self._folder}: add_bos: the tokenizer begins a text with {name}, which is not its "
                "BOS; remove add_bos"
            )
        return without + tokens[len(leading) :]

    def _mark(self, text: Text, tokens: list[_Token], options: InputOptions) -> TokenizedText:
        is_real = [
            not token.is_special and not (index == 0 and options.skip_first_token)
            for index, token in enumerate(tokens)
        ]
        occurrences = [
            [index for index, token in enumerate(tokens) if _overlap(text.text, token.offset, span)]
            for span in zip(text.spans[::2], text.spans[1::2], strict=True)
        ]
        roles = find_roles(is_real, occurrences)
        end = self.max_tokens
        ids = [token.id for token in tokens]
        return TokenizedText(ids[:end], roles[:end], len(ids) > end)

    def _is_special(self, text: str, number: int, offset: _Offset) -> bool:
        """Whether a token is special. One that stands for text outside the vocabulary is not."""
        if number not in self._special_ids:
            return False
        is_unknown = number == self._tokenizer.unk_token_id
        return not is_unknown or text[slice(*offset)].strip() == self._tokenizer.unk_token


def _overlap(text: str, offset: _Offset, span: _Offset) -> bool:
    """Whether a token shares a character with the span, ignoring whitespace."""
    start, end = max(offset[0], span[0]), min(offset[1], span[1])
    return any(not character.isspace() for character in text[start:end])


def _strip(text: str, offset: _Offset) -> _Offset:
    """A token's characters without the whitespace at both ends, unless there is nothing else."""
    start, end = offset
    token = text[start:end]
    if not token.strip():
        return offset
    return start + len(token) - len(token.lstrip()), end - len(token) + len(token.rstrip())
