"""Reading a sweep file, and one line for each thing that is wrong with it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.config.analysis import Experts, Similarity, Steering
from jobs.config.base import Part
from jobs.config.comparison import Human, Latents, SentenceEncoder, WordVectors
from jobs.config.concepts import Brought, Generate, Harvest
from jobs.config.models import Model, Neurons
from jobs.config.sweep import Sweep
from storage.errors import UserError
from storage.store.paths import absolute


def read_sweep(file: Path, store: Path | None = None) -> Sweep:
    """Read and check a sweep file; `store` overrides where the results go.

    Raises UserError that names the file, the key, the value given and what is allowed.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text: {error.reason}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no keys; a sweep needs at least concepts and models")
    if "file" in content:
        raise UserError(f"{file}: file: unknown key; {_allowed_keys(('file',))}")
    content.setdefault("name", file.stem)
    if store is not None:
        content["store"] = absolute(store)
    one_set = not isinstance(content.get("concepts"), list)
    try:
        return Sweep.model_validate({**content, "file": file})
    except ValidationError as error:
        raise UserError(
            "\n".join(f"{file}: {_explain(dict(problem), one_set)}" for problem in error.errors())
        ) from error


_UNION_MEMBER = re.compile(r"^(constrained-)?int$|^literal\[|^list\[")


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _explain(problem: dict[str, Any], one_set: bool) -> str:
    """One line for one problem that pydantic found; where there is one concept set, it has no number."""
    key, *rest = problem["loc"] or ("",)
    # the parts that name a member of a union are no keys of the user's
    kind = rest[1] if key in ("concepts", "baselines") and len(rest) > 1 else None
    location = tuple(
        part for part in problem["loc"] if part != kind and not _UNION_MEMBER.search(str(part))
    )
    if key == "concepts" and one_set:
        location = (key, *location[2:])
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    where = f"{where.lstrip('.')}: " if where else ""
    if problem["type"] == "extra_forbidden":
        return f"{where}unknown key; {_allowed_keys(location, kind)}"
    if problem["type"] == "missing":
        return f"{where}is missing; give it a value"
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    if problem["type"] == "value_error" and not where:
        return message
    return f"{where}{problem['input']!r}: {message}"


def _allowed_keys(location: tuple[Any, ...], kind: str | None = None) -> str:
    parts: dict[str, type[Part]] = {
        "brought": Brought,
        "harvest": Harvest,
        "generate": Generate,
        "vectors": WordVectors,
        "encoder": SentenceEncoder,
        "dictionary": Latents,
        "models": Model,
        "neurons": Neurons,
        "experts": Experts,
        "human": Human,
        "similarity": Similarity,
        "steering": Steering,
    }
    owner = parts.get(kind or str(location[0]), Sweep) if len(location) > 1 else Sweep
    allowed = [name for name in owner.model_fields if name != "file"]
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"
