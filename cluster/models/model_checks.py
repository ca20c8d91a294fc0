"""Checks a model before its weights are read: configuration, tokenizer and headers of its files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.models import gguf, hub
from cluster.models.checkpoint import checkpoint_files
from cluster.models.divisible import check_shards
from cluster.models.gguf_tokenizer import build_tokenizer
from cluster.models.model_config import read_config
from cluster.models.model_files import has_tokenizer
from cluster.models.weights import MAIN, Weights, converted_settings
from storage.errors import UserError

if TYPE_CHECKING:
    from cluster.models.tokenizer import InputOptions, Tokenizer


def check_model(weights: Weights, options: InputOptions, n_shards: int | None) -> Tokenizer | None:
    """Raise UserError for what loading a model would reject before it reads weights.

    Of a model on the hub, files that are not downloaded yet are not checked, other than configuration
    and tokenizer. Returns the tokenizer; None offline, if it is not downloaded.
    """
    from cluster.models.shard import token_limit
    from cluster.models.tokenizer import Tokenizer

    with _settings_folder(weights) as folder:
        if weights.source == "gguf":
            config = gguf.read_gguf_config(Path(weights.location))
        else:
            config = read_config(folder, weights.trust_remote_code)
            _check_quantization(config)
        if n_shards is not None:
            check_shards(config, n_shards)
        if _has_weights(folder, weights) and not hasattr(config, "quantization_config"):
            _check_weights(folder, config)
        if weights.source == "hub" and not has_tokenizer(folder) and hub.is_offline():
            return None
        text_config = config.get_text_config()
        tokenizer = Tokenizer(folder, token_limit(text_config), weights.trust_remote_code)
    tokenizer.check_options(options)
    for number, token in tokenizer.tokens_beyond(text_config.vocab_size).items():
        raise UserError(
            f"its tokenizer has the token {token!r} with id {number}, but its embedding table has "
            f"{text_config.vocab_size} rows; remove the token or resize the table"
        )
    return tokenizer


@contextmanager
def _settings_folder(weights: Weights) -> Iterator[Path]:
    """A folder with a model's configuration and tokenizer, and weights if they are on this machine."""
    if weights.source == "hub":
        yield hub.download_settings(weights.location, weights.commit or MAIN, weights.allowed)
    elif weights.source == "folder":
        yield Path(weights.location)
    elif folder := converted_settings(weights):
        yield folder
    else:
        header = gguf.check_gguf(Path(weights.location))
        with tempfile.TemporaryDirectory() as name:
            build_tokenizer(header).save_pretrained(name)
            yield Path(name)


def _has_weights(folder: Path, weights: Weights) -> bool:
    """Whether a folder has the complete safetensors files of a model that needs no code of its own."""
    if weights.trust_remote_code or weights.source == "gguf":
        return False
    return all((folder / name).is_file() for name in checkpoint_files(folder))


def _check_quantization(config: Any) -> None:
    """Raise UserError for quantized weights whose package is not installed."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    try:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"its weights are quantized: {error}".splitlines()[0]) from error
    except RuntimeError:
        # Requires a GPU, which the cluster may have.
        return


def _check_weights(folder: Path, config: Any) -> None:
    """Raise UserError unless the headers list every weight that is read, in its shape."""
    from transformers.utils import logging

    from cluster.models.partial_model import find_missing_weights, missing_error

    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        missing = find_missing_weights(folder, config)
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
    if missing:
        raise missing_error(folder, missing)
