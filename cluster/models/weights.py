"""Where a model's weights come from, and what they are: the same bytes have the same identity.

Every source ends as a folder with a configuration, a tokenizer and safetensors files. A GGUF file is
converted, and a random-init model drawn, once per machine into a cache named by the identity.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from cluster.models import hub
from storage.assets import ASSETS
from storage.errors import UserError
from storage.store.commit import sync
from storage.store.fingerprint import fingerprint, hash_file

RANDOM_INIT = "random-init"
MAIN = "main"
PICKLED_WEIGHTS = "pickled-weights"
REMOTE_CODE = "remote-code"

_RANDOM_SEED = 0
_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Weights:
    """A model at one revision, resolved: `identity` stands for the very numbers."""

    model: str
    revision: str
    identity: str
    source: str  # "folder", "gguf" or "hub"
    location: str  # the folder, the file, or the hub's id
    commit: str | None = None
    allowed: frozenset[str] = frozenset()

    @property
    def remote_code(self) -> bool:
        """Whether Python code that comes with the model may run."""
        return REMOTE_CODE in self.allowed

    @property
    def random(self) -> bool:
        return self.revision == RANDOM_INIT

    @property
    def label(self) -> str:
        return f"{self.model}@{self.revision}"


def resolve(model: str, revision: str, beside: Path, allowed: frozenset[str] = frozenset()) -> Weights:
    """Find a model: a known asset, a folder, a GGUF file, or an id on the Hugging Face hub.

    Paths are relative to the folder `beside`. `allowed` may hold PICKLED_WEIGHTS and REMOTE_CODE: both
    run what the model's author wrote. Downloads nothing but the configuration.
    Raises UserError when the model cannot be found, is no causal language model or needs what is not
    allowed.
    """
    return replace(_find(model, revision, beside, allowed), allowed=allowed)


def _find(model: str, revision: str, beside: Path, allowed: frozenset[str]) -> Weights:
    path = (beside / Path(model).expanduser()).resolve()
    known = model in ASSETS and ASSETS[model].file.endswith(".gguf")
    if known or (path.is_file() and path.suffix == ".gguf"):
        if revision not in (MAIN, RANDOM_INIT):
            raise _no_revision(model, revision, [])
        if known:
            return _local(model, revision, "gguf", ASSETS[model].path(), ASSETS[model].sha256)
        return _local(model, revision, "gguf", path, hash_file(path))
    if path.is_dir():
        path = path if revision in (MAIN, RANDOM_INIT) else _checkpoint(model, path, revision)
        _check_folder(model, path, allowed)
        return _local(model, revision, "folder", path, _hash_folder(path, allowed))
    if model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1:
        raise UserError(f"model {model!r}: there is no file or folder {path}")
    return _on_hub(model, revision, allowed)


def local_revisions(model: str, beside: Path) -> list[str] | None:
    """The revisions of an asset, a file or a folder; None for a model on the hub."""
    path = beside / Path(model).expanduser()
    if model in ASSETS or not path.is_dir():
        return [MAIN] if model in ASSETS or path.exists() else None
    return [MAIN, *_checkpoints(path)]


def resolve_encoder(model: str, revision: str, beside: Path) -> Weights:
    """Find a sentence encoder: a known asset, a folder with all that is below it, or an id on the
    Hugging Face hub. Raises UserError when it cannot be found."""
    path = (beside / Path(model).expanduser()).resolve()
    if model in ASSETS:
        path = ASSETS[model].path().parent
    if path.is_dir():
        files = {file for pattern in _FILES for file in path.rglob(pattern)}
        digest = fingerprint({str(file.relative_to(path)): hash_file(file) for file in files})
        return _local(model, revision, "folder", path, digest)
    commit = hub.commits(model).get(revision) or _named_commit(model, revision)
    return Weights(model, revision, f"commit:{commit}", "hub", model, commit)


def materialise(weights: Weights) -> Path:
    """The folder of the weights on this machine, made when it is not there yet."""
    if weights.source == "hub":
        folder = _download(weights)
    elif weights.source == "gguf":
        name = _converted_name(weights)
        folder = _cached(name, lambda target: _convert_gguf(Path(weights.location), target))
    else:
        folder = Path(weights.location)
    if weights.random:
        name = fingerprint({"random": weights.identity})
        trained = folder
        folder = _cached(name, lambda target: _draw_random(trained, target, weights.remote_code))
    return folder


def known_config(weights: Weights) -> dict[str, Any]:
    """The content of config.json where it is quickly had; empty for a model with code of its own and for
    a GGUF file that was not converted yet."""
    if weights.remote_code:
        return {}
    if weights.source == "hub":
        return hub.config_of(weights.location, weights.commit or MAIN)
    folder = Path(weights.location) if weights.source == "folder" else _cache(_converted_name(weights))
    file = folder / "config.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def load_config(weights: Weights) -> Any:
    """The model's configuration, without its weights."""
    return _config(weights.source, weights.location, weights.commit, weights.remote_code)


@cache
def _config(source: str, location: str, commit: str | None, remote_code: bool) -> Any:
    # all revisions of a GGUF file have one configuration, and it is slow to read
    from transformers import AutoConfig

    if source == "gguf":
        file = Path(location)
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    return AutoConfig.from_pretrained(location, revision=commit, trust_remote_code=remote_code)


def read_config(folder: Path, remote_code: bool) -> Any:
    """The configuration of a model in a folder. Raises UserError where it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: config.json cannot be read: {error}".splitlines()[0]) from error


def check_causal_lm(model: str, config: dict[str, Any], allowed: frozenset[str] = frozenset()) -> None:
    """Raise UserError unless the configuration is that of a causal language model, whose code is
    transformers' own or allowed to run."""
    kind = config.get("model_type")
    classes = config.get("architectures") or []
    if "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        if REMOTE_CODE in allowed:
            return
        if kind not in _known_types():
            raise UserError(
                f"model {model!r}: comes with Python code of its own, which is not run; if you trust "
                f"its author, give the model `allow: [{REMOTE_CODE}]`"
            )
    if kind and classes and classes[0].endswith(_CAUSAL_ENDINGS):
        return
    known = _known_types()
    if kind not in known:
        raise UserError(f"model {model!r}: is no causal language model (model_type is {kind!r})")
    causal = {name for names in known.values() for name in _names(names)}
    if classes and not causal.intersection(classes):
        raise UserError(
            f"model {model!r}: is no causal language model (its architecture is {classes[0]})"
        )


def _known_types() -> dict[str, Any]:
    # slow to load
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known: dict[str, Any] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known


def _names(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _checkpoint(model: str, folder: Path, revision: str) -> Path:
    """The subfolder of a model's folder that holds one of its revisions."""
    there = _checkpoints(folder)
    if revision not in there:
        raise _no_revision(model, revision, there)
    return folder / revision


def _checkpoints(folder: Path) -> list[str]:
    return sorted(config.parent.name for config in folder.glob("*/config.json"))


def _no_revision(model: str, revision: str, others: list[str]) -> UserError:
    known = ", ".join([MAIN, RANDOM_INIT, *others])
    return UserError(f"model {model!r}: has no revision {revision!r}; this local model has {known}")


def _local(model: str, revision: str, source: str, path: Path, digest: str) -> Weights:
    return Weights(model, revision, _identity(f"sha256:{digest}", revision), source, str(path))


def _identity(bytes_identity: str, revision: str) -> str:
    if revision == RANDOM_INIT:
        return f"{bytes_identity}+{RANDOM_INIT}:{_RANDOM_SEED}"
    return bytes_identity


def _check_folder(model: str, folder: Path, allowed: frozenset[str]) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"model {model!r}: the folder {folder} has no config.json")
    try:
        content = json.loads(config.read_text())
    except ValueError as error:
        raise UserError(f"model {model!r}: {config} is no JSON: {error}") from error
    check_causal_lm(model, content, allowed)
    _check_pickles(model, folder, allowed)
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise UserError(
            f"model {model!r}: the folder {folder} has no tokenizer (one of {', '.join(_VOCABULARIES)})"
        )


def _check_pickles(model: str, folder: Path, allowed: frozenset[str]) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if not any(folder.glob("*.bin")):
        raise UserError(f"model {model!r}: the folder {folder} has no .safetensors file")
    if PICKLED_WEIGHTS not in allowed:
        raise UserError(
            f"model {model!r}: the folder {folder} has pickled weights only, which can hide "
            f"code; if you trust their author, give the model `allow: [{PICKLED_WEIGHTS}]`"
        )


def _files(allowed: frozenset[str]) -> list[str]:
    """Patterns of the files that make a model."""
    pickles = ["*.bin"] if PICKLED_WEIGHTS in allowed else []
    return _FILES + pickles + (["*.py"] if REMOTE_CODE in allowed else [])


def _hash_folder(folder: Path, allowed: frozenset[str]) -> str:
    files = {path for pattern in _files(allowed) for path in folder.glob(pattern)}
    return fingerprint({path.name: hash_file(path) for path in files})


def _on_hub(model: str, revision: str, allowed: frozenset[str]) -> Weights:
    asked = MAIN if revision == RANDOM_INIT else revision
    commit = hub.commits(model).get(asked) or _named_commit(model, asked)
    check_causal_lm(model, hub.config_of(model, commit), allowed)
    identity = _identity(f"commit:{commit}", revision)
    return Weights(model, revision, identity, "hub", model, commit)


def _named_commit(model: str, revision: str) -> str:
    """The commit of a revision that is neither branch nor tag: a hash, or the start of one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    try:
        # with no network this finds what was downloaded before; the folder's name is the commit
        return Path(snapshot_download(model, revision=revision, allow_patterns=["config.json"])).name
    except RevisionNotFoundError as error:
        raise UserError(f"model {model!r}: has no revision {revision!r} on the hub") from error
    except (HfHubHTTPError, OSError) as error:
        raise hub.not_given(model, error) from error


def _download(weights: Weights) -> Path:
    from huggingface_hub import snapshot_download

    patterns = _files(weights.allowed)
    folder = Path(snapshot_download(weights.location, revision=weights.commit, allow_patterns=patterns))
    if not any(folder.glob("*.safetensors")) and PICKLED_WEIGHTS not in weights.allowed:
        raise UserError(
            f"model {weights.model!r}: the hub has no .safetensors file of it; pickled weights can hide "
            f"code: if you trust their author, give the model `allow: [{PICKLED_WEIGHTS}]`"
        )
    return folder


def _converted_name(weights: Weights) -> str:
    # the plain weights serve the random-init control too, so their name leaves it out
    return fingerprint({"gguf": weights.identity.split("+")[0]})


def _cache(name: str) -> Path:
    return Path(platformdirs.user_cache_dir("neuralign")) / "models" / name


def _cached(name: str, make: Any) -> Path:
    final = _cache(name)
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=final.parent))
    try:
        make(target)
        for path in target.iterdir():
            sync(path)
        try:
            target.rename(final)
        except OSError:
            # another process was first; what it made is the same
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return final


def _convert_gguf(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: is no GGUF file of a causal language model: {error}") from error
    # the numbers are no longer quantised, so nothing may say that they are
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def _draw_random(trained: Path, target: Path, remote_code: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(trained, remote_code)
    torch.manual_seed(_RANDOM_SEED)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=remote_code)
    model.to(config.dtype or torch.float32).save_pretrained(target)
    for path in trained.iterdir():
        if path.suffix not in (".safetensors", ".bin") and not (target / path.name).exists():
            shutil.copy(path, target / path.name)
