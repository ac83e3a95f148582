"""`python -m service` as a process: it starts, answers, drains on SIGTERM and ends with 0."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx

from scheduler.store.channels.local import LocalBroker, socket_path
from service.settings import ServiceSettings
from tests.integration.gateway.conftest import LoopThread, wait_until
from tests.integration.gateway.tiny_folder import write_tiny_folder
from tests.servers.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path


def test_a_gateway_process_starts_answers_and_ends_cleanly(tmp_path: Path) -> None:
    port, folder = free_port(), write_tiny_folder(tmp_path / "tiny")
    settings = ServiceSettings(data_dir=tmp_path)
    environment = os.environ | {
        "TANDEM_DATA_DIR": str(tmp_path),
        "TANDEM_PORT": str(port),
        "TANDEM_BASE_MODELS": f'["tiny={folder}"]',
        "TANDEM_LOG_FORMAT": "json",
    }
    thread = LoopThread()
    broker = LocalBroker(socket_path(settings.channel_url))
    thread.run(broker.start())
    process = subprocess.Popen(
        [sys.executable, "-m", "service"], env=environment, stdout=subprocess.PIPE
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False) as client:
            wait_until(lambda: _alive(client), limit_s=60)
            assert client.get("/v1/models").status_code == 401
            assert client.get("/readyz").status_code == 503
        process.send_signal(signal.SIGTERM)

        output, _ = process.communicate(timeout=30)

        assert process.returncode == 0
        assert output == b""  # logs go to stderr
    finally:
        process.kill()
        process.wait()
        thread.run(broker.stop())
        thread.run(asyncio.sleep(0))
        thread.close()


def _alive(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.ConnectError:
        return False
