"""API keys: made once, stored only as a keyed digest."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, func, insert, select, update

from scheduler.domain.errors import AuthenticationFailed, NotFound
from scheduler.store.clock import DbNow
from scheduler.store.ids import new_id
from scheduler.store.tables import api_keys, tenants
from scheduler.store.tenants import tenant_of

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.tenant import Tenant
    from scheduler.store.database import Database

PEPPER_BYTES = 32
CHECKSUM_CHARS = 6
KEY_PATTERN = re.compile(
    r"sk-tandem-(?P<public>[0-9A-Za-z]{8})_[0-9A-Za-z_-]{43}_[0-9a-f]{6}", re.ASCII
)
REFUSAL = "Incorrect API key provided; send a key of this service as a bearer token."


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What may be shown about a key.

    Attributes:
        id: `key-...`.
        prefix: the first characters, enough to recognise the key.
        created_at: unix seconds.
        revoked_at: unix seconds, None while it works.
    """

    id: str
    tenant_id: str
    name: str
    prefix: str
    created_at: int
    revoked_at: int | None


def load_pepper(path: Path) -> bytes:
    """The secret behind all stored digests; a random file (mode 600) is made when absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _write_pepper(path)
    pepper = path.read_bytes()
    if len(pepper) < PEPPER_BYTES:
        raise ValueError(f"{path} is shorter than {PEPPER_BYTES} bytes; restore it or remove it.")
    return pepper


class Keys:
    """Creates, checks and revokes API keys.

    Args:
        db: the database.
        pepper: secret of the stored HMACs (`load_pepper`).
    """

    def __init__(self, db: Database, pepper: bytes) -> None:
        self._db = db
        self._pepper = pepper

    async def create(self, tenant_id: str, name: str) -> tuple[str, str]:
        """Make a key: (key id, plaintext). The plaintext is not stored and cannot be shown again.

        Raises:
            NotFound: no such tenant.
        """
        public = new_id("", 8)
        plaintext = _with_checksum(f"sk-tandem-{public}_{secrets.token_urlsafe(32)}")
        key_id = f"key-{public}"
        async with self._db.begin() as conn:
            if await conn.scalar(select(tenants.c.id).where(tenants.c.id == tenant_id)) is None:
                raise NotFound(f"No tenant {tenant_id!r}.")
            await conn.execute(
                insert(api_keys).values(
                    id=key_id,
                    tenant_id=tenant_id,
                    name=name,
                    prefix=f"sk-tandem-{public}",
                    digest=self._digest(plaintext),
                    created_at=DbNow(),
                )
            )
        return key_id, plaintext

    async def authenticate(self, plaintext: str) -> Tenant:
        """The tenant behind a key.

        Raises:
            AuthenticationFailed: malformed, unknown or revoked (one text for all).
        """
        match = KEY_PATTERN.fullmatch(plaintext)
        if match is None or _with_checksum(plaintext[: -CHECKSUM_CHARS - 1]) != plaintext:
            raise AuthenticationFailed(REFUSAL)
        joined = tenants.join(api_keys, api_keys.c.tenant_id == tenants.c.id)
        query = (
            select(tenants, api_keys.c.digest)
            .select_from(joined)
            .where(api_keys.c.id == f"key-{match['public']}", api_keys.c.revoked_at.is_(None))
        )
        async with self._db.read() as conn:
            row = (await conn.execute(query)).one_or_none()
        stored = row.digest if row is not None else ""
        if row is None or not hmac.compare_digest(stored, self._digest(plaintext)):
            raise AuthenticationFailed(REFUSAL)
        return tenant_of(row)

    async def revoke(self, key_id: str) -> None:
        """Make a key useless from now on; revoking twice is fine.

        Raises:
            NotFound: no such key.
        """
        async with self._db.begin() as conn:
            result = await conn.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id)
                .values(revoked_at=func.coalesce(api_keys.c.revoked_at, DbNow()))
            )
        if result.rowcount == 0:
            raise NotFound(f"No API key {key_id!r}.")

    async def list(self, tenant_id: str) -> list[ApiKey]:
        """The tenant's keys, oldest first, revoked ones too."""
        query = select(api_keys).where(api_keys.c.tenant_id == tenant_id).order_by(api_keys.c.seq)
        async with self._db.read() as conn:
            return [_key_of(row) for row in await conn.execute(query)]

    def _digest(self, plaintext: str) -> str:
        return hmac.new(self._pepper, plaintext.encode(), hashlib.sha256).hexdigest()


def _with_checksum(body: str) -> str:
    """Append a checksum: a mistyped or made-up key is refused without asking the database."""
    return f"{body}_{zlib.crc32(body.encode()) & 0xFFFFFF:06x}"


def _write_pepper(path: Path) -> None:
    """Make the file appear complete; of two processes that try at once, the first one's stays."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".pepper-")  # mode 600
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(PEPPER_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(name, path)
    except FileExistsError:
        return
    finally:
        os.unlink(name)


def _key_of(row: Row[Any]) -> ApiKey:
    revoked_at = None if row.revoked_at is None else int(row.revoked_at)
    return ApiKey(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        prefix=row.prefix,
        created_at=int(row.created_at),
        revoked_at=revoked_at,
    )
