"""Sentences, tokenized once for all blocks of layers, and for all models with the same tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster.activations.sentence_checks import check_tokens
from cluster.models.token_roles import BEFORE, WORD, WORD_END, has_state_at_word
from cluster.models.tokenizer import InputOptions, Text, TokenizedText, Tokenizer
from storage.errors import UserError, excerpt


@dataclass(frozen=True)
class SentenceSet:
    """Sentences and their tokens, in the same order."""

    texts: Sequence[Text]
    tokens: Sequence[TokenizedText]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each sentence."""
        return [len(sentence.ids) for sentence in self.tokens]

    @property
    def n_truncated(self) -> int:
        """Number of sentences that are longer than the model reads."""
        return sum(sentence.truncated for sentence in self.tokens)

    @property
    def n_begin_with_word(self) -> int:
        """Number of sentences with a concept's word and no token before it that is pooled."""
        return sum(
            BEFORE not in sentence.roles and not {WORD, WORD_END}.isdisjoint(sentence.roles)
            for sentence in self.tokens
        )

    @cached_property
    def without_state_at_word(self) -> tuple[int, ...]:
        """Numbers of the sentences that have no hidden state at their concept's word."""
        return tuple(
            number
            for number, sentence in enumerate(self.tokens)
            if not has_state_at_word(sentence.roles)
        )

    def check_vocabulary(self, n_embeddings: int) -> None:
        """Raise UserError, quoting the sentence, for a token that an embedding table lacks."""
        for text, sentence in zip(self.texts, self.tokens, strict=True):
            if max(sentence.ids, default=0) >= n_embeddings:
                raise UserError(
                    f"the sentence {excerpt(text.text)} has token {max(sentence.ids)}, but the "
                    f"embedding table has {n_embeddings} rows; remove the special token's text"
                )


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[Text], inputs: InputOptions, poolings: Collection[str]
) -> SentenceSet:
    """Tokenize sentences. Raises UserError if one has no tokens to pool."""
    tokens = tokenizer(texts, inputs)
    for text, sentence in zip(texts, tokens, strict=True):
        check_tokens(text, sentence, poolings)
    return SentenceSet(texts, tokens)
