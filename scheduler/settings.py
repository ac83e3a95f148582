"""What an operator may set; fragments that each process composes by subclassing.

`class ServiceSettings(StoreSettings, TextSettings)` reads TANDEM_DATABASE_URL and the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _sqlite_url(settings: dict[str, Any]) -> str:
    return f"sqlite+aiosqlite:///{settings['data_dir'].absolute()}/tandem.db"


def _objects_url(settings: dict[str, Any]) -> str:
    return f"file://{settings['data_dir'].absolute()}/objects"


def _socket_url(settings: dict[str, Any]) -> str:
    return f"unix://{settings['data_dir'].absolute()}/channel.sock"


def _pepper_file(settings: dict[str, Any]) -> Path:
    return Path(settings["data_dir"]) / "pepper"


class Settings(BaseSettings):
    """Base of all settings: read from TANDEM_* variables, never changed afterwards."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_", frozen=True, extra="forbid")


class LogSettings(Settings):
    """How a process logs."""

    log_format: str = Field(
        "console", pattern="^(console|json)$", description="`console` for people, `json` else."
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="Least level that is logged."
    )


class StoreSettings(Settings):
    """Where truth, objects and messages live. Without any, all are in one folder."""

    data_dir: Path = Field(Path(".tandem"), description="Folder of the embedded service's data.")
    database_url: str = Field(
        default_factory=_sqlite_url,
        description="SQLAlchemy URL; the default is SQLite in the data folder.",
    )
    object_store_url: str = Field(
        default_factory=_objects_url,
        description="fsspec URL of data sets, adapters and checkpoints.",
    )
    channel_url: str = Field(
        default_factory=_socket_url,
        description="unix:///PATH (embedded) or redis://HOST:PORT/DB.",
    )
    key_pepper_file: Path = Field(
        default_factory=_pepper_file,
        description="File with the secret behind stored API keys; made with mode 600 if absent.",
    )


class TextSettings(Settings):
    """Which base models there are; gateway, tasks and workers read the same folders."""

    base_models: list[str] = Field(
        default_factory=list,
        description="JSON list of ID=DIR or DIR (then the folder's name is the id).",
    )

    def model_dirs(self) -> dict[str, Path]:
        """Base model id -> its folder, in the given order.

        Raises:
            ValueError: an id is given twice or is empty.
        """
        dirs: dict[str, Path] = {}
        for entry in self.base_models:
            model_id, separator, folder = entry.partition("=")
            path = Path(folder if separator else entry)
            model_id = model_id if separator else path.resolve().name
            if not model_id or model_id in dirs:
                raise ValueError(f"Base model {entry!r} has no id of its own; write ID=DIR.")
            dirs[model_id] = path
        return dirs


class RelaySettings(Settings):
    """How often the loops beside all work turn."""

    relay_poll_s: float = Field(0.5, gt=0, description="How often the outbox is looked at.")
    resend_after_s: float = Field(
        60.0, gt=0, description="A job that nobody took for so long is hinted again."
    )
    reap_every_s: float = Field(10.0, gt=0, description="How often expired leases are looked for.")


class SchedulerSettings(StoreSettings, TextSettings, LogSettings, RelaySettings):
    """Everything an operator may set on the scheduler process and on Celery workers."""

    celery_broker_url: str | None = Field(
        None, description="Redis URL for Celery; without it tasks run in child processes here."
    )
    max_parallel_tasks: int = Field(1, ge=1, description="Data sets that are checked at once.")
    max_parallel_orders: int = Field(
        1, ge=1, description="Merges, compressions and full models that are made at once."
    )
