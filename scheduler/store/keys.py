"""API keys: made once, stored only as a keyed digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scheduler.domain.tenant import Tenant
from scheduler.store.database import Database


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
    raise NotImplementedError


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
        raise NotImplementedError

    async def authenticate(self, plaintext: str) -> Tenant:
        """The tenant behind a key.

        Raises:
            AuthenticationFailed: malformed, unknown or revoked (one text for all).
        """
        raise NotImplementedError

    async def revoke(self, key_id: str) -> None:
        """Make a key useless from now on; revoking twice is fine.

        Raises:
            NotFound: no such key.
        """
        raise NotImplementedError

    async def list(self, tenant_id: str) -> list[ApiKey]:
        """The tenant's keys, oldest first, revoked ones too."""
        raise NotImplementedError
