"""Evaluations over HTTP: begun, waited for, and looked at."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.integration.gateway.caller import Caller
from tests.integration.gateway.conftest import ANSWER, wait_until
from tests.integration.gateway.fake_worker import Plan

if TYPE_CHECKING:
    from scheduler.domain.request import RequestBody
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

LOSS = {"graders": [{"type": "loss"}]}

BETTER = [{"grader": "loss", "comparison": "at_most", "against": "base"}]


def row(question: str, answer: str = ANSWER) -> dict[str, Any]:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said}


def uploaded(caller: Caller, *rows: dict[str, Any]) -> str:
    content = "\n".join(json.dumps(one) for one in rows or [row("Hi"), row("Ho")])
    files = {"file": ("rows.jsonl", content.encode())}
    file_id: str = caller.ok("POST", "/files", data={"purpose": "evals"}, files=files)["id"]
    return file_id


def begun(caller: Caller, model: str, **body: Any) -> Any:
    fresh = {"model": model} | ({} if "file" in body else {"file": uploaded(caller)})
    return caller.ok("POST", "/evaluations", json=fresh | body)


def over(caller: Caller, evaluation: Any) -> Any:
    path = f"/evaluations/{evaluation['id']}"
    wait_until(lambda: caller.ok("GET", path)["status"] in ("succeeded", "failed"))
    return caller.ok("GET", path)


def evaluated(caller: Caller, model: str, **body: Any) -> Any:
    shown = over(caller, begun(caller, model, **body))
    assert shown["status"] == "succeeded", shown["error"]
    return shown


def means(shown: Any, contender: str) -> Any:
    return shown["contenders"][contender]["means"]


def by_version(service: Service, worker: FakeWorker, **logprobs: float) -> None:
    """Let `base`, `v1` and `v2` score every prompt as given."""
    token_ids = service.tokenizer.encode(ANSWER)

    def plan(request: RequestBody) -> Plan:
        name = f"v{request.adapter.version}" if request.adapter else "base"
        return Plan(token_ids, prompt_logprob=logprobs[name])

    worker.plan = plan
