"""What a tenant asks of the service over HTTP, and when the answers come."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

POLL_S = 0.1
FINAL = ("succeeded", "failed", "cancelled")
LORA = {"rank": 16, "alpha": 32, "learning_rate": 1e-4}


@dataclass(frozen=True, slots=True)
class Answer:
    """When an answer was asked for, when it began and ended, and its tokens."""

    sent_s: float
    began_s: float
    ended_s: float
    tokens: int

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return (self.began_s - self.sent_s) * 1e3

    @property
    def tpot_ms(self) -> float:
        """Mean time of the tokens after the first."""
        return (self.ended_s - self.began_s) * 1e3 / (self.tokens - 1)


class Tenant:
    """One tenant's calls."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.client = httpx.AsyncClient(base_url=f"{url}/v1", headers=headers, timeout=60.0)

    async def models(self) -> list[str]:
        """Names that may be asked."""
        return [model["id"] for model in (await self._get("/models"))["data"]]

    async def upload(self, examples: list[str]) -> str:
        """A training file of one line of JSON for each example; its id."""
        file = ("train.jsonl", "\n".join(examples).encode())
        made = await self.client.post("/files", files={"file": file}, data={"purpose": "fine-tune"})
        file_id: str = made.raise_for_status().json()["id"]
        return file_id

    async def train(self, model: str, file_id: str, n_epochs: int) -> str:
        """Begin a job; its id."""
        parameters = {"n_epochs": n_epochs, "batch_size": 8}
        method = {"type": "supervised", "supervised": {"hyperparameters": parameters}}
        body = {"model": model, "training_file": file_id, "method": method, **LORA}
        made = await self.client.post("/fine_tuning/jobs", json=body)
        job_id: str = made.raise_for_status().json()["id"]
        return job_id

    async def finished(self, job_id: str, patience_s: float) -> dict[str, Any]:
        """The job when it has ended.

        Raises:
            TimeoutError: it takes longer.
        """
        async with asyncio.timeout(patience_s):
            while (job := await self._get(f"/fine_tuning/jobs/{job_id}"))["status"] not in FINAL:
                await asyncio.sleep(POLL_S)
        return job

    async def metrics(self, job_id: str) -> list[dict[str, float]]:
        """What the job's events have told of its steps so far, in order."""
        events = await self._get(f"/fine_tuning/jobs/{job_id}/events?limit=100")
        told = [event["data"] for event in events["data"] if event["type"] == "metrics"]
        return sorted(told, key=lambda data: data["step"])

    async def cancel(self, job_id: str) -> None:
        """Stop a job."""
        (await self.client.post(f"/fine_tuning/jobs/{job_id}/cancel")).raise_for_status()

    async def chat(self, model: str, question: str, max_tokens: int) -> Answer:
        """Stream an answer to its end."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent_s, came_s, tokens = time.perf_counter(), [], 0
        async with self.client.stream("POST", "/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    came_s += [time.perf_counter()] if chunk["choices"] else []
                    tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        return Answer(sent_s, came_s[1], came_s[-1], tokens)  # the first chunk names the role

    async def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get(path)).raise_for_status().json()
        return found
