"""Builds a model's tokenizer from a GGUF file, with the settings that the file states.

transformers reads the vocabulary, merges and special tokens, but not which tokens begin and end a text,
whether a space precedes it, or, for some models, how it is split into words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers

from cluster.models.gguf_header import GgufHeader
from cluster.models.model_config import errors_of_libraries
from storage.errors import UserError, excerpt

_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_CONTROL, _USER_DEFINED = 3, 4
"""Types of special tokens, and of others that are matched as a whole, in `tokenizer.ggml.token_type`."""

_TYPES: dict[str, tuple[type, Any]] = {
    **dict.fromkeys(("model", "pre"), (str, None)),
    **dict.fromkeys(("tokens", "merges"), (list, str)),
    "token_type": (list, int),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), (int, None)),
}
"""Types of settings, and of the elements of lists."""
_GPT2_SPLIT = frozenset(
    ("gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling", "exaone4", "mellum")
)
_DIGIT_SPLIT = frozenset(
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
)
"""Pre-tokenizers that split like GPT-2's, the second group after splitting off single digits."""
_WHOLE_WORDS_FIRST = frozenset(
    ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
)
"""Pre-tokenizers of vocabularies whose words need no merges, and whose texts begin with a BOS unless the
file states otherwise (as in llama.cpp)."""


def check_tokenizer(header: GgufHeader) -> None:
    """Raise UserError, naming the file, for a tokenizer that cannot be built as the file states it."""
    file, metadata = header.files[0], header.metadata
    kind, splitter = _setting(metadata, "model"), _setting(metadata, "pre")
    for name, (expected, element) in _TYPES.items():
        value = _setting(metadata, name)
        elements = value if element and isinstance(value, list) else []
        if not isinstance(value, expected | None) or not all(isinstance(e, element) for e in elements):
            raise UserError(
                f"{file}: tokenizer.ggml.{name} is {excerpt(str(value))}, of the wrong type; download "
                "it again"
            )
    if not kind or not _setting(metadata, "tokens"):
        raise UserError(f"{file}: has no tokenizer (tokenizer.ggml.tokens)")
    if kind == _BYTE_LEVEL and splitter not in _known_splitters():
        raise UserError(
            f"{file}: its pre-tokenizer {splitter!r} (tokenizer.ggml.pre) is not supported; use "
            "the model's safetensors files"
        )


def build_tokenizer(header: GgufHeader) -> Any:
    """The tokenizer of a GGUF file. Raises UserError if it cannot be built as the file states it."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    check_tokenizer(header)
    file, metadata = header.files[0], header.metadata
    kind, splitter = _setting(metadata, "model"), _setting(metadata, "pre")
    with errors_of_libraries(f"{file}: its tokenizer cannot be read"):
        architecture, vocabulary, names = get_gguf_tokenizer(str(file))
        backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
        backend = _set_added_tokens(backend, metadata)
    if splitter in _DIGIT_SPLIT and kind == _BYTE_LEVEL:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    if splitter in _WHOLE_WORDS_FIRST and kind == _BYTE_LEVEL:
        backend.model.ignore_merges = True
    if kind == _SENTENCEPIECE and not _setting(metadata, "add_space_prefix", True):
        _remove_space_prefix(backend)
    begins = kind == _SENTENCEPIECE or (kind == _BYTE_LEVEL and splitter in _WHOLE_WORDS_FIRST)
    added = {
        "bos": bool(_setting(metadata, "add_bos_token", begins)),
        "eos": bool(_setting(metadata, "add_eos_token")),
    }
    settings = {name: value for name, value in names.items() if value is not None}
    settings |= {f"add_{name}_token": is_added for name, is_added in added.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    _check_special_tokens(tokenizer, header, added)
    return tokenizer


def _setting(metadata: Mapping[str, Any], name: str, default: Any = None) -> Any:
    return metadata.get(f"tokenizer.ggml.{name}", default)


def _known_splitters() -> set[str]:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return {*GGUF_PRE_TOKENIZER_SPLITS, *_GPT2_SPLIT, *_DIGIT_SPLIT}


def _remove_space_prefix(backend: Any) -> None:
    """Tokenize a text as it is, without a space before it."""
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer.prepend_scheme = "never"
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )


def _set_added_tokens(backend: Any, metadata: Mapping[str, Any]) -> Any:
    """A tokenizer that matches the special and user-defined tokens of the file, and no others."""
    tokens, kinds = _setting(metadata, "tokens"), _setting(metadata, "token_type", [])
    content = json.loads(backend.to_str())
    listed = {added["id"] for added in content["added_tokens"]}
    content["added_tokens"] = [added for added in content["added_tokens"] if added["id"] < len(tokens)]
    unlisted = {
        number: kind == _CONTROL
        for number, kind in enumerate(kinds)
        if kind in (_CONTROL, _USER_DEFINED) and number not in listed
    }
    content["model"]["vocab"] = {
        # The vocabulary spells bytes as letters, but these tokens are matched as they are.
        tokens[number] if number in unlisted else spelling: number
        for spelling, number in content["model"]["vocab"].items()
    }
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] += [
        {"id": number, "content": tokens[number], "special": is_special, **options}
        for number, is_special in unlisted.items()
    ]
    content["added_tokens"].sort(key=lambda added: added["id"])
    return Tokenizer.from_str(json.dumps(content))


def _check_special_tokens(tokenizer: Any, header: GgufHeader, added: Mapping[str, bool]) -> None:
    """Raise UserError if tokens have other ids than in the file."""
    file, metadata = header.files[0], header.metadata
    tokens = _setting(metadata, "tokens")
    for name, is_added in added.items():
        expected, actual = _setting(metadata, f"{name}_token_id"), getattr(tokenizer, f"{name}_token_id")
        if actual != expected:
            raise UserError(
                f"{file}: its {name} token has the id {expected}, but would get {actual}; use the "
                "model's safetensors files"
            )
        if is_added and expected is None:
            raise UserError(f"{file}: adds a {name} token to texts, but names none")
    if len(tokenizer) != len(tokens):
        raise UserError(
            f"{file}: its tokenizer would have {len(tokenizer)} tokens instead of {len(tokens)}; use "
            "the model's safetensors files"
        )
