"""A running service is backed up, lost, and restored elsewhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.service import BASE_MODEL, finished, start, start_job, steps, until

if TYPE_CHECKING:
    from pathlib import Path

    from openai import OpenAI

pytestmark = pytest.mark.e2e


def _tandem(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "scheduler.cli", *map(str, arguments)]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout


def _answer(client: OpenAI, model: str) -> str:
    asked = {"prompt": "question 1", "max_tokens": 8, "temperature": 0}
    return client.completions.create(model=model, **asked).choices[0].text


def _versions(client: OpenAI) -> list[tuple[str, str]]:
    """Digest and base digest of all versions of a tenant's adapters."""
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx.Client(base_url=str(client.base_url), headers=headers) as http:
        adapters = http.get("adapters").raise_for_status().json()["data"]
        return [
            (version["digest"], version["base_digest"])
            for adapter in adapters
            for version in http.get(f"adapters/{adapter['id']}/versions").json()["data"]
        ]


def test_a_service_backed_up_under_load_lives_on_elsewhere(tmp_path: Path) -> None:
    first = start(tmp_path / "first")
    client = first.tenant("keeper")
    job = finished(client, start_job(client))
    assert job.fine_tuned_model is not None
    versions, answer = _versions(client), _answer(client, job.fine_tuned_model)
    rows = client.files.content(job.training_file).read()

    unfinished = start_job(client, examples=200, epochs=6, batch=1, checkpoint_every_steps=20)
    until(lambda: len(list(client.fine_tuning.jobs.checkpoints.list(unfinished.id))) > 0)
    enough, answers = threading.Event(), list[str]()

    def ask() -> None:
        while not enough.is_set():
            answers.append(_answer(client, BASE_MODEL))

    asking = threading.Thread(target=ask)
    asking.start()
    said = _tandem("backup", "--data", first.data, "--out", tmp_path / "saved.tar")
    answered = len(answers)
    enough.set()
    asking.join()
    client.files.create(file=("late.jsonl", rows), purpose="fine-tune")
    assert first.stop() == 0

    _tandem("restore", tmp_path / "saved.tar", "--data", tmp_path / "second")
    second = start(tmp_path / "second")
    try:
        client = client.with_options(base_url=f"{second.url}/v1")
        assert "objects" in said
        assert answered > 0
        assert len(versions) == 1
        assert versions[0] in _versions(client)
        assert _answer(client, job.fine_tuned_model) == answer
        assert client.files.content(job.training_file).read() == rows
        assert "late.jsonl" not in [file.filename for file in client.files.list()]
        assert finished(client, unfinished).status == "succeeded"
        events = client.fine_tuning.jobs.list_events(unfinished.id, limit=100)  # all pages
        assert any(event.message.startswith("Training resumes at step") for event in events)
        assert steps(client, unfinished)[-1] == 1200
    finally:
        second.stop()
