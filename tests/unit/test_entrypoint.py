"""What the image's entry point makes of secret files."""

from __future__ import annotations

import subprocess
from pathlib import Path

ENTRYPOINT = Path(__file__).resolve().parents[2] / "docker/entrypoint.sh"


def _environment(folder: Path, secrets: dict[str, str], **given: str) -> dict[str, str]:
    """What a process finds in its environment when these are its secret files."""
    for name, value in secrets.items():
        (folder / name).write_text(value)
    result = subprocess.run(
        ("sh", str(ENTRYPOINT), "env"),
        env={"PATH": "/usr/bin:/bin", "SECRETS_DIR": str(folder), **given},
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split("=", 1) for line in result.stdout.splitlines())
    return {name: value for name, value in found.items() if name.startswith(("TANDEM_", "AWS_"))}


def test_services_beside_us_need_only_a_password(tmp_path: Path) -> None:
    passwords = {"redis_password": "r", "postgres_password": "p", "s3_secret_key": "s"}

    assert _environment(tmp_path, passwords) == {
        "TANDEM_CHANNEL_URL": "redis://:r@redis:6379/0",
        "TANDEM_CELERY_BROKER_URL": "redis://:r@redis:6379/1",
        "TANDEM_DATABASE_URL": "postgresql+psycopg://tandem:p@postgres:5432/tandem",
        "AWS_ACCESS_KEY_ID": "tandem",
        "AWS_SECRET_ACCESS_KEY": "s",
    }


def test_services_elsewhere_are_named_whole(tmp_path: Path) -> None:
    addresses = {
        "channel_url": "rediss://u:r@cache.example:6380/0",
        "celery_broker_url": "rediss://u:r@cache.example:6380/1",
        "database_url": "postgresql+psycopg://u:p@sql.example/t?sslmode=require",
        "s3_access_key": "id",
        "s3_secret_key": "s",
    }

    assert _environment(tmp_path, addresses) == {
        "TANDEM_CHANNEL_URL": addresses["channel_url"],
        "TANDEM_CELERY_BROKER_URL": addresses["celery_broker_url"],
        "TANDEM_DATABASE_URL": addresses["database_url"],
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "s",
    }


def test_what_is_set_already_stays(tmp_path: Path) -> None:
    given = {"TANDEM_DATABASE_URL": "mine"}

    assert _environment(tmp_path, {"database_url": "theirs"}, **given) == given


def test_without_secrets_nothing_is_set(tmp_path: Path) -> None:
    assert _environment(tmp_path, {}) == {}
