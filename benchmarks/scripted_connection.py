"""The engine's pipe, with a closed loop of callers at the other end."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from benchmarks.bench_model import BASE
from benchmarks.load import Load, RequestTimes
from benchmarks.peers.prompts import first_output_tokens, lengths, prompt
from scheduler.domain.adapter import AdapterRef
from scheduler.domain.messages import Frames, FromEngine, Generate, JobStopped, ToEngine
from scheduler.domain.request import KvPolicyChoice, RequestBody, SamplingParams


class ScriptedConnection:
    """Callers that ask again as soon as they are answered, and orders that come when told to."""

    def __init__(self, adapters: tuple[Path, ...]) -> None:
        self.adapters = adapters
        self.orders: list[ToEngine] = []
        self.later: list[tuple[float, ToEngine]] = []  # orders by the time at which they arrive
        self.requests: dict[str, RequestTimes] = {}
        self.done: list[RequestTimes] = []
        self.load: Load | None = None
        self.kv_policy: KvPolicyChoice | None = None
        self.failure: str | None = None
        self._ids = itertools.count()

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See workers.engine.Connection: orders that have arrived; sleeps until one has."""
        if timeout_s and not self.orders:
            self._sleep(timeout_s)
        now_s = time.perf_counter()
        orders = self.orders + [order for due_s, order in self.later if due_s <= now_s]
        self.orders = []
        self.later = [(due_s, order) for due_s, order in self.later if due_s > now_s]
        return orders

    def send(self, message: FromEngine) -> None:
        """Take frames; a caller whose answer is complete asks again."""
        if isinstance(message, JobStopped) and message.error:  # comes from the writer's thread
            self.failure = f"Job {message.job_id} failed: {message.error}"
        if not isinstance(message, Frames):
            return
        now_s = time.perf_counter()
        for frame in message.frames:
            if frame.error:
                self.failure = f"Request {frame.request_id} failed: {frame.error}"
            times = self.requests[frame.request_id]
            times.token_s += [now_s] * len(frame.token_ids)
            if frame.finish_reason is not None:
                self._keep(self.requests.pop(frame.request_id))
                self.ask_again()

    def ask_again(self) -> None:
        """Whoever has been answered sends the next request."""
        if self.load is not None:
            self.orders.append(self.request(self.load))

    def _keep(self, times: RequestTimes) -> None:
        """Remember an answer; those of one token, or sent as the load began, say nothing."""
        if len(times.token_s) > 1 and not times.is_first:
            self.done.append(times)

    def begin(self, load: Load | None) -> None:
        """Every stream of a load sends its first request."""
        self.load = load
        for stream in range(load.num_streams if load else 0):
            assert load is not None
            tokens = first_output_tokens(stream, load.num_streams)
            self.orders.append(self.request(load, output_tokens=tokens, is_first=True))

    def request(
        self,
        load: Load,
        *,
        output_tokens: int | None = None,
        sent_s: float | None = None,
        is_first: bool = False,
        index: int | None = None,
    ) -> Generate:
        """The next request of a load, or the one of a given index; counted as sent."""
        place = next(self._ids)
        index = place if index is None else index
        prompt_tokens, own_tokens = self.lengths(index)
        adapter = self._adapter(index, load)
        body = RequestBody(
            request_id=f"r{place}",
            tenant_id=f"tenant{index % 4}",
            base_model=BASE,
            adapter=adapter,
            prompt_token_ids=prompt(index, prompt_tokens),
            sampling=SamplingParams(
                max_tokens=output_tokens or own_tokens, temperature=0, ignore_eos=True
            ),
            kv_policy=self.kv_policy,
        )
        sent_s = time.perf_counter() if sent_s is None else sent_s
        self.requests[body.request_id] = RequestTimes(sent_s, is_first)
        folders = {} if adapter is None else {adapter.digest: adapter.uri}
        return Generate(request=body, reply_to="bench", adapter_dirs=folders)

    def _adapter(self, index: int, load: Load) -> AdapterRef | None:
        if not load.num_adapters:
            return None
        place = self.place(index, load)
        folder = str(self.adapters[place])
        return AdapterRef(adapter_id=f"a{place}", version=1, digest=folder, uri=folder)

    def lengths(self, index: int) -> tuple[int, int]:
        """Prompt and output tokens of a request."""
        return lengths(index)

    def place(self, index: int, load: Load) -> int:
        """Which adapter a request names: all take turns."""
        return index % load.num_adapters

    def _sleep(self, timeout_s: float) -> None:
        """As a real pipe would: until the next order, or until the time is over."""
        now_s = time.perf_counter()
        due_s = min((due_s for due_s, _ in self.later), default=now_s + timeout_s)
        time.sleep(max(0.0, min(timeout_s, due_s - now_s)))
