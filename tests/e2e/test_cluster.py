"""The processes of a cluster, each on its own: Redis as the channel, Celery for the tasks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest
from openai import OpenAI

from scheduler.base_model import shipped_model
from scheduler.data_dir import accounts, store_settings
from tests.e2e.service import BASE_MODEL, finished, start_job, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

STOP_S = 40.0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """URL of a gateway in front of a worker, a scheduler, a Celery worker and a Redis."""
    redis_port, port = _free_port(), _free_port()
    redis_url = f"redis://127.0.0.1:{redis_port}"
    environment = os.environ | {
        "TANDEM_DATA_DIR": str(tmp_path),
        "TANDEM_CHANNEL_URL": f"{redis_url}/0",
        "TANDEM_CELERY_BROKER_URL": f"{redis_url}/1",
        "TANDEM_BASE_MODELS": json.dumps([str(shipped_model())]),
        "TANDEM_PORT": str(port),
    }
    python = sys.executable
    commands = [
        ["redis-server", "--port", str(redis_port), "--save", "", "--bind", "127.0.0.1"],
        [python, "-m", "scheduler"],
        [python, "-m", "celery", "-A", "scheduler.celery_app", "worker", "--pool", "solo"],
        [python, "-m", "workers"],
        [python, "-m", "service"],
    ]
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "cluster.log").open("w"))
        for command in commands:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=os.getcwd()
            )
            stack.callback(_end, process)
        url = f"http://127.0.0.1:{port}"
        until(lambda: _is_ready(url))
        yield url


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


async def _new_key(data: Path) -> str:
    async with accounts(store_settings(data)) as known:
        tenant = await known.tenant("cluster-tenant")
        _, plaintext = await known.keys.create(tenant.id, "test")
    return plaintext


async def test_the_same_flow_runs_over_redis_and_celery(cluster: str, tmp_path: Path) -> None:
    key = await _new_key(tmp_path)

    with OpenAI(base_url=f"{cluster}/v1", api_key=key, max_retries=4) as client:
        job = finished(client, start_job(client))
        assert job.fine_tuned_model is not None
        answers = [
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=4
            )
            for model in (BASE_MODEL, job.fine_tuned_model)
        ]

    assert job.status == "succeeded"
    assert [answer.model for answer in answers] == [BASE_MODEL, job.fine_tuned_model]
    assert "succeeded" in (tmp_path / "cluster.log").read_text()  # Celery's word for a done task
