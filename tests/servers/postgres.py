"""A real PostgreSQL of the tests' own, which can be killed and comes back with its data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.servers.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

DEBIAN_PROGRAMS = "/usr/lib/postgresql"
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root
START_S = 60.0
# The tests kill processes, not machines: what the kernel has is safe.
OPTIONS = ("-c", "fsync=off", "-c", "listen_addresses=127.0.0.1")


class PostgresServer:
    """A server on a port of its own; its data stay in a folder between kill and start.

    Args:
        folder: empty; belongs to the server's user afterwards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = installed_programs()
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._own()
        self._run("initdb", "--auth=trust", "--username=tandem", "--no-sync", str(folder / "data"))

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of the database that is there from the start."""
        return self._url("postgres")

    def new_database(self, name: str) -> str:
        """SQLAlchemy's URL of a further, empty database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "tandem", name)
        return self._url(name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                self._launch()  # again, for as long as the memory of a killed one is held
            assert time.monotonic() < deadline_s, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill all of its processes at once, as a machine that loses power does."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid)
            for process in (family, *family.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://tandem@127.0.0.1:{self.port}/{name}"

    def _own(self) -> None:
        self._folder.chmod(0o755)
        if self._user is not None:
            shutil.chown(self._folder, self._user)

    def _launch(self) -> None:
        command = [self._programs / "postgres", "-D", self._folder / "data", "-p", str(self.port)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-k", str(self._folder), *OPTIONS],
                stdout=log, stderr=log, user=self._user, cwd=self._folder,
            )  # fmt: skip

    def _answers(self) -> bool:
        command = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True, stdout=subprocess.DEVNULL, user=self._user, cwd=self._folder,
        )  # fmt: skip


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-pg-"))
    try:
        server = PostgresServer(folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)


def installed_programs() -> Path:
    """Where `postgres` and the rest are; Debian keeps them off the path."""
    if (found := shutil.which("postgres")) is not None:
        return Path(found).resolve().parent
    versions = sorted(Path(DEBIAN_PROGRAMS).glob("*/bin"), key=lambda path: int(path.parent.name))
    assert versions, "PostgreSQL is not installed; `make postgres` brings Debian's."
    return versions[-1]
