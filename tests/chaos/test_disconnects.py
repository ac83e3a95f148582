"""Callers hang up in every phase of a request; what the engine held for them comes back."""

from __future__ import annotations

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.service import BASE_MODEL, PATIENCE_S, RunningService, start, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HELD = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "tandem_gateway_waiting_requests",
)
GENERATED, COMPUTED = "vllm:generation_tokens_total", "vllm:prompt_tokens_total"
REPORTED_S = 3.0  # reports of the engine are younger than that
ANSWER_TOKENS = 1000
CALLERS_AT_ONCE = 20
# phase: (tokens of the prompt, about; what has arrived when the caller hangs up)
PHASES = {"queued": (8, b""), "prefill": (900, b""), "decode": (8, b"data: ")}
QUEUED_S, PREFILL_S = 0.005, 0.1


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = start(tmp_path_factory.mktemp("disconnects"))
    until(lambda: GENERATED + "{" in _page(running))  # the engine's first report
    yield running
    running.stop()


def _page(service: RunningService) -> str:
    return httpx.get(f"{service.url}/metrics", trust_env=False, timeout=60).text


def _metrics(service: RunningService, *names: str) -> dict[str, float]:
    """The metrics' values at this moment, over all engines."""
    page = _page(service)
    found = {name: re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.M) for name in names}
    assert all(found.values()), found
    return {name: sum(map(float, values)) for name, values in found.items()}


def _hang_up(service: RunningService, key: str, phase: str, number: int) -> None:
    """Ask for a long answer, and close the connection in the phase."""
    num_words, awaited = PHASES[phase]
    body = json.dumps(
        {
            "model": BASE_MODEL,
            "prompt": f"{number} " + "word " * num_words,
            "max_tokens": ANSWER_TOKENS,
            "stream": True,
            "ignore_eos": True,
        }
    )
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        time.sleep(PREFILL_S if phase == "prefill" else QUEUED_S)
        seen = b""
        while awaited not in seen:
            received = connection.recv(4096)
            assert received, seen
            seen += received


def _until_held(service: RunningService, expected: dict[str, float]) -> None:
    """Wait until requests hold this much and no other, for as long as a report may be late."""
    since_s = deadline_s = time.monotonic()
    deadline_s += PATIENCE_S
    while time.monotonic() - since_s < REPORTED_S:
        held = _metrics(service, *HELD)
        if held != expected:
            since_s = time.monotonic()
        assert since_s < deadline_s, held
        time.sleep(0.1)


@pytest.mark.parametrize(
    "callers",
    [pytest.param(60, marks=pytest.mark.e2e), pytest.param(1000, marks=pytest.mark.chaos)],
)
@pytest.mark.parametrize("phase", PHASES)
def test_callers_who_hang_up_leave_nothing_behind(
    phase: str, callers: int, service: RunningService, found: Callable[[int, str, str], None]
) -> None:
    key = service.tenant(f"{phase}-{callers}").api_key
    before = _metrics(service, GENERATED, COMPUTED, *HELD)

    with ThreadPoolExecutor(CALLERS_AT_ONCE) as pool:
        list(pool.map(lambda number: _hang_up(service, key, phase, number), range(callers)))
    _until_held(service, {name: before[name] for name in HELD})

    after = _metrics(service, GENERATED, COMPUTED)
    computed, generated = after[COMPUTED] - before[COMPUTED], after[GENERATED] - before[GENERATED]
    assert generated < callers * ANSWER_TOKENS / 10, "answers went on for nobody"
    seen = f"the baseline; {computed:.0f} prompt tokens, {generated:.0f} of answers"
    found(callers, f"the baseline after {phase}", seen)
