"""A Tandem service for the demo: started here on a fresh data folder, or one that runs already."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OPTIONS = ("--port", "0", "--tpot-ms", "12")  # a few times what an answer's token takes alone
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
READY = re.compile(r"ready at (\S+)/v1")


@dataclass(frozen=True)
class Service:
    """Where a service listens, and the key that may create tenants."""

    url: str
    admin_key: str

    async def tenant_key(self, name: str) -> str:
        """A new key of a tenant; the tenant is created when it is new too."""
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        async with httpx.AsyncClient(base_url=f"{self.url}/v1/admin", headers=headers) as admin:
            created = await admin.post("/tenants", json={"name": name})
            if created.is_success:
                tenant_id = created.json()["id"]
            else:  # it is there from an earlier demo
                listed = (await admin.get("/tenants")).raise_for_status().json()["data"]
                tenant_id = next(tenant["id"] for tenant in listed if tenant["name"] == name)
            key = await admin.post(f"/tenants/{tenant_id}/keys", json={"name": "demo"})
            value: str = key.raise_for_status().json()["value"]
            return value


@asynccontextmanager
async def running_service() -> AsyncIterator[Service]:
    """The service at TANDEM_URL (with TANDEM_ADMIN_KEY), or one of our own."""
    if "TANDEM_URL" in os.environ:
        url = os.environ["TANDEM_URL"].rstrip("/").removesuffix("/v1")
        yield Service(url, os.environ["TANDEM_ADMIN_KEY"])
        return
    with tempfile.TemporaryDirectory(prefix="tandem-demo-") as folder:
        log_path = Path(folder) / "service.log"
        with log_path.open("wb") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "scheduler.cli", "up", *OPTIONS, "--data", folder],
                stdout=subprocess.PIPE,
                stderr=log_file,
                text=True,
            )
        try:
            ready = await asyncio.wait_for(asyncio.to_thread(_ready_url, process), READY_TIMEOUT_S)
            if ready is None:
                raise SystemExit(f"The service did not start:\n{_tail(log_path)}")
            yield Service(ready, (Path(folder) / "admin.key").read_text().strip())
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)


def _ready_url(process: subprocess.Popen[str]) -> str | None:
    """The address from the service's line about it; None when it ended without one."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := READY.search(line):
            return found.group(1)
    return None


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text().splitlines()[-lines:])
