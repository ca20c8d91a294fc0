"""What all parts of a sweep file are: checked, without unknown keys, and never changed."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A mapping of the sweep file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
