"""Reading a sweep file; each error is one line with file, line, key and value."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.config import analysis, comparison, concepts, models
from jobs.config.base import ConfigError, ConfigModel
from jobs.config.sweep import Sweep
from storage.errors import UserError
from storage.store.paths import absolute_path

Location = tuple[str | int, ...]

# parts of pydantic's locations that name a union member instead of a key
_UNION_MEMBER = re.compile(r"^(constrained-)?int$|^str$|^literal\[|^list\[")


def read_sweep(file: Path, store: Path | None = None) -> Sweep:
    """Read and check a sweep file; `store` overrides where the results go.

    Raises UserError with one line per error: file, line, key, value, and what is allowed.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        loader = _UniqueKeyLoader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        content = loader.construct_document(root) if root else None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        prefix = "" if isinstance(error, _DuplicateKeyError) else "is not valid YAML: "
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{file}:{line}: {prefix}{reason}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise UserError(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from error
    if root is None or not isinstance(content, dict):
        raise UserError(f"{file}: has no keys; a sweep needs at least concepts and models")
    if "file" in content:
        line = _find_line(root, ("file",))
        raise UserError(f"{file}:{line}: file: unknown key; {_allowed_keys(('file',))}")
    content.setdefault("name", file.stem)
    if store is not None:
        content["store"] = absolute_path(store)
    try:
        return Sweep.model_validate({**content, "file": file})
    except ValidationError as error:
        has_several_sets = isinstance(content.get("concepts"), list)
        messages: dict[tuple[int, str], str] = {}
        for problem in error.errors():
            location, kind = _locate(dict(problem), has_several_sets)
            key, message = _explain(dict(problem), location, kind)
            line_and_key = _find_line(root, location), key
            # pydantic reports a problem per union member
            previous = messages.get(line_and_key)
            messages[line_and_key] = (
                f"{previous} or {message.removeprefix('expected ')}" if previous else message
            )
        lines = [f"{file}:{line}: {key}{message}" for (line, key), message in sorted(messages.items())]
        raise UserError("\n".join(lines)) from error


class _DuplicateKeyError(yaml.MarkedYAMLError):
    pass


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that rejects duplicate keys, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            if key in keys:
                raise _DuplicateKeyError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


def _find_line(root: yaml.Node, location: Location) -> int:
    """The line of the key or list item at `location`, or else of its closest parent in the file."""
    node, line = root, root.start_mark.line
    for part in location:
        if isinstance(node, yaml.MappingNode):
            children = {key.value: (key, value) for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            children = {index: (item, item) for index, item in enumerate(node.value)}
        else:
            break
        # shorthands lack a level: `similarity: [jaccard]` means `similarity: {measures: [jaccard]}`
        if part in children:
            key, node = children[part]
            line = key.start_mark.line
    return line + 1


def _locate(problem: dict[str, Any], has_several_sets: bool) -> tuple[Location, str | None]:
    """The location of a problem that pydantic found, as in the file, and the tag of its union member."""
    key, *rest = problem["loc"] or ("",)
    kind = None
    if key in ("concepts", "baselines") and len(rest) > 1:
        kind = rest.pop(1)
    error = problem.get("ctx", {}).get("error")
    if isinstance(error, ConfigError):
        rest = [*rest, *error.location]
    location = tuple(part for part in (key, *rest) if not _UNION_MEMBER.search(str(part)))
    if key == "concepts" and not has_several_sets:
        location = (key, *location[2:])
    return tuple(part for part in location if part != ""), kind


def _explain(problem: dict[str, Any], location: Location, kind: str | None) -> tuple[str, str]:
    """The key, with its value unless the key itself is wrong, and the message."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    prefix = f"{path}: " if path else ""
    if problem["type"] == "extra_forbidden":
        return prefix, f"unknown key; {_allowed_keys(location, kind)}"
    if problem["type"] == "missing":
        return prefix, "is missing"
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    message = re.sub("valid dictionary or instance of .*", "mapping", message)
    if isinstance(problem.get("ctx", {}).get("error"), ConfigError):
        return prefix, message
    return f"{prefix}{problem['input']!r}: ", message


def _allowed_keys(location: Location, kind: str | None = None) -> str:
    config_models: dict[str, type[ConfigModel]] = {
        "provided": concepts.ProvidedSentences,
        "harvest": concepts.HarvestedSentences,
        "generate": concepts.GeneratedSentences,
        "vectors": comparison.WordVectorsBaseline,
        "encoder": comparison.SentenceEncoderBaseline,
        "dictionary": comparison.SparseAutoencoderBaseline,
        "models": models.Model,
        "neurons": models.Neurons,
        "experts": analysis.ExpertSettings,
        "human": comparison.HumanData,
        "similarity": analysis.SimilaritySettings,
        "steering": analysis.SteeringSettings,
    }
    model = config_models.get(kind or str(location[0]), Sweep) if len(location) > 1 else Sweep
    allowed = [name for name in model.model_fields if name != "file"]
    matches = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    hint = f"did you mean {matches[0]}? " if matches else ""
    return f"{hint}allowed: {', '.join(allowed)}"
