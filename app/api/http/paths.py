"""Parts of addresses."""

from typing import Annotated

from fastapi import Path, Query

from app.core.names import NAME, REFERENCE

ModelPath = Annotated[
    str,
    Path(
        description="A model's name, or `name@digest` (8 digits or more) for one version.",
        json_schema_extra={"pattern": f"^{REFERENCE.pattern}$"},
        examples=["demo-vae"],
    ),
]
DatasetPath = Annotated[
    str, Path(description="A dataset's name.", json_schema_extra={"pattern": f"^{NAME.pattern}$"}, examples=["mnist5k"])
]
PerturbationPath = Annotated[
    str,
    Path(description="A perturbation's name.", json_schema_extra={"pattern": f"^{NAME.pattern}$"}, examples=["shift"]),
]
OraclePath = Annotated[
    str, Path(description="An oracle's name.", json_schema_extra={"pattern": f"^{NAME.pattern}$"}, examples=["clinic"])
]
JobPath = Annotated[str, Path(description="A job's id.", json_schema_extra={"format": "uuid"})]
Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before.")]
