"""The base of every config section, and the value types that sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Channels = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Stride = Annotated[int, Field(ge=1, le=16)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Box3d = tuple[float, float, float, float, float, float]  # x, y, z minimum, then maximum


class Section(BaseModel):
    """Base of every section: immutable, finite, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
