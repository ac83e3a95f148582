"""What runs embedded runs in a cluster, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from openai import OpenAI

from tests.e2e.cluster import running_cluster
from tests.e2e.service import BASE_MODEL, finished, start_job

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


async def test_the_same_flow_runs_over_redis_and_celery(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        key = await cluster.new_key()
        with OpenAI(base_url=f"{cluster.url}/v1", api_key=key, max_retries=4) as client:
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
        assert "succeeded" in cluster.log.read_text()  # Celery's word for a done task


async def test_two_gateways_hold_a_tenant_to_one_limit(tmp_path: Path) -> None:
    with running_cluster(tmp_path, num_gateways=2) as cluster:
        key = await cluster.new_key(requests_per_minute=3)
        answers = [
            httpx.post(
                f"{url}/v1/completions",
                json={"model": BASE_MODEL, "prompt": "hello", "max_tokens": 2},
                headers={"authorization": f"Bearer {key}"},
                timeout=60,
            )
            for url in [*cluster.gateways] * 2
        ]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert left == ["2", "1", "0", "0"]
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
