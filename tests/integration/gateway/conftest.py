"""A real gateway under uvicorn, on a real broker and SQLite, with a worker that has no model.

Everything runs on an event loop in a thread, so that tests may use the official blocking client.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import uvicorn

from scheduler.store.channels import connect_channel
from scheduler.store.channels.local import LocalBroker, socket_path
from scheduler.text.tokenizer import ChatTokenizer, load_tokenizer
from service.app import create_app
from service.settings import ServiceSettings
from tests.integration.gateway.caller import Caller
from tests.integration.gateway.fake_worker import FakeWorker, Plan
from tests.integration.gateway.tiny_folder import BASE, write_tiny_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from scheduler.domain.tenant import Tenant
    from service.gateway import Gateway

ANSWER = "Hello, wörld!"


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float = 20.0) -> Any:
        """Run to the end and return the result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def close(self) -> None:
        """Stop the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


class QuietServer(uvicorn.Server):
    """Leaves signals to the test runner, which owns them."""

    def install_signal_handlers(self) -> None:
        """Install none."""


@dataclass
class Service:
    """The running gateway and what stands around it."""

    url: str
    thread: LoopThread
    app: Any
    tokenizer: ChatTokenizer
    settings: ServiceSettings
    clients: list[Any] = field(default_factory=list)

    @property
    def gateway(self) -> Gateway:
        """Its parts."""
        gateway: Gateway = self.app.state.gateway
        return gateway

    def tenant(self, *, is_admin: bool = False, weight: float = 1.0) -> tuple[Tenant, str]:
        """A new tenant and a key of it."""
        name = f"team-{uuid.uuid4().hex[:8]}"
        tenant = self.thread.run(
            self.gateway.tenants.create(name, is_admin=is_admin, weight=weight)
        )
        return tenant, self.thread.run(self.gateway.keys.create(tenant.id, "test"))[1]

    def client(self, key: str, path: str = "/v1", **options: Any) -> openai.OpenAI:
        """The official client."""
        http_client = openai.DefaultHttpxClient(verify=False)  # reading certificates takes long
        self.clients.append(http_client)
        return openai.OpenAI(
            base_url=self.url + path,
            api_key=key,
            max_retries=0,
            timeout=20,
            http_client=http_client,
            **options,
        )

    @cached_property
    def http(self) -> httpx.Client:
        """A plain client."""
        client = httpx.Client(base_url=self.url, timeout=20, verify=False)
        self.clients.append(client)
        return client

    def start_worker(self, worker_id: str = "w1") -> FakeWorker:
        """Start a worker and wait until the gateway knows it."""
        worker = self.thread.run(self._start_worker(worker_id))
        wait_until(lambda: self._knows(worker))
        return worker

    async def _start_worker(self, worker_id: str) -> FakeWorker:
        token_ids = self.tokenizer.encode(ANSWER)
        worker = FakeWorker(
            channel=connect_channel(self.settings.channel_url),
            worker_id=worker_id,
            base_model=BASE,
            eos_id=257,
            plan=lambda _: Plan(token_ids),
        )
        worker.task = asyncio.create_task(worker.run())
        return worker

    def _knows(self, worker: FakeWorker) -> bool:
        roster = self.gateway.engines.pool.roster
        return any(known.boot_id == worker.boot_id for known in roster.workers)

    def kill_worker(self, worker: FakeWorker) -> None:
        """End a worker without a word, as a crash would."""
        self.thread.run(self._kill(worker))

    async def _kill(self, worker: FakeWorker) -> None:
        assert worker.task is not None
        worker.task.cancel()
        await asyncio.gather(worker.task, return_exceptions=True)
        await worker.channel.close()


def wait_until(condition: Callable[[], bool], limit_s: float = 15.0) -> None:
    """Poll until `condition` holds."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "It did not happen in time."
        time.sleep(0.02)


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A gateway for all tests of this folder."""
    yield from run_service(tmp_path_factory.mktemp("gateway"))


def run_service(folder: Path, **options: Any) -> Iterator[Service]:
    """A gateway of its own, with its own settings."""
    model_dir = write_tiny_folder(folder / "tiny")
    quick = {"ping_s": 0.4, "refresh_s": 0.1, "worker_grace_s": 0.5, "replay_after_s": 0.5}
    settings = ServiceSettings(
        data_dir=folder, base_models=[f"{BASE}={model_dir}"], **(quick | options)
    )
    thread = LoopThread()
    broker = LocalBroker(socket_path(settings.channel_url))
    thread.run(broker.start())
    app = create_app(settings)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = QuietServer(config)
    serving = asyncio.run_coroutine_threadsafe(server.serve([listener]), thread.loop)
    wait_until(lambda: server.started or serving.done())
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    service = Service(url, thread, app, load_tokenizer(model_dir), settings)
    yield service
    for client in service.clients:
        client.close()
    server.should_exit = True
    serving.result(20)
    thread.run(broker.stop())
    thread.close()
    listener.close()


@pytest.fixture(scope="package")
def only_worker(service: Service) -> Iterator[FakeWorker]:
    """The one worker of all tests."""
    fake = service.start_worker("w1")
    yield fake
    service.kill_worker(fake)


@pytest.fixture
def worker(service: Service, only_worker: FakeWorker) -> FakeWorker:
    """The worker, with its memory and its manners reset."""
    token_ids = service.tokenizer.encode(ANSWER)
    only_worker.plan = lambda _: Plan(token_ids)
    only_worker.num_waiting = 0
    only_worker.tiers = ()
    for memory in (only_worker.requests, only_worker.aborts, only_worker.replays):
        memory.clear()
    return only_worker


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    """The official client with a new tenant's key."""
    return service.client(service.tenant()[1])


@pytest.fixture
def owner(service: Service) -> Caller:
    return Caller(service)


@pytest.fixture
def borrower(service: Service) -> Caller:
    return Caller(service)
