"""API keys: `an_<id>_<secret>`. The secret has 256 bits, is shown once and kept as its SHA-256."""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from app.core.errors import InvalidRequest, NotFound
from app.core.settings import settings
from app.core.store.database import clock
from app.core.store.tables import api_keys

SCOPES = ("read", "write", "admin")
LOCAL = "local"
"""The tenant of whoever needs no key, and of the bootstrap key."""
TOKEN = re.compile(r"an_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,128}")
SHOWN = ("id", "tenant", "name", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at")


@dataclass(frozen=True)
class Principal:
    """Who asks: everything is read and written inside the tenant."""

    tenant: str
    scopes: frozenset[str]
    key_id: str | None = None


LOCAL_PRINCIPAL = Principal(LOCAL, frozenset(SCOPES))


def mint(
    conn: Connection, tenant: str, name: str, scopes: Iterable[str] = ("read", "write"), days: float | None = None
) -> tuple[str, dict[str, Any]]:
    """A new key: the token, which nobody can read again, and its row."""
    scopes = sorted(set(scopes), key=SCOPES.index) if set(scopes) <= set(SCOPES) else []
    if not scopes:
        raise InvalidRequest(f"Scopes are one or more of {', '.join(SCOPES)}.", field="scopes")
    if not TENANT.fullmatch(tenant):
        raise InvalidRequest(
            "A tenant is 1 to 64 of A-Z a-z 0-9 . _ - and begins with one of the first.", field="tenant"
        )
    if not NAME.fullmatch(name):
        raise InvalidRequest("A name has 1 to 128 printable characters.", field="name")
    ident, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    row = {"id": ident, "tenant": tenant, "name": name, "scopes": scopes, "secret_sha256": _digest(secret)}
    expires = None if days is None else clock() + days * 86400
    conn.execute(insert(api_keys).values(**row, created_at=clock(), expires_at=expires))
    return f"an_{ident}_{secret}", get(conn, ident)


def find(conn: Connection, token: str) -> Principal | None:
    """Whose key this is; None when it is nobody's, any more or yet."""
    match = TOKEN.fullmatch(token)
    if match is None:
        return None
    alive = api_keys.c.revoked_at.is_(None) & or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > clock())
    row = conn.execute(select(api_keys).where(api_keys.c.id == match[1], alive)).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_sha256, _digest(match[2])):
        return None
    return Principal(row.tenant, frozenset(row.scopes), row.id)


def bootstrap(token: str) -> Principal | None:
    """The key given from outside (ANAMORPH_BOOTSTRAP_KEY) may do everything."""
    given = settings().bootstrap_key
    if given is None or not given.get_secret_value():
        return None
    same = hmac.compare_digest(_digest(given.get_secret_value()), _digest(token))
    return Principal(LOCAL, frozenset(SCOPES), "bootstrap") if same else None


def unused_for(conn: Connection, ident: str) -> float:
    """Seconds since the key's last noted use; infinite when there is none."""
    seconds = select(clock() - api_keys.c.last_used_at).where(api_keys.c.id == ident)
    found = conn.execute(seconds).scalar_one_or_none()
    return math.inf if found is None else found


def touch(conn: Connection, ident: str) -> None:
    """Notes that the key was used."""
    conn.execute(update(api_keys).where(api_keys.c.id == ident).values(last_used_at=clock()))


def get(conn: Connection, ident: str) -> dict[str, Any]:
    columns = (api_keys.c[name] for name in SHOWN)
    row = conn.execute(select(*columns).where(api_keys.c.id == ident)).mappings().one_or_none()
    if row is None:
        raise NotFound("There is no API key with this id.")
    return dict(row)


def every(conn: Connection) -> list[dict[str, Any]]:
    """All keys of all tenants, without their secrets, oldest first."""
    rows = conn.execute(select(*(api_keys.c[name] for name in SHOWN)).order_by(api_keys.c.created_at, api_keys.c.id))
    return [dict(row) for row in rows.mappings()]


def revoke(conn: Connection, ident: str) -> dict[str, Any]:
    """The key is refused from now on. Revoking twice is no error."""
    mine = (api_keys.c.id == ident) & api_keys.c.revoked_at.is_(None)
    conn.execute(update(api_keys).where(mine).values(revoked_at=clock()))
    return get(conn, ident)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
