"""What everything that crosses a process border is made of.

Two versions of Tandem run side by side while a cluster is upgraded, so each reads what the other
writes: fields at their default are not sent (so a default, once released, stays what it is), an
order with a field that its reader does not know is refused, since it asks for what cannot be done,
and in a report such a field is passed over.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True)


class Order(Message):
    """Asks its reader for something; all of it must be understood."""

    model_config = ConfigDict(extra="forbid")


class Report(Message):
    """Tells its reader something; what it does not know it need not know."""

    model_config = ConfigDict(extra="ignore")
