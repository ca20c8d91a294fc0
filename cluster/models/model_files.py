"""Which files of a folder make up a model: those that are hashed, downloaded and loaded."""

from __future__ import annotations

from pathlib import Path

from cluster.models.checkpoint import checkpoint_files
from cluster.models.model_config import REMOTE_CODE, check_causal_lm, read_config_json
from storage.errors import UserError
from storage.store.fingerprint import fingerprint, hash_file

PICKLED_WEIGHTS = "pickled-weights"

_SETTINGS_PATTERNS = ["*.json", "*.model", "*.txt", "*.jinja"]
"""Configuration and tokenizer."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_ENCODER_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def settings_patterns(allowed: frozenset[str]) -> list[str]:
    """Glob patterns of a model's files other than its weights."""
    return _SETTINGS_PATTERNS + (["*.py"] if REMOTE_CODE in allowed else [])


def check_folder(model: str, folder: Path, allowed: frozenset[str]) -> None:
    """Raise UserError unless a folder contains a causal language model that may be loaded."""
    check_no_adapter(model, folder)
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"model {model!r}: the folder {folder} has no config.json")
    check_causal_lm(model, read_config_json(model, config), allowed)
    if not any(folder.glob("*.safetensors")):
        if not any(folder.glob("*.bin")):
            raise UserError(f"model {model!r}: the folder {folder} has no .safetensors file")
        if PICKLED_WEIGHTS not in allowed:
            raise UserError(
                f"model {model!r}: the folder {folder} has only pickled weights, which can execute "
                f"code; if you trust their author, add `allow: [{PICKLED_WEIGHTS}]` to the model"
            )
    elif missing := [name for name in checkpoint_files(folder) if not (folder / name).is_file()]:
        raise UserError(f"model {model!r}: the folder {folder} has no {missing[0]}; download it again")
    if not has_tokenizer(folder):
        names = ", ".join(_TOKENIZER_FILES)
        raise UserError(f"model {model!r}: the folder {folder} has no tokenizer (one of {names})")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder contains the files of a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def check_no_adapter(model: str, folder: Path) -> None:
    """Raise UserError for a folder with an adapter, which transformers applies if PEFT is installed."""
    names = [name for name in _ADAPTER_FILES if (folder / name).exists()]
    if names:
        raise UserError(
            f"model {model!r}: has a LoRA adapter ({names[0]}), which is not applied; merge it with "
            "PEFT's merge_and_unload() and save the merged model into another folder"
        )


def hash_model(folder: Path, allowed: frozenset[str]) -> str:
    """Hash of the files of a model in a folder."""
    patterns = settings_patterns(allowed)
    if PICKLED_WEIGHTS in allowed:
        patterns += ["*.safetensors", "*.bin"]
    else:
        patterns += checkpoint_files(folder)
    return _hash_files(folder, patterns)


def hash_encoder(folder: Path) -> str:
    """Hash of a sentence encoder, whose modules are in subfolders."""
    return _hash_files(folder, [f"**/{pattern}" for pattern in _ENCODER_PATTERNS])


def _hash_files(folder: Path, patterns: list[str]) -> str:
    # A pipe would be waited for without end; models are loaded from files only.
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return fingerprint({str(path.relative_to(folder)): hash_file(path) for path in files})
