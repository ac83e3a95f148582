"""The processes of a cluster, each on its own: Redis as the channel, Celery for the tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import httpx

from scheduler.base_model import shipped_model
from scheduler.data_dir import accounts
from scheduler.settings import StoreSettings
from tests.e2e.service import settings_environment, until
from tests.servers.ports import free_port
from tests.servers.redis import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

STOP_S = 40.0


class Cluster:
    """Gateways, and what stands behind them.

    Args:
        folder: the service's data, and the log.
        redis: the broker of the channel and of Celery.
        settings: TANDEM_* settings of all processes.
        stack: ends the processes.

    Attributes:
        gateways: processes by URL.
        workers: processes by worker id.
        log: what all of them say.
    """

    def __init__(
        self, folder: Path, redis: RedisServer, settings: Mapping[str, str], stack: ExitStack
    ) -> None:
        self.redis = redis
        self.log = folder / "cluster.log"
        stores = {
            name: text for name, text in settings.items() if name in StoreSettings.model_fields
        }
        self.stores = StoreSettings(data_dir=folder, **stores)
        self.gateways: dict[str, subprocess.Popen[bytes]] = {}
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = settings_environment(
            {
                "data_dir": str(folder),
                "channel_url": self.channel_url,
                "celery_broker_url": self.broker_url,
                "base_models": json.dumps([str(shipped_model())]),
                **settings,
            }
        )
        self._stack = stack
        self._output = stack.enter_context(self.log.open("w"))
        self.start_scheduler()
        celery = ("celery", "-A", "scheduler.celery_app", "worker", "--concurrency", "2")
        self.tasks = self._start(*celery, "--loglevel", "info")

    @property
    def channel_url(self) -> str:
        """Where gateways and workers meet."""
        return f"{self.redis.url}/0"

    @property
    def broker_url(self) -> str:
        """Where Celery's messages lie."""
        return f"{self.redis.url}/1"

    @property
    def url(self) -> str:
        """The first gateway's."""
        return next(iter(self.gateways))

    @property
    def ended(self) -> list[str]:
        """Commands of its processes that have ended."""
        processes = (self.scheduler, self.tasks, *self.workers.values(), *self.gateways.values())
        return [" ".join(map(str, one.args)) for one in processes if one.poll() is not None]

    def start_scheduler(self) -> None:
        """Start the relay and reaper, or start them again."""
        self.scheduler = self._start("scheduler")

    def start_worker(self, worker_id: str) -> None:
        """Start a worker."""
        self.workers[worker_id] = self._start("workers", TANDEM_WORKER_ID=worker_id)

    def start_gateway(self, port: int) -> None:
        """Start a gateway, or start it again at its port."""
        self.gateways[f"http://127.0.0.1:{port}"] = self._start(
            "service", TANDEM_PORT=str(port), TANDEM_GATEWAY_ID=f"gateway-{port}"
        )

    async def new_key(self, requests_per_minute: int = 0) -> str:
        """A key of a new tenant, which may make so many requests; 0: any number."""
        async with accounts(self.stores) as known:
            tenant = await known.tenant("cluster-tenant")
            await known.tenants.change(tenant.id, requests_per_minute=requests_per_minute)
            _, plaintext = await known.keys.create(tenant.id, "test")
        return plaintext

    def is_ready(self) -> bool:
        """Whether all gateways see all workers."""
        return all(_num_workers(url) == len(self.workers) for url in self.gateways)

    def _start(self, module: str, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=self._environment | more, stdout=self._output, stderr=self._output,
        )  # fmt: skip
        self._stack.callback(_end, process)
        return process


@contextmanager
def running_cluster(
    folder: Path, num_workers: int = 1, num_gateways: int = 1, **settings: str
) -> Iterator[Cluster]:
    """Run a cluster that is ready, with these TANDEM_* settings, for as long as the block lasts."""
    with redis_server(folder) as redis, ExitStack() as stack:
        cluster = Cluster(folder, redis, settings, stack)
        for number in range(num_workers):
            cluster.start_worker(f"worker-{number}")
        for _ in range(num_gateways):
            cluster.start_gateway(free_port())
        until(cluster.is_ready)
        yield cluster


def metric(url: str, series: str) -> float:
    """The value of one series of the gateway; 0 while there is none."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{series} ")), 0.0)


def _num_workers(url: str) -> float:
    try:
        return metric(url, "tandem_workers")
    except httpx.TransportError:
        return 0.0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
