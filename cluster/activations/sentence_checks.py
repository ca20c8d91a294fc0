"""Checks of tokenized sentences: whether every pooling has tokens to pool."""

from __future__ import annotations

from collections.abc import Collection

from cluster.models.token_roles import IGNORED, POOLED_ROLES, WORD, WORD_END
from cluster.models.tokenizer import Text, TokenizedText
from storage.errors import UserError, excerpt
from storage.store.activation_files import CONCEPT, CONTEXT

_DEPEND_ON_WORD = POOLED_ROLES.keys() - {"max"}


def check_tokens(text: Text, sentence: TokenizedText, poolings: Collection[str]) -> None:
    """Raise UserError, quoting the sentence, if a pooling has no tokens in it; `before` may have none,
    but needs the word, too."""
    quoted, roles = excerpt(text.text), set(sentence.roles)
    if roles <= {IGNORED}:
        raise UserError(
            f"the sentence {quoted} has no tokens to pool: special tokens, unknown words and, with "
            "skip_first_token, the first token are left out"
        )
    if _DEPEND_ON_WORD.isdisjoint(poolings):
        return
    needed = {WORD_END} if CONCEPT in poolings else {WORD, WORD_END}
    if text.spans and needed.isdisjoint(roles):
        if sentence.truncated:
            raise UserError(
                f"the sentence {quoted} is truncated after {len(sentence.ids)} tokens, before its "
                "concept's word ends; shorten it"
            )
        raise UserError(
            f"the sentence {quoted} has no token of its concept's word that is pooled: special tokens "
            "and, with skip_first_token, the first token are left out; put another word first"
        )
    if CONTEXT in poolings and roles.isdisjoint(POOLED_ROLES[CONTEXT]):
        raise UserError(
            f"the sentence {quoted} is only its concept's word; pooling 'context' needs more words"
        )
