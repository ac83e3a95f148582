"""/v1/admin: jobs, adapters, usage and the outbox of all tenants."""

from typing import Literal

from pydantic import Field

from service.schemas.adapter import AdapterRead
from service.schemas.base import Read
from service.schemas.fine_tuning import JobRead


class LeaseRead(Read):
    """Who trains a job."""

    owner: str = Field(description="Id of the worker.")
    epoch: int = Field(description="Fencing number; each lease of a job has a greater one.")
    left_s: float = Field(description="Until it runs out; negative: it has, and will be taken.")


class BoardJobRead(JobRead):
    """A job of any tenant."""

    tenant: str = Field(description="Name of its tenant.")
    lease: LeaseRead | None
    num_crashes: int = Field(description="Crashes that count against it; three fail it.")


class BoardAdapterRead(AdapterRead):
    """An adapter of any tenant."""

    tenant_id: str
    tenant: str = Field(description="Name of its owner.")


class OutboxRead(Read):
    """What is still to be sent to tasks and workers."""

    object: Literal["outbox"] = "outbox"
    num_unsent: int
    oldest_s: float = Field(description="Age of the oldest row; 0 when there is none.")
