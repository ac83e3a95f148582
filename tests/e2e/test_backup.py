"""A running service is backed up, lost, and restored elsewhere: in folders, and on servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.service import (
    BASE_MODEL,
    finished,
    settings_environment,
    start,
    start_job,
    steps,
    until,
)
from tests.servers.postgres import installed_programs

if TYPE_CHECKING:
    from pathlib import Path

    from openai import OpenAI

    from tests.servers.postgres import PostgresServer
    from tests.servers.s3 import S3Server

pytestmark = pytest.mark.e2e


@pytest.fixture(params=["folders", "servers"])
def places(request: pytest.FixtureRequest) -> tuple[dict[str, str], dict[str, str]]:
    """Settings of the first service's stores, and of the second one's."""
    if request.param == "folders":
        return {}, {}
    first, second = request.getfixturevalue("server_places")
    return first, second


@pytest.fixture
def server_places(
    postgres: PostgresServer, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, str]]:
    """Two databases of a PostgreSQL, two trees in a bucket; all processes find both servers."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(installed_programs()), prepend=os.pathsep)
    return [
        {"database_url": postgres.new_database(name), "object_store_url": s3.url(name)}
        for name in ("lost", "restored")
    ]


def _tandem(*arguments: str | Path, **settings: str) -> str:
    command = [sys.executable, "-m", "scheduler.cli", *map(str, arguments)]
    environment = settings_environment(settings)
    ended = subprocess.run(command, text=True, capture_output=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


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


def _bring_back(client: OpenAI, adapter_id: object) -> None:
    """Export an adapter's first version and import the files as another one."""
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx.Client(base_url=str(client.base_url), headers=headers, timeout=60) as http:
        exported = http.get(f"adapters/{adapter_id}/versions/1/export").raise_for_status()
        described, files = {"model": BASE_MODEL, "name": "back"}, {"file": exported.content}
        http.post("adapters", data=described, files=files).raise_for_status()


def test_a_service_backed_up_under_load_lives_on_elsewhere(
    places: tuple[dict[str, str], dict[str, str]], tmp_path: Path
) -> None:
    lost, restored = places
    first = start(tmp_path / "first", **lost)
    client = first.tenant("keeper")
    job = finished(client, start_job(client))
    assert job.fine_tuned_model is not None
    _bring_back(client, job.model_extra["adapter_id"])
    versions, answer = _versions(client), _answer(client, job.fine_tuned_model)
    rows = client.files.content(job.training_file).read()

    unfinished = start_job(client, examples=100, epochs=3, batch=1, checkpoint_every_steps=20)
    until(lambda: len(list(client.fine_tuning.jobs.checkpoints.list(unfinished.id))) > 0)
    enough, answers = threading.Event(), list[str]()

    def ask() -> None:
        while not enough.is_set():
            answers.append(_answer(client, BASE_MODEL))

    asking = threading.Thread(target=ask)
    asking.start()
    said = _tandem("backup", "--data", first.data, "--out", tmp_path / "saved.tar", **lost)
    answered = len(answers)
    enough.set()
    asking.join()
    client.files.create(file=("late.jsonl", rows), purpose="fine-tune")
    assert first.stop() == 0

    _tandem("restore", tmp_path / "saved.tar", "--data", tmp_path / "second", **restored)
    second = start(tmp_path / "second", **restored)
    try:
        client = client.with_options(base_url=f"{second.url}/v1")
        assert "objects" in said
        assert answered > 0
        assert len(versions) == 2
        assert set(versions) <= set(_versions(client))
        assert _answer(client, job.fine_tuned_model) == answer
        assert client.files.content(job.training_file).read() == rows
        assert "late.jsonl" not in [file.filename for file in client.files.list()]
        assert finished(client, unfinished).status == "succeeded"
        events = client.fine_tuning.jobs.list_events(unfinished.id, limit=100)  # all pages
        assert any(event.message.startswith("Training resumes at step") for event in events)
        assert steps(client, unfinished)[-1] == 300
    finally:
        second.stop()
