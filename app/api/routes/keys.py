"""/v1/keys: API keys, for administrators."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from app.api.http.auth import Admin
from app.api.http.openapi import problems
from app.api.http.strict import StrictRoute
from app.core import wire
from app.core.store import keys
from app.core.store.database import reading, transaction

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=StrictRoute)
KeyPath = Annotated[str, Path(pattern="^[0-9a-f]{8}$")]


@router.post(
    "",
    status_code=201,
    response_model=wire.NewKey,
    operation_id="create_key",
    summary="Create an API key",
    openapi_extra=problems(413),
)
def create(body: wire.KeyRequest, principal: Admin) -> dict[str, Any]:
    """Only this answer has the token."""
    with transaction() as conn:
        token, row = keys.mint(conn, body.tenant, body.name, body.scopes, body.days)
    return row | {"token": token}


@router.get("", response_model=wire.Page[wire.Key], operation_id="list_keys", summary="List API keys")
def every(principal: Admin) -> dict[str, Any]:
    with reading() as conn:
        return {"data": keys.every(conn)}


@router.delete(
    "/{id}",
    response_model=wire.Key,
    operation_id="revoke_key",
    summary="Revoke an API key",
    openapi_extra=problems(404),
)
def revoke(request: Request, id: KeyPath, principal: Admin) -> dict[str, Any]:
    """The key is refused from now on; other web fronts may accept it for five more seconds."""
    with transaction() as conn:
        row = keys.revoke(conn, id)
    request.app.state.authenticator.forget()
    return row
