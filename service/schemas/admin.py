"""/v1/admin: tenants and their keys."""

from typing import Literal

from pydantic import Field

from scheduler.domain.service_class import DEFAULT
from scheduler.domain.tenant import MAX_WEIGHT
from service.schemas.base import Body, Read


class TenantCreate(Body):
    """A tenant to create."""

    name: str = Field(min_length=1, max_length=64, description="Slug, part of adapter names.")
    is_admin: bool = Field(False, description="May create tenants and keys.")
    weight: float = Field(1.0, gt=0, le=MAX_WEIGHT, description="Share of contended capacity.")
    service_class: str = Field(DEFAULT, description="Whose latency targets its requests have.")


class TenantChange(Body):
    """What to change about a tenant; a field left out stays."""

    weight: float | None = Field(
        None, gt=0, le=MAX_WEIGHT, description="Share of contended capacity."
    )
    service_class: str | None = Field(
        None, description="Whose latency targets its requests have; see /v1/capabilities."
    )


class TenantRead(Read):
    """A tenant."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: str
    is_admin: bool
    weight: float
    service_class: str


class KeyCreate(Body):
    """A key to create."""

    name: str = Field("default", min_length=1, max_length=64)


class KeyRead(Read):
    """What may be shown about a key."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant_id: str
    name: str
    prefix: str
    created_at: int
    revoked_at: int | None


class KeyCreated(Read):
    """A new key; its value is shown this once."""

    id: str
    object: Literal["api_key"] = "api_key"
    tenant_id: str
    name: str
    value: str
