"""Base class and errors of the models of a sweep file."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Item = TypeVar("Item")
NonEmpty = Annotated[list[Item], Field(min_length=1)]


class ConfigModel(BaseModel):
    """A mapping of the sweep file: strictly typed, without unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class ConfigError(ValueError):
    """A violated constraint, with the location of its key below the model that is validated."""

    def __init__(self, message: str, *location: str | int) -> None:
        super().__init__(message)
        self.location = location
