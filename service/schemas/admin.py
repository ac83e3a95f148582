"""/v1/admin: tenants and their keys."""

from typing import Annotated, Literal

from pydantic import Field

from scheduler.domain.rate_limit import MAX_PER_MINUTE
from scheduler.domain.service_class import DEFAULT
from scheduler.domain.tenant import MAX_WEIGHT
from service.schemas.base import Body, Read

Rate = Annotated[int, Field(ge=0, le=MAX_PER_MINUTE)]


class TenantCreate(Body):
    """A tenant to create."""

    name: str = Field(min_length=1, max_length=64, description="Slug, part of adapter names.")
    is_admin: bool = Field(False, description="May create tenants and keys.")
    weight: float = Field(1.0, gt=0, le=MAX_WEIGHT, description="Share of contended capacity.")
    service_class: str = Field(DEFAULT, description="Whose latency targets its requests have.")
    requests_per_minute: Rate = Field(0, description="Chat and text completions; 0: no limit.")
    tokens_per_minute: Rate = Field(
        0, description="Of their prompts and answers together; 0: no limit."
    )


class TenantChange(Body):
    """What to change about a tenant; a field left out stays."""

    weight: float | None = Field(
        None, gt=0, le=MAX_WEIGHT, description="Share of contended capacity."
    )
    service_class: str | None = Field(
        None, description="Whose latency targets its requests have; see /v1/capabilities."
    )
    requests_per_minute: Rate | None = Field(
        None, description="Chat and text completions; 0 lifts the limit."
    )
    tokens_per_minute: Rate | None = Field(
        None, description="Of their prompts and answers together; 0 lifts the limit."
    )


class TenantRead(Read):
    """A tenant."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: str
    is_admin: bool
    weight: float
    service_class: str
    requests_per_minute: int | None = Field(description="Null: no limit.")
    tokens_per_minute: int | None = Field(description="Null: no limit.")


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
