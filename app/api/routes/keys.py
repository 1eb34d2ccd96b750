"""/v1/keys: API keys, for administrators."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from app.api.http.auth import KeyAdmin
from app.api.http.openapi import problems
from app.api.http.strict import StrictRoute
from app.core import wire
from app.core.errors import Forbidden
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
def create(body: wire.KeyRequest, principal: KeyAdmin) -> dict[str, Any]:
    """Only this answer has the token. A key with the scope tenant-admin makes keys of its tenant with scopes it has."""
    tenant = body.tenant or principal.tenant
    if principal.keys_of not in (None, tenant):
        raise Forbidden(
            f"The API key makes keys of the tenant {principal.tenant} only.", field="/tenant", scope="admin"
        )
    lacking = [scope for scope in body.scopes if principal.keys_of and scope not in principal.scopes]
    if lacking:
        raise Forbidden(
            f"The API key lacks the scope {lacking[0]}, so it cannot give it to another.",
            field="/scopes",
            remedy=f"Give some of: {', '.join(name for name in keys.SCOPES if name in principal.scopes)}.",
            scope=lacking[0],
        )
    with transaction() as conn:
        token, row = keys.mint(conn, tenant, body.name, body.scopes, body.days)
    return row | {"token": token}


@router.get("", response_model=wire.Page[wire.Key], operation_id="list_keys", summary="List API keys")
def every(principal: KeyAdmin) -> dict[str, Any]:
    """Of all tenants with the scope admin, of the own tenant with tenant-admin."""
    with reading() as conn:
        return {"data": keys.every(conn, principal.keys_of)}


@router.delete(
    "/{id}",
    response_model=wire.Key,
    operation_id="revoke_key",
    summary="Revoke an API key",
    openapi_extra=problems(404),
)
def revoke(request: Request, id: KeyPath, principal: KeyAdmin) -> dict[str, Any]:
    """The key is refused from now on; other web fronts may accept it for five more seconds."""
    with transaction() as conn:
        row = keys.get(conn, id, principal.keys_of)
        if principal.keys_of and "admin" in row["scopes"]:
            raise Forbidden("The key belongs to an administrator of all tenants.", scope="admin")
        row = keys.revoke(conn, id)
    request.app.state.authenticator.forget()
    return row
