"""API keys: `an_<id>_<secret>`. The secret has 256 bits, is returned once and stored as its SHA-256."""

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

SCOPES = ("read", "write", "tenant-admin", "admin")
"""read, write: what belongs to the key's tenant. tenant-admin: the keys of that tenant. admin: all keys, metrics."""
LOCAL = "local"
"""The tenant of requests without a key, and of the bootstrap key."""
TOKEN = re.compile(r"an_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,128}")
PUBLIC = ("id", "tenant", "name", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at")


@dataclass(frozen=True)
class Principal:
    """The client of a request. Everything it reads and writes belongs to the tenant."""

    tenant: str
    scopes: frozenset[str]
    key_id: str | None = None

    @property
    def keys_of(self) -> str | None:
        """The tenant whose keys an administrator may see and make; None for those of all tenants."""
        return None if "admin" in self.scopes else self.tenant


LOCAL_PRINCIPAL = Principal(LOCAL, frozenset(SCOPES))


def mint(
    conn: Connection, tenant: str, name: str, scopes: Iterable[str] = ("read", "write"), days: float | None = None
) -> tuple[str, dict[str, Any]]:
    """A new key: its token, which cannot be read again, and its row."""
    scopes = sorted(set(scopes), key=SCOPES.index) if set(scopes) <= set(SCOPES) else []
    if not scopes:
        raise InvalidRequest(f"scopes must be one or more of {', '.join(SCOPES)}.", field="scopes")
    if not TENANT.fullmatch(tenant):
        raise InvalidRequest(
            "tenant must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit.",
            field="tenant",
        )
    if not NAME.fullmatch(name):
        raise InvalidRequest("name must be 1 to 128 printable characters.", field="name")
    ident, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    row = {"id": ident, "tenant": tenant, "name": name, "scopes": scopes, "secret_sha256": _digest(secret)}
    expires = None if days is None else clock() + days * 86400
    conn.execute(insert(api_keys).values(**row, created_at=clock(), expires_at=expires))
    return f"an_{ident}_{secret}", get(conn, ident)


def find(conn: Connection, token: str) -> Principal | None:
    """The principal of a key; None for a key that is unknown, expired or revoked."""
    match = TOKEN.fullmatch(token)
    if match is None:
        return None
    alive = api_keys.c.revoked_at.is_(None) & or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > clock())
    row = conn.execute(select(api_keys).where(api_keys.c.id == match[1], alive)).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_sha256, _digest(match[2])):
        return None
    return Principal(row.tenant, frozenset(row.scopes), row.id)


def bootstrap(token: str) -> Principal | None:
    """The principal of the key in ANAMORPH_BOOTSTRAP_KEY, which has every scope; None for another token."""
    key = settings().bootstrap_key
    if key is None or not key.get_secret_value():
        return None
    same = hmac.compare_digest(_digest(key.get_secret_value()), _digest(token))
    return Principal(LOCAL, frozenset(SCOPES), "bootstrap") if same else None


def unused_for(conn: Connection, ident: str) -> float:
    """Seconds since the last recorded use of the key; infinite for one that was never used."""
    seconds = select(clock() - api_keys.c.last_used_at).where(api_keys.c.id == ident)
    elapsed = conn.execute(seconds).scalar_one_or_none()
    return math.inf if elapsed is None else elapsed


def touch(conn: Connection, ident: str) -> None:
    """Records that the key was used now."""
    conn.execute(update(api_keys).where(api_keys.c.id == ident).values(last_used_at=clock()))


def get(conn: Connection, ident: str, tenant: str | None = None) -> dict[str, Any]:
    """A key of the tenant, or of any, without its secret. Raises NotFound."""
    columns = (api_keys.c[name] for name in PUBLIC)
    row = conn.execute(select(*columns).where(api_keys.c.id == ident)).mappings().one_or_none()
    if row is None or tenant not in (None, row["tenant"]):
        raise NotFound(f"API key {ident} was not found.", remedy="GET /v1/keys lists the keys.")
    return dict(row)


def every(conn: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    """The keys of a tenant, or of all, without their secrets, oldest first."""
    rows = select(*(api_keys.c[name] for name in PUBLIC)).order_by(api_keys.c.created_at, api_keys.c.id)
    rows = rows if tenant is None else rows.where(api_keys.c.tenant == tenant)
    return [dict(row) for row in conn.execute(rows).mappings()]


def revoke(conn: Connection, ident: str) -> dict[str, Any]:
    """The key is refused from now on. Revoking twice is no error."""
    alive = (api_keys.c.id == ident) & api_keys.c.revoked_at.is_(None)
    conn.execute(update(api_keys).where(alive).values(revoked_at=clock()))
    return get(conn, ident)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
