"""Tokenizing words after prompts, and sampling tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from alignment.arrays import Floats, Ints
from cluster.models.model_config import read_config
from cluster.models.shard import token_limit
from cluster.models.tokenizer import AS_TOKENIZED, InputOptions, Tokenizer
from cluster.models.weights import Weights, ensure_local
from cluster.steering.interventions import PromptedWord, TokenIds
from storage.errors import UserError


def tokenize_words(
    weights: Weights,
    prompts: Sequence[str],
    words: Sequence[str],
    n_continuation: int,
    options: InputOptions = AS_TOKENIZED,
) -> tuple[list[TokenIds], list[list[PromptedWord]]]:
    """Token ids of each prompt, and of each word after each prompt.

    Raises UserError if a prompt or a word has no tokens, or if a prompt with a word, or with
    `n_continuation` more tokens, is too long for the model.
    """
    tokenizer = _load_tokenizer(weights)
    return tokenize_with(tokenizer, weights.label, prompts, words, n_continuation, options)


def tokenize_with(
    tokenizer: Tokenizer,
    label: str,
    prompts: Sequence[str],
    words: Sequence[str],
    n_continuation: int,
    options: InputOptions,
) -> tuple[list[TokenIds], list[list[PromptedWord]]]:
    """`tokenize_words` with a tokenizer and the label of its model."""
    prompt_ids = [tuple(tokenizer.encode_prompt(prompt, "", options)[0]) for prompt in prompts]
    prompted_words = []
    for word in words:
        prompted = [
            PromptedWord(*map(tuple, tokenizer.encode_prompt(prompt, word, options)))
            for prompt in prompts
        ]
        if not all(prompted_word.tokens for prompted_word in prompted):
            raise UserError(f"steering: the word {word!r} has no tokens for model {label}")
        prompted_words.append(prompted)
    for index, (prompt, ids) in enumerate(zip(prompts, prompt_ids, strict=True)):
        if not ids or not all(prompted[index].prefix for prompted in prompted_words):
            raise UserError(f"steering.prompts: {prompt!r} has no tokens for model {label}")
        lengths = [len(prompted[index].sequence) + 1 for prompted in prompted_words]
        length = max([len(ids) + n_continuation, *lengths])
        if length > tokenizer.max_tokens:
            raise UserError(
                f"steering.prompts: {prompt!r} is {length} tokens long with its continuation; the limit "
                f"of model {label} is {tokenizer.max_tokens}"
            )
    return prompt_ids, prompted_words


def tokenize_parts(
    weights: Weights, texts: Sequence[Sequence[tuple[str, str]]], options: InputOptions = AS_TOKENIZED
) -> list[list[PromptedWord]]:
    """Token ids of the two parts of texts, in lists, without those that the model cannot read: a part
    without tokens, or too many."""
    tokenizer = _load_tokenizer(weights)
    tokenized = []
    for parts in texts:
        encoded = (tokenizer.encode_prompt(first, second, options) for first, second in parts)
        words = [PromptedWord(tuple(first), tuple(second)) for first, second in encoded]
        tokenized.append(
            [
                word
                for word in words
                if word.prefix and word.tokens and len(word.sequence) < tokenizer.max_tokens
            ]
        )
    return tokenized


def sample_tokens(log_p: torch.Tensor, uniforms: Floats, temperature: float) -> Ints:
    """Next tokens, (rows, 1), from log P, (rows, vocabulary), by inverse transform sampling: the first
    whose cumulative probability exceeds the row's uniform number. Temperature 0 takes the likeliest."""
    if temperature == 0:
        tokens = log_p.argmax(dim=1)
    else:
        cumulative = (log_p.double() / temperature).softmax(dim=1).cumsum(dim=1)
        thresholds = torch.from_numpy(np.ascontiguousarray(uniforms)).to(log_p.device).unsqueeze(1)
        tokens = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1)
        # Rounding may leave the total below a threshold.
        tokens = tokens.clamp(max=log_p.shape[1] - 1)
    return tokens.unsqueeze(1).cpu().numpy()


def _load_tokenizer(weights: Weights) -> Tokenizer:
    folder = ensure_local(weights)
    config = read_config(folder, weights.trust_remote_code).get_text_config()
    return Tokenizer(folder, token_limit(config), weights.trust_remote_code)
