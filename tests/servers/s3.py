"""An S3 server of the tests' own: moto's, as a process on a socket."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from tests.servers.ports import free_port, until_it_listens

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "tandem"


class S3Server:
    """A server with one bucket.

    Args:
        port: where it listens.
    """

    def __init__(self, port: int) -> None:
        self._endpoint = f"http://127.0.0.1:{port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it, in AWS's own variables."""
        return {
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def url(self, prefix: str) -> str:
        """A tree of its own inside the bucket."""
        return f"s3://{BUCKET}/{prefix}"

    def make_bucket(self) -> None:
        """Make the bucket; nothing needs a signature here."""
        httpx.put(f"{self._endpoint}/{BUCKET}", trust_env=False).raise_for_status()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server that runs for as long as the block lasts; it forgets everything at its end."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={name: text for name, text in os.environ.items() if not name.startswith("AWS_")},
    )  # fmt: skip
    try:
        until_it_listens(port)
        server = S3Server(port)
        server.make_bucket()
        yield server
    finally:
        process.kill()
        process.wait()
