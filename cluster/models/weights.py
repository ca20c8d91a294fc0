"""Resolves a model to exact weights and makes them available locally.

Every source becomes a folder with a configuration, a tokenizer and safetensors files. GGUF files are
converted, and random-init models initialized, once per machine, into a cache keyed by the identity.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import platformdirs

from cluster.models import hub
from storage.assets import ASSETS
from storage.errors import UserError
from storage.store.commit import fsync
from storage.store.fingerprint import fingerprint, hash_file

RANDOM_INIT = "random-init"
MAIN = "main"
PICKLED_WEIGHTS = "pickled-weights"
REMOTE_CODE = "remote-code"

_RANDOM_SEED = 0
_CAUSAL_LM_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_MODEL_FILE_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Weights:
    """A model resolved at one revision; equal `identity` means identical weights."""

    model: str
    revision: str
    identity: str
    source: str  # "folder", "gguf" or "hub"
    location: str  # folder, file or hub id
    commit: str | None = None
    allowed: frozenset[str] = frozenset()

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code shipped with the model may run."""
        return REMOTE_CODE in self.allowed

    @property
    def is_random_init(self) -> bool:
        return self.revision == RANDOM_INIT

    @property
    def label(self) -> str:
        return f"{self.model}@{self.revision}"


def resolve(model: str, revision: str, base_dir: Path, allowed: frozenset[str] = frozenset()) -> Weights:
    """Resolve a model: a known asset, a folder, a GGUF file, or a Hugging Face Hub id.

    Downloads only the configuration. Paths are relative to `base_dir`. `allowed` may contain
    PICKLED_WEIGHTS and REMOTE_CODE, both of which execute code by the model's author.

    Raises:
        UserError: if the model is not found, is not a causal language model, or needs something that is
            not allowed.
    """
    return replace(_resolve_source(model, revision, base_dir, allowed), allowed=allowed)


def _resolve_source(model: str, revision: str, base_dir: Path, allowed: frozenset[str]) -> Weights:
    path = (base_dir / Path(model).expanduser()).resolve()
    is_asset = model in ASSETS and ASSETS[model].file.endswith(".gguf")
    if is_asset or (path.is_file() and path.suffix == ".gguf"):
        if revision not in (MAIN, RANDOM_INIT):
            raise _unknown_revision_error(model, revision, [])
        if is_asset:
            return _local_weights(model, revision, "gguf", ASSETS[model].path(), ASSETS[model].sha256)
        return _local_weights(model, revision, "gguf", path, hash_file(path))
    if path.is_dir():
        if revision not in (MAIN, RANDOM_INIT):
            checkpoints = _checkpoint_names(path)
            if revision not in checkpoints:
                raise _unknown_revision_error(model, revision, checkpoints)
            path /= revision
        _check_folder(model, path, allowed)
        digest = _hash_folder(path, _file_patterns(allowed))
        return _local_weights(model, revision, "folder", path, digest)
    if model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1:
        raise UserError(f"model {model!r}: no such file or folder: {path}")
    return _resolve_on_hub(model, revision, allowed)


def local_revisions(model: str, base_dir: Path) -> list[str] | None:
    """Revisions of an asset, file or folder; None for a model on the hub."""
    path = base_dir / Path(model).expanduser()
    if model in ASSETS or not path.is_dir():
        return [MAIN] if model in ASSETS or path.exists() else None
    return [MAIN, *_checkpoint_names(path)]


def resolve_encoder(model: str, revision: str, base_dir: Path) -> Weights:
    """Resolve a sentence encoder: a known asset, a folder (hashed recursively), or a hub id.

    Raises UserError if it is not found.
    """
    path = (base_dir / Path(model).expanduser()).resolve()
    if model in ASSETS:
        path = ASSETS[model].path().parent
    if path.is_dir():
        digest = _hash_folder(path, [f"**/{pattern}" for pattern in _MODEL_FILE_PATTERNS])
        return _local_weights(model, revision, "folder", path, digest)
    commit = hub.list_revisions(model).get(revision) or _resolve_commit(model, revision)
    return Weights(model, revision, f"commit:{commit}", "hub", model, commit)


def ensure_local(weights: Weights) -> Path:
    """Return the local folder of the weights, creating it if needed."""
    if weights.source == "hub":
        folder = _download(weights)
    elif weights.source == "gguf":
        convert = partial(_convert_gguf, Path(weights.location))
        folder = _build_in_cache(_gguf_cache_name(weights), convert)
    else:
        folder = Path(weights.location)
    if not weights.is_random_init:
        return folder
    initialize = partial(_init_random_weights, folder, trust_remote_code=weights.trust_remote_code)
    return _build_in_cache(fingerprint({"random": weights.identity}), initialize)


def available_config(weights: Weights) -> dict[str, Any]:
    """Content of config.json, or empty if slow to obtain (custom code, or GGUF not yet converted)."""
    if weights.trust_remote_code:
        return {}
    if weights.source == "hub":
        return hub.fetch_config(weights.location, weights.commit or MAIN)
    is_folder = weights.source == "folder"
    folder = Path(weights.location) if is_folder else _cache_folder(_gguf_cache_name(weights))
    path = folder / "config.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def load_config(weights: Weights) -> Any:
    """Load the model's configuration without its weights."""
    return _load_config(weights.source, weights.location, weights.commit, weights.trust_remote_code)


@cache
def _load_config(source: str, location: str, commit: str | None, trust_remote_code: bool) -> Any:
    # Cached: all revisions of a GGUF file share one configuration, which is slow to read.
    from transformers import AutoConfig

    if source == "gguf":
        file = Path(location)
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    return AutoConfig.from_pretrained(location, revision=commit, trust_remote_code=trust_remote_code)


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """Load the configuration of a model in a folder. Raises UserError if it is unreadable."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: config.json cannot be read: {error}".splitlines()[0]) from error


def check_causal_lm(model: str, config: dict[str, Any], allowed: frozenset[str] = frozenset()) -> None:
    """Raise UserError unless a config.json is of a causal language model whose code may run."""
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    has_code = "AutoModelForCausalLM" in (config.get("auto_map") or {})
    is_causal = bool(model_type and architectures and architectures[0].endswith(_CAUSAL_LM_SUFFIXES))
    if (has_code and REMOTE_CODE in allowed) or (is_causal and not has_code):
        return
    # Imported only when needed because it is slow.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if has_code and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"model {model!r}: requires remote code, which is disabled; if you trust its author, "
            f"add `allow: [{REMOTE_CODE}]` to the model"
        )
    if is_causal:
        return
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"model {model!r}: is not a causal language model (model_type {model_type!r})")
    values = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    class_names = {name for value in values for name in ([value] if isinstance(value, str) else value)}
    if architectures and not class_names.intersection(architectures):
        name = architectures[0]
        raise UserError(f"model {model!r}: is not a causal language model (architecture {name})")


def _checkpoint_names(folder: Path) -> list[str]:
    return sorted(config.parent.name for config in folder.glob("*/config.json"))


def _unknown_revision_error(model: str, revision: str, checkpoints: list[str]) -> UserError:
    revisions = ", ".join([MAIN, RANDOM_INIT, *checkpoints])
    return UserError(f"model {model!r}: has no revision {revision!r}; this local model has {revisions}")


def _local_weights(model: str, revision: str, source: str, path: Path, digest: str) -> Weights:
    return Weights(model, revision, _identity(f"sha256:{digest}", revision), source, str(path))


def _identity(source_identity: str, revision: str) -> str:
    return source_identity + (f"+{RANDOM_INIT}:{_RANDOM_SEED}" if revision == RANDOM_INIT else "")


def _check_folder(model: str, folder: Path, allowed: frozenset[str]) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"model {model!r}: the folder {folder} has no config.json")
    try:
        content = json.loads(config.read_text())
    except ValueError as error:
        raise UserError(f"model {model!r}: {config} is not valid JSON: {error}") from error
    check_causal_lm(model, content, allowed)
    if not any(folder.glob("*.safetensors")):
        if not any(folder.glob("*.bin")):
            raise UserError(f"model {model!r}: the folder {folder} has no .safetensors file")
        if PICKLED_WEIGHTS not in allowed:
            raise UserError(
                f"model {model!r}: the folder {folder} has only pickled weights, which can execute "
                f"code; if you trust their author, add `allow: [{PICKLED_WEIGHTS}]` to the model"
            )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        names = ", ".join(_TOKENIZER_FILES)
        raise UserError(f"model {model!r}: the folder {folder} has no tokenizer (one of {names})")


def _file_patterns(allowed: frozenset[str]) -> list[str]:
    """Glob patterns of the files that make up a model."""
    pickles = ["*.bin"] if PICKLED_WEIGHTS in allowed else []
    return _MODEL_FILE_PATTERNS + pickles + (["*.py"] if REMOTE_CODE in allowed else [])


def _hash_folder(folder: Path, patterns: list[str]) -> str:
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    return fingerprint({str(path.relative_to(folder)): hash_file(path) for path in files})


def _resolve_on_hub(model: str, revision: str, allowed: frozenset[str]) -> Weights:
    trained = MAIN if revision == RANDOM_INIT else revision
    commit = hub.list_revisions(model).get(trained) or _resolve_commit(model, trained)
    check_causal_lm(model, hub.fetch_config(model, commit), allowed)
    return Weights(model, revision, _identity(f"commit:{commit}", revision), "hub", model, commit)


def _resolve_commit(model: str, revision: str) -> str:
    """Commit of a revision that is neither a branch nor a tag: a full or abbreviated hash."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    try:
        # Works offline from the cache; the folder is named after the commit.
        return Path(snapshot_download(model, revision=revision, allow_patterns=["config.json"])).name
    except RevisionNotFoundError as error:
        raise UserError(f"model {model!r}: has no revision {revision!r} on the hub") from error
    except (HfHubHTTPError, OSError) as error:
        raise hub.unavailable_error(model, error) from error


def _download(weights: Weights) -> Path:
    from huggingface_hub import snapshot_download

    patterns = _file_patterns(weights.allowed)
    folder = Path(snapshot_download(weights.location, revision=weights.commit, allow_patterns=patterns))
    if not any(folder.glob("*.safetensors")) and PICKLED_WEIGHTS not in weights.allowed:
        raise UserError(
            f"model {weights.model!r}: has no .safetensors file on the hub; pickled weights can execute "
            f"code; if you trust their author, add `allow: [{PICKLED_WEIGHTS}]` to the model"
        )
    return folder


def _gguf_cache_name(weights: Weights) -> str:
    # The random-init control shares the conversion, so its suffix is dropped.
    return fingerprint({"gguf": weights.identity.split("+")[0]})


def _cache_folder(name: str) -> Path:
    return Path(platformdirs.user_cache_dir("neuralign")) / "models" / name


def _build_in_cache(name: str, build: Callable[[Path], None]) -> Path:
    final = _cache_folder(name)
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=final.parent))
    try:
        build(target)
        for path in target.iterdir():
            fsync(path)
        try:
            target.rename(final)
        except OSError:
            # Another process finished first; its result is identical.
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return final


def _convert_gguf(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: is not a GGUF file of a causal language model: {error}") from error
    # The weights are dequantized, so save no trace of quantization.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)


def _init_random_weights(trained: Path, target: Path, trust_remote_code: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(trained, trust_remote_code)
    torch.manual_seed(_RANDOM_SEED)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    model.to(config.dtype or torch.float32).save_pretrained(target)
    for path in trained.iterdir():
        if path.suffix not in (".safetensors", ".bin") and not (target / path.name).exists():
            shutil.copy(path, target / path.name)
