"""`tandem up`: check everything first, then start the embedded service and say when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from scheduler.base_model import BaseModelFolder, find_base_model, shipped_model
from scheduler.data_dir import ADMIN_KEY_FILE, accounts, locked, store_settings
from scheduler.devices import check_fit, parse_devices
from scheduler.domain.errors import InvalidInput
from scheduler.supervisor import ChildSpec, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

READY_POLL_S = 0.1
MAX_DATA_PATH_BYTES = 90  # a Unix socket's path has room for 107, its name included


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What `tandem up` was told.

    Attributes:
        base_models: as written: ID=DIR, DIR or a hub id; empty for the shipped one.
        data: folder of the service's data.
        port: 0 takes a free one.
        devices: `cpu` or GPU numbers.
        environment: further TANDEM_* variables for the children.
        hub_token: for base models that are downloaded.
    """

    base_models: tuple[str, ...]
    data: Path
    host: str
    port: int
    devices: str
    environment: dict[str, str]
    hub_token: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be started, everything checked."""

    models: tuple[BaseModelFolder, ...]
    devices: tuple[str, ...]
    host: str
    port: int
    environment: dict[str, str]

    @property
    def url(self) -> str:
        """Where callers on this machine reach the service."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.host in ("0.0.0.0", "::"):
            host = "127.0.0.1"
        return f"http://{host}:{self.port}"

    def children(self) -> list[ChildSpec]:
        """The processes in the order of their start."""
        workers = [
            ChildSpec(
                f"worker {device}",
                (sys.executable, "-m", "workers"),
                {**self.environment, "TANDEM_DEVICE": device},
            )
            for device in self.devices
        ]
        return [
            ChildSpec("scheduler", (sys.executable, "-m", "scheduler"), self.environment),
            *workers,
            ChildSpec("gateway", (sys.executable, "-m", "service"), self.environment),
        ]


def make_plan(options: UpOptions) -> Plan:
    """Resolve and check models, devices and address; nothing is started.

    Raises:
        InvalidInput: one of them cannot work; one sentence.
    """
    models = _find_models(options)
    devices = parse_devices(options.devices)
    dtype = options.environment.get("TANDEM_DTYPE", "auto")
    weight_format = options.environment.get("TANDEM_WEIGHT_FORMAT", "none")
    for device in devices:
        check_fit(device, dtype, models, weight_format)
    port = _check_port(options.host, options.port)
    if len(os.fsencode(options.data.resolve())) > MAX_DATA_PATH_BYTES:
        raise InvalidInput(
            f"{options.data.resolve()} is too long a path for --data; at most "
            f"{MAX_DATA_PATH_BYTES} bytes leave room for a socket's name.",
            param="data",
        )
    environment = {
        **options.environment,
        "TANDEM_DATA_DIR": str(options.data.resolve()),
        "TANDEM_BASE_MODELS": json.dumps([str(model) for model in models]),
        "TANDEM_HOST": options.host,
        "TANDEM_PORT": str(port),
    }
    return Plan(models, tuple(devices), options.host, port, environment)


async def up(options: UpOptions, say: Callable[[str], None], show_key: bool) -> None:
    """Run the embedded service until SIGINT or SIGTERM.

    Args:
        options: what the operator wants.
        say: tells the operator a line.
        show_key: whether a freshly made admin key may be told; else only its file is.

    Raises:
        InvalidInput: something cannot work; nothing was started.
        AlreadyRunning: another supervisor uses the data folder.
        ChildKeepsDying: a process does not stay up.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    plan = make_plan(options)
    settings = store_settings(options.data)
    with locked(settings.data_dir):
        async with accounts(settings) as known:
            key = await known.first_admin_key(settings.data_dir)
        if key is not None and show_key:
            say(f"Admin key: {key}")
        if not _is_loopback(plan.host):
            say(f"Warning: {plan.host} is open to the network without TLS; put a proxy before it.")
        telling = asyncio.create_task(_tell_when_ready(plan, settings.data_dir, say))
        try:
            await Supervisor(plan.children()).run(stopping)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


async def _tell_when_ready(plan: Plan, data: Path, say: Callable[[str], None]) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"{plan.url}/readyz")).status_code == 200:
                    break
            await asyncio.sleep(READY_POLL_S)
    names = ", ".join(model.id for model in plan.models)
    say(f"Tandem is ready at {plan.url}/v1 serving {names}; admin key in {data / ADMIN_KEY_FILE}.")
    say(f"Its dashboard is at {plan.url}/dashboard/.")


def _find_models(options: UpOptions) -> tuple[BaseModelFolder, ...]:
    written: Sequence[str] = options.base_models or (str(shipped_model()),)
    models = tuple(find_base_model(text, hub_token=options.hub_token) for text in written)
    ids = [model.id for model in models]
    for model_id in ids:
        if ids.count(model_id) > 1:
            raise InvalidInput(
                f"Two base models are called {model_id!r}; name one --base-model ID=DIR.",
                param="base_model",
            )
    return models


def _check_port(host: str, port: int) -> int:
    """Return a port that can be listened on: the given one, or a free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"fails ({error.strerror})"
            raise InvalidInput(
                f"Listening on {host} port {port} {reason}; choose another --host or --port.",
                param="port",
            ) from None
        bound: int = probe.getsockname()[1]
        return bound


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
