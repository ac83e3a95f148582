"""`tandem up` as a child of the tests, and what a tenant does with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from openai import OpenAI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from openai.types.fine_tuning import FineTuningJob

BASE_MODEL = "tandem-tiny"
PATIENCE_S = 120.0
READY = re.compile(r"ready at (http://\S+)/v1")
DONE = ("succeeded", "failed", "cancelled")


@dataclass
class RunningService:
    """A service and its folder."""

    process: subprocess.Popen[str]
    url: str
    data: Path
    output: str

    @property
    def admin_key(self) -> str:
        """The first key."""
        return (self.data / "admin.key").read_text().strip()

    @property
    def log(self) -> str:
        """Everything its processes logged so far."""
        return (self.data / "test.log").read_text()

    def tenant(self, name: str) -> OpenAI:
        """A client of a new tenant."""
        with self._admin() as admin:
            tenant = admin.post("/tenants", json={"name": name}).raise_for_status().json()
            made = admin.post(f"/tenants/{tenant['id']}/keys", json={"name": "test"})
        key = made.raise_for_status().json()["value"]
        headers = {"Connection": "close"}  # no socket outlives its call, nor the service's restart
        return OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=4, default_headers=headers
        )

    def revoke_keys(self, name: str) -> None:
        """Revoke all keys of a tenant."""
        with self._admin() as admin:
            known = {
                tenant["name"]: tenant["id"] for tenant in admin.get("/tenants").json()["data"]
            }
            for key in admin.get(f"/tenants/{known[name]}/keys").json()["data"]:
                admin.delete(f"/keys/{key['id']}").raise_for_status()

    def _admin(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        return httpx.Client(base_url=f"{self.url}/v1/admin", headers=headers)

    def stop(self) -> int:
        """End it as an operator does; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


def start(data: Path, *arguments: str, **settings: str) -> RunningService:
    """Start a service, with these TANDEM_* settings, and wait until it says that it is ready."""
    data.mkdir(parents=True, exist_ok=True)
    environment = settings_environment(settings)
    command = (sys.executable, "-m", "scheduler.cli", "up", "--port", "0", "--data", str(data))
    with (data / "test.log").open("a") as log:
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := READY.search(line):
            return RunningService(process, found.group(1), data, "".join(lines))
    process.wait()
    raise AssertionError(f"It did not start: {(data / 'test.log').read_text()[-3000:]}")


def settings_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these TANDEM_* settings and no others."""
    environment = {name: value for name, value in os.environ.items() if "TANDEM" not in name}
    return environment | {f"TANDEM_{name.upper()}": value for name, value in settings.items()}


def rows(count: int, answer: str = "ok") -> bytes:
    """A small chat data set."""
    chats = (
        [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"{answer} {number}"},
        ]
        for number in range(count)
    )
    return "\n".join(json.dumps({"messages": chat}) for chat in chats).encode()


def start_job(
    client: OpenAI, *, examples: int = 8, epochs: int = 2, batch: int = 4, **extras: object
) -> FineTuningJob:
    """Upload a data set and begin a job on it."""
    return start_job_on(client, upload(client, examples), epochs=epochs, batch=batch, **extras)


def upload(client: OpenAI, examples: int) -> str:
    """Upload a data set; its id."""
    content = ("train.jsonl", rows(examples))
    return client.files.create(file=content, purpose="fine-tune").id


def start_job_on(
    client: OpenAI, file_id: str, *, epochs: int = 1, batch: int = 4, **extras: object
) -> FineTuningJob:
    """Begin a job on a data set."""
    return client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=file_id,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": batch}},
        },
        extra_body=extras,
    )


def finished(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """The job once it is over."""
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in DONE)
    return client.fine_tuning.jobs.retrieve(job.id)


def steps(client: OpenAI, job: FineTuningJob) -> list[int]:
    """The optimizer steps that a job has reported, oldest first."""
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    return [int(event.data["step"]) for event in reversed(events) if event.type == "metrics"]


def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for something that must come true."""
    deadline_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline_s, "It did not happen in time."
        time.sleep(0.1)


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process ids and command lines below a process."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    for child in children:
        with open(f"/proc/{child}/cmdline") as file:
            yield child, file.read().replace("\0", " ")
        yield from descendants(child)
