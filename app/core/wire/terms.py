"""Types that all requests and responses share. A request refuses unknown fields."""

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from app.core.names import NAME, REFERENCE

T = TypeVar("T")
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$", examples=["digits"])]
ModelReference = Annotated[str, Field(pattern=f"^{REFERENCE.pattern}$", examples=["demo-vae", "demo-vae@0123abcd"])]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Links = dict[str, str]
Layout = Literal["plain", "labelled", "paired", "unpaired", "segmentation", "attributes", "detection"]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Page(BaseModel, Generic[T]):
    data: list[T]
    next_cursor: str | None = Field(None, description="Value of `cursor` for the next page; null on the last page.")
