"""Checks of tokenized sentences: whether every pooling has tokens to pool."""

from __future__ import annotations

from collections.abc import Collection

from cluster.models.tokenizer import Text, TokenizedText
from storage.errors import UserError, excerpt

CONCEPT, CONTEXT = "concept", "context"


def check_tokens(text: Text, sentence: TokenizedText, poolings: Collection[str]) -> None:
    """Raise UserError, quoting the sentence, if a pooling has no tokens in it."""
    quoted = excerpt(text.text)
    if not any(sentence.real):
        raise UserError(
            f"the sentence {quoted} has no tokens to pool: special tokens, unknown words and, with "
            "skip_first_token, the first token are left out"
        )
    if not {CONCEPT, CONTEXT}.intersection(poolings):
        return
    if text.spans and not any(sentence.concept):
        if sentence.truncated:
            raise UserError(
                f"the sentence {quoted} is truncated after {len(sentence.ids)} tokens, before its "
                "concept's word; shorten it"
            )
        raise UserError(
            f"the sentence {quoted} has no token of its concept's word that is pooled: special tokens "
            "and, with skip_first_token, the first token are left out; put another word first"
        )
    if CONTEXT in poolings and sum(sentence.concept) == sum(sentence.real):
        raise UserError(
            f"the sentence {quoted} is only its concept's word; pooling 'context' needs more words"
        )
