"""What a backup holds; written after everything else, so a backup without it is none."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

MANIFEST = "manifest.json"
DATABASE = "database"
PEPPER = "pepper"
OBJECTS = "objects/"


class Member(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int
    sha256: str


class BackupManifest(BaseModel):
    """Everything in a backup, and what can read it.

    Attributes:
        format: of the backup itself.
        created_at: Unix time, seconds.
        tandem_version: that made it.
        database: SQLAlchemy's name of the database, `sqlite` or `postgresql`.
        schema_revision: of the database; newer than the code, it cannot be restored.
        members: `database`, `pepper` and `objects/KEY`, by name.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    created_at: int
    tandem_version: str
    database: str
    schema_revision: str
    members: dict[str, Member]

    def object_keys(self) -> list[str]:
        """Keys in the object store."""
        return [name.removeprefix(OBJECTS) for name in self.members if name.startswith(OBJECTS)]
