"""KV policies over HTTP: what reaches the worker, what is refused, and what usage tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.domain.request import KvPolicyChoice
from tests.integration.gateway.caller import HELLO, Caller
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from tests.integration.gateway.fake_worker import FakeWorker

WINDOWED = {"type": "snapkv", "budget": 64, "window": 16}
DECODE = "kv_policy.decode_interval"
NESTED = json.loads("[" * 400 + "]" * 400)


def chat(kv_policy: Any, **more: Any) -> dict[str, Any]:
    return {"model": BASE, "messages": HELLO, "kv_policy": kv_policy} | more


def test_a_policy_travels_with_its_options(owner: Caller, worker: FakeWorker) -> None:
    owner.ok("POST", "/chat/completions", json=chat(WINDOWED))
    body = {"model": BASE, "prompt": ["Hi", "Ho"], "kv_policy": {"type": "snapkv", "budget": 0.25}}
    owner.ok("POST", "/completions", json=body)
    owner.ok("POST", "/completions", json={"model": BASE, "prompt": "Hi"})

    first, *others, last = [request.kv_policy for request in worker.requests]
    assert first == KvPolicyChoice(type="snapkv", options={"budget": 64, "window": 16})
    assert others == [KvPolicyChoice(type="snapkv", options={"budget": 0.25})] * 2
    assert last is None


def test_none_is_a_choice_too(owner: Caller, worker: FakeWorker) -> None:
    owner.ok("POST", "/chat/completions", json=chat({"type": "none"}))

    assert worker.requests[0].kv_policy == KvPolicyChoice(type="none", options={})


def test_usage_tells_what_was_kept_and_dropped(owner: Caller, worker: FakeWorker) -> None:
    body = {"model": BASE, "prompt": ["Hi there", "Hello"], "n": 2, "kv_policy": WINDOWED}

    usage = owner.ok("POST", "/completions", json=body)["usage"]

    assert usage["kv_tokens"] == {"kept": usage["prompt_tokens"] - 2, "dropped": 2}
    assert len(worker.requests) == 2


def test_usage_without_a_policy_is_openais(owner: Caller) -> None:
    usage = owner.ok("POST", "/chat/completions", json={"model": BASE, "messages": HELLO})["usage"]

    assert "kv_tokens" not in usage


def test_a_streams_last_chunk_tells_it_too(owner: Caller) -> None:
    body = chat(WINDOWED, stream=True, stream_options={"include_usage": True})

    lines = owner.call("POST", "/chat/completions", json=body).text.splitlines()

    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["usage"]["kv_tokens"]["dropped"] == 1


def test_a_tokens_long_answer_drops_nothing(owner: Caller) -> None:
    usage = owner.ok("POST", "/chat/completions", json=chat(WINDOWED, max_tokens=1))["usage"]

    assert usage["kv_tokens"] == {"kept": usage["prompt_tokens"], "dropped": 0}


@pytest.mark.parametrize(
    ("kv_policy", "code", "param", "sentence"),
    [
        ({"type": "best", "budget": 64}, "unknown_plugin", "kv_policy", "known: snapkv"),
        ({"type": "snapkv", "budget": 0}, "invalid_value", "kv_policy.budget", "integer from 1"),
        ({"type": "snapkv", "budget": 1.5}, "invalid_value", "kv_policy.budget", "at most 1.0"),
        ({"type": "snapkv", "budget": True}, "invalid_value", "kv_policy.budget", "share of the"),
        ({"type": "snapkv", "budget": "2k"}, "invalid_value", "kv_policy.budget", "share of the"),
        ({"type": "snapkv", "budget": 31}, "invalid_value", "kv_policy.budget", "at least 32"),
        (WINDOWED | {"num_sinks": 60}, "invalid_value", "kv_policy.budget", "at least 76"),
        ({"type": "snapkv"}, "invalid_value", "kv_policy", "'budget' is a required"),
        (WINDOWED | {"window": 0}, "invalid_value", "kv_policy.window", "minimum of 1"),
        (WINDOWED | {"decode_interval": 8}, "invalid_value", DECODE, "minimum of 16"),
        (WINDOWED | {"decode_interval": 20, "window": 24}, "invalid_value", DECODE, "at least 24"),
        (WINDOWED | {"decode_interval": "often"}, "invalid_value", DECODE, "not of type"),
        (WINDOWED | {"color": "red"}, "invalid_value", "kv_policy", "'color' was unexpected"),
        ({"budget": 64}, "invalid_value", "kv_policy.type", "missing"),
        ("snapkv", "invalid_value", "kv_policy", "object"),
        ({"type": "snapkv", "budget": 2**64}, "invalid_value", "kv_policy.budget", "to 2147483647"),
        (WINDOWED | {"num_sinks": 2**64}, "invalid_value", "kv_policy", "no integer beyond"),
        (WINDOWED | {"window": [2**64]}, "invalid_value", "kv_policy", "no integer beyond"),
        (WINDOWED | {"window": NESTED}, "invalid_value", "kv_policy", "at most 16 deep"),
        (WINDOWED | {"window": "x" * 10**6}, "invalid_value", "kv_policy", "65536 bytes of JSON"),
    ],
)
def test_what_no_worker_would_do_is_refused_in_a_sentence(
    owner: Caller, worker: FakeWorker, kv_policy: Any, code: str, param: str, sentence: str
) -> None:
    error = owner.refused("POST", "/chat/completions", 400, json=chat(kv_policy))

    assert (error["code"], error["param"]) == (code, param)
    assert sentence in error["message"]
    assert worker.requests == []


def test_capabilities_describe_the_policies(owner: Caller, worker: FakeWorker) -> None:
    described = owner.ok("GET", "/capabilities")["kv_policies"]

    assert described == worker.info.capabilities.kv_policies
