"""The catalog: families, attacks and operations, with the JSON schemas of their settings."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from app.api.http.auth import Reader
from app.api.http.openapi import problems
from app.core import catalog
from app.core.catalog.describe import quoted
from app.core.errors import NotFound

router = APIRouter(prefix="/v1", tags=["catalog"])
Word = Annotated[str, Path(max_length=64)]


@router.get("/families", operation_id="list_families", summary="List families of models")
def families(request: Request, principal: Reader) -> dict[str, Any]:
    return _all(request, "families")


@router.get(
    "/families/{name}", operation_id="get_family", summary="Get a family of models", openapi_extra=problems(404)
)
def family(request: Request, name: Word, principal: Reader) -> dict[str, Any]:
    return _one(request, "families", name)


@router.get("/attacks", operation_id="list_attacks", summary="List attacks")
def attacks(request: Request, principal: Reader) -> dict[str, Any]:
    return _all(request, "attacks")


@router.get("/attacks/{name}", operation_id="get_attack", summary="Get an attack", openapi_extra=problems(404))
def attack(request: Request, name: Word, principal: Reader) -> dict[str, Any]:
    return _one(request, "attacks", name)


@router.get("/operations", operation_id="list_operations", summary="List operations of models")
def operations(request: Request, principal: Reader) -> dict[str, Any]:
    return _all(request, "operations")


def _all(request: Request, section: str) -> dict[str, Any]:
    entries = request.app.state.catalog[section]
    return {"data": [{"name": name, **entry} for name, entry in entries.items()], "next_cursor": None}


def _one(request: Request, section: str, name: str) -> dict[str, Any]:
    entries = request.app.state.catalog[section]
    if name not in entries:
        what = {"families": "family", "attacks": "attack"}[section]
        raise NotFound(f"Unknown {what} {quoted(name)}.", remedy=catalog.name_hint(name, entries))
    return {"name": name, **entries[name]}
