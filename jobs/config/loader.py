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

_MAX_VALUES = 1_000_000
_INVALID_CHARACTERS = re.compile("[\0\ud800-\udfff]")
"""NUL, and halves of characters, which YAML's escapes can write."""

# parts of pydantic's locations that name a union member instead of a key
_UNION_MEMBER = re.compile(r"^(constrained-)?int$|^str$|^function-|^literal\[|^list\[")


def read_sweep(file: Path, store: Path | None = None) -> Sweep:
    """Read and check a sweep file; `store` overrides where the results go.

    Raises UserError with one line per error: file, line, key, value, and what is allowed.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    content, root = _read_yaml(file)
    if not isinstance(content, dict):
        line = _find_line(root, ())
        raise UserError(f"{file}:{line}: has no keys; a sweep needs at least concepts and models")
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
        problems = [
            (dict(problem), *_locate(dict(problem), has_several_sets)) for problem in error.errors()
        ]
        parents = {location[:end] for _, location, _ in problems for end in range(len(location))}
        messages: dict[tuple[int, str], str] = {}
        # pydantic reports a problem per union member; the one inside the value is the relevant one
        for problem, location, kind in problems:
            if location in parents:
                continue
            key, message = _explain(problem, location, kind)
            line_and_key = _find_line(root, location), key
            previous = messages.get(line_and_key)
            messages[line_and_key] = (
                f"{previous} or {message.removeprefix('expected ')}" if previous else message
            )
        lines = [f"{file}:{line}: {key}{message}" for (line, key), message in sorted(messages.items())]
        raise UserError(*lines) from error


def _read_yaml(file: Path) -> tuple[Any, yaml.Node | None]:
    """The content of a file, and its nodes with their lines. Raises UserError with the line."""
    raw = file.read_bytes()
    try:
        text = raw.decode()
        content = yaml.load(text, _StrictLoader)  # noqa: S506
        _check_size(content)
        return content, yaml.compose(text, _LineLoader)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: is not UTF-8 text: {error.reason}") from error
    except RecursionError as error:
        raise UserError(f"{file}: is nested too deeply") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{file}:{line}: is not valid YAML: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        prefix = "" if isinstance(error, _InvalidKeyError) else "is not valid YAML: "
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{file}:{line}: {prefix}{reason}") from error


def _check_size(content: Any) -> None:
    """Raise YAMLError for aliases of aliases, which a short file can repeat until memory is full."""
    sizes: dict[int, int] = {}

    def measure(value: Any) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in sizes:
            # until it is known; a list that contains itself has no size
            sizes[id(value)] = _MAX_VALUES
            items = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(map(measure, items))
        return sizes[id(value)]

    if measure(content) > _MAX_VALUES:
        raise yaml.MarkedYAMLError(problem=f"its aliases repeat more than {_MAX_VALUES:,} values")


class _InvalidKeyError(yaml.MarkedYAMLError):
    pass


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML whose keys are strings, each used once; YAML would silently use the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                message = f"the key {key.value} is not a string; put it in quotes"
                raise _InvalidKeyError(None, None, message, key.start_mark)
            if not key.value:
                raise _InvalidKeyError(None, None, "a key is empty", key.start_mark)
            if key.value in keys:
                raise _InvalidKeyError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            keys.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # such as an impossible date, or text marked as one
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            is_message = isinstance(error, ValueError | LookupError)
            problem = str(error) if is_message else f"it is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(None, None, problem, node.start_mark) from error

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and _INVALID_CHARACTERS.search(value):
            raise _InvalidKeyError(None, None, f"{value!r} is not valid text", node.start_mark)
        return value


class _LineLoader(yaml.SafeLoader):
    """Composes aliases as leaves: errors in an aliased value get the line of the alias."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.get_event()  # type: ignore[no-untyped-call]
            return yaml.ScalarNode("", "", alias.start_mark)
        return super().compose_node(parent, index)


def _find_line(root: yaml.Node | None, location: Location) -> int:
    """The line of the key or list item at `location`, or else of its closest parent in the file."""
    node, line = root, root.start_mark.line if root else 0
    for part in location:
        if isinstance(node, yaml.MappingNode):
            children = {key.value: (key, value) for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            children = {index: (item, item) for index, item in enumerate(node.value)}
        else:
            break
        # shorthands lack a level: `similarity: [jaccard]` means `similarity: {measures: [jaccard]}`
        if child := children.get(part) or children.get("<<"):
            key, node = child
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
