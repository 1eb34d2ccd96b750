"""Parameters in paths, and those of pages."""

from typing import Annotated

from fastapi import Path, Query

from app.core.names import NAME, REFERENCE

ModelPath = Annotated[
    str,
    Path(
        description="Name of a model, or `name@digest` (8 or more digits) for one version.",
        json_schema_extra={"pattern": f"^{REFERENCE.pattern}$"},
        examples=["demo-vae"],
    ),
]
DatasetPath = Annotated[
    str,
    Path(description="Name of a dataset.", json_schema_extra={"pattern": f"^{NAME.pattern}$"}, examples=["mnist5k"]),
]
PerturbationPath = Annotated[
    str,
    Path(description="Name of a perturbation.", json_schema_extra={"pattern": f"^{NAME.pattern}$"}, examples=["shift"]),
]
OraclePath = Annotated[
    str, Path(description="Name of an oracle.", json_schema_extra={"pattern": f"^{NAME.pattern}$"}, examples=["clinic"])
]
JobPath = Annotated[str, Path(description="Id of a job.", json_schema_extra={"format": "uuid"})]
Limit = Annotated[int, Query(ge=1, le=100, description="Maximum number of items.")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next_cursor` of the previous page.")]
