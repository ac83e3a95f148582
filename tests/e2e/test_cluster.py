"""What runs embedded runs in a cluster, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
