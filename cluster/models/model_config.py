"""Configurations of models: reading them, and whether they are of a causal language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.models.config_values import check_values
from storage.errors import NeuralignError, UserError, describe_error
from storage.readers.strict_json import parse_json

REMOTE_CODE = "remote-code"

_CAUSAL_LM_SUFFIXES = ("ForCausalLM", "LMHeadModel")


def read_config(folder: str | Path, trust_remote_code: bool, commit: str | None = None) -> Any:
    """Load the configuration of a model in a folder, or on the hub at a commit.

    Raises UserError if it is unreadable, or of an architecture that transformers lacks.
    """
    from transformers import AutoConfig, PretrainedConfig

    with errors_of_libraries(f"{folder}: config.json cannot be read"):
        config = AutoConfig.from_pretrained(folder, revision=commit, trust_remote_code=trust_remote_code)
        if not isinstance(config.get_text_config(), PretrainedConfig):
            raise ValueError("its text_config is not that of a model")
        return config


def read_config_json(model: str, file: Path) -> dict[str, Any]:
    """The content of a model's config.json. Raises UserError for values of the wrong type or size."""
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise UserError(f"model {model!r}: {file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"model {model!r}: {file} is not a JSON object; download it again")
    check_values(f"model {model!r}: {file}", content)
    return content


@contextmanager
def errors_of_libraries(problem: str) -> Iterator[None]:
    """Turn any error of transformers into a UserError: with wrong values, hundreds of architectures fail
    in ways of their own."""
    try:
        yield
    except NeuralignError:
        raise
    except Exception as error:
        is_message = isinstance(error, OSError | ValueError)
        reason = str(error).split("\n")[0] if is_message else describe_error(error)
        raise UserError(f"{problem}: {reason}") from error


def _is_known(model_type: str | None) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def check_causal_lm(model: str, config: dict[str, Any], allowed: frozenset[str] = frozenset()) -> None:
    """Raise UserError unless a config.json is of a causal language model, or of a model of text and
    images that contains one, and its code may run."""
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    code = config.get("auto_map") or {}
    has_code = "AutoModelForCausalLM" in code or ("AutoConfig" in code and not _is_known(model_type))
    is_causal = bool(model_type and architectures and architectures[0].endswith(_CAUSAL_LM_SUFFIXES))
    if (has_code and REMOTE_CODE in allowed) or (is_causal and not has_code):
        return
    # Imported only when needed because it is slow.
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    if has_code and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"model {model!r}: requires remote code, which is disabled; if you trust its author, "
            f"add `allow: [{REMOTE_CODE}]` to the model"
        )
    if is_causal:
        return
    mappings = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if not config.get("is_encoder_decoder"):
        mappings.append(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    if not any(model_type in mapping for mapping in mappings):
        raise UserError(f"model {model!r}: is not a causal language model (model_type {model_type!r})")
    values = [value for mapping in mappings for value in mapping.values()]
    class_names = {name for value in values for name in ([value] if isinstance(value, str) else value)}
    if architectures and not class_names.intersection(architectures):
        name = architectures[0]
        raise UserError(f"model {model!r}: is not a causal language model (architecture {name})")
