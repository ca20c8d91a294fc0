"""Base class and errors of the models of a sweep file."""

from __future__ import annotations

from os.path import expanduser
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_COUNT = 1_000_000
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""A whole number that may be 0."""
Gpus = Annotated[float, Field(ge=0, le=1000)]
Item = TypeVar("Item")
_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4000
"""Limits of file systems."""


def _check_path(value: str) -> str:
    encoded = value.encode()
    longest = max(map(len, encoded.split(b"/")))
    if longest > _MAX_NAME_BYTES or len(encoded) > _MAX_PATH_BYTES:
        raise ValueError(f"expected names of at most {_MAX_NAME_BYTES} bytes, got {longest}")
    return value


PathName = Annotated[str, AfterValidator(expanduser), AfterValidator(_check_path)]
"""The path of a file or folder, relative to the sweep file; `~` is the home folder of this machine."""
ModelName = Annotated[str, Field(min_length=1), AfterValidator(_check_path)]
"""The id of a model on the Hugging Face Hub, or the path of a folder or file."""
NonEmpty = Annotated[list[Item], Field(min_length=1)]


class ConfigModel(BaseModel):
    """A mapping of the sweep file: strictly typed, without unknown keys, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ConfigError(ValueError):
    """A violated constraint, with the location of its key below the model that is validated."""

    def __init__(self, message: str, *location: str | int) -> None:
        super().__init__(message)
        self.location = location
