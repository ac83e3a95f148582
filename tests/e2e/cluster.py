"""The processes of a cluster, each on its own: Redis as the channel, Celery for the tasks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from scheduler.base_model import shipped_model
from scheduler.data_dir import accounts, store_settings
from tests.e2e.service import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STOP_S = 40.0


@dataclass
class Cluster:
    """Gateways, and what stands behind them.

    Attributes:
        gateways: processes by URL.
        workers: processes by worker id.
        log: what all of them say.
    """

    gateways: dict[str, subprocess.Popen[bytes]]
    folder: Path
    workers: dict[str, subprocess.Popen[bytes]]
    log: Path

    @property
    def url(self) -> str:
        """The first gateway's."""
        return next(iter(self.gateways))

    async def new_key(self, requests_per_minute: int = 0) -> str:
        """A key of a new tenant, which may make so many requests; 0: any number."""
        async with accounts(store_settings(self.folder)) as known:
            tenant = await known.tenant("cluster-tenant")
            await known.tenants.change(tenant.id, requests_per_minute=requests_per_minute)
            _, plaintext = await known.keys.create(tenant.id, "test")
        return plaintext


@contextmanager
def running_cluster(
    folder: Path, num_workers: int = 1, num_gateways: int = 1, **settings: str
) -> Iterator[Cluster]:
    """Run a cluster that is ready, with these TANDEM_* settings, for as long as the block lasts."""
    redis_port = _free_port()
    redis_url = f"redis://127.0.0.1:{redis_port}"
    environment = os.environ | {
        "TANDEM_DATA_DIR": str(folder),
        "TANDEM_CHANNEL_URL": f"{redis_url}/0",
        "TANDEM_CELERY_BROKER_URL": f"{redis_url}/1",
        "TANDEM_BASE_MODELS": json.dumps([str(shipped_model())]),
        **{f"TANDEM_{name.upper()}": value for name, value in settings.items()},
    }
    python = sys.executable
    commands = [
        ["redis-server", "--port", str(redis_port), "--save", "", "--bind", "127.0.0.1"],
        [python, "-m", "scheduler"],
        [python, "-m", "celery", "-A", "scheduler.celery_app", "worker", "--pool", "solo"],
    ]
    with ExitStack() as stack:
        log_path = folder / "cluster.log"
        log = stack.enter_context(log_path.open("w"))

        def start(command: list[str], **more: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command, env=environment | more, stdout=log, stderr=log, cwd=os.getcwd()
            )
            stack.callback(_end, process)
            return process

        for command in commands:
            start(command)
        workers = {
            name: start([python, "-m", "workers"], TANDEM_WORKER_ID=name)
            for name in (f"worker-{number}" for number in range(num_workers))
        }
        gateways = {
            f"http://127.0.0.1:{port}": start(
                [python, "-m", "service"], TANDEM_PORT=port, TANDEM_GATEWAY_ID=f"gateway-{port}"
            )
            for port in (str(_free_port()) for _ in range(num_gateways))
        }
        until(lambda: all(_num_workers(url) == num_workers for url in gateways))
        yield Cluster(gateways, folder, workers, log_path)


def metric(url: str, series: str) -> float:
    """The value of one series of the gateway; 0 while there is none."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{series} ")), 0.0)


def _num_workers(url: str) -> float:
    try:
        return metric(url, "tandem_workers")
    except httpx.TransportError:
        return 0.0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
