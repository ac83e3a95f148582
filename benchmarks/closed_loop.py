"""Drives an engine in this process with closed-loop streams and, if asked, a training job."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bench_model import BASE, BenchModel, prompt
from scheduler.domain.adapter import AdapterRef
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import (
    Abort,
    Frames,
    FromEngine,
    Generate,
    StartJob,
    StopJob,
    ToEngine,
)
from scheduler.domain.request import RequestBody, SamplingParams
from workers.engine import EngineLoop
from workers.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Load:
    """What the callers do.

    Attributes:
        num_streams: callers, each sending its next request when the last one is answered.
        num_adapters: adapters that they take turns with; 0 is the bare base.
    """

    num_streams: int
    num_adapters: int
    prompt_tokens: int = 250
    output_tokens: int = 64


@dataclass(slots=True)
class RequestTimes:
    """When a request was sent, and when each of its tokens came."""

    sent_s: float
    token_s: list[float] = field(default_factory=list)

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return (self.token_s[0] - self.sent_s) * 1e3

    @property
    def tpot_ms(self) -> float:
        """Mean time of the tokens after the first."""
        return (self.token_s[-1] - self.token_s[0]) * 1e3 / (len(self.token_s) - 1)


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """Figures of one phase."""

    seconds: float
    output_tokens_per_s: float
    train_tokens_per_s: float
    ttft_ms: list[float]
    tpot_ms: list[float]
    steps: list[dict[str, float]]

    def percentile(self, name: str, share: float) -> float | None:
        """A percentile of `ttft_ms` or `tpot_ms`."""
        values = sorted(getattr(self, name))
        return values[min(len(values) - 1, int(share * len(values)))] if values else None

    def median(self, name: str) -> float | None:
        """The median of `ttft_ms` or `tpot_ms`."""
        values = getattr(self, name)
        return statistics.median(values) if values else None


class ScriptedConnection:
    """The engine's pipe, with a closed loop of callers at the other end."""

    def __init__(self) -> None:
        self.orders: list[ToEngine] = []
        self.requests: dict[str, RequestTimes] = {}
        self.done: list[RequestTimes] = []
        self.load: Load | None = None
        self.adapters: tuple[Path, ...] = ()
        self._ids = itertools.count()

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See workers.engine.Connection."""
        del timeout_s
        orders, self.orders = self.orders, []
        return orders

    def send(self, message: FromEngine) -> None:
        """Take frames; a caller whose answer is complete asks again."""
        if not isinstance(message, Frames):
            return
        now_s = time.perf_counter()
        for frame in message.frames:
            times = self.requests[frame.request_id]
            times.token_s += [now_s] * len(frame.token_ids)
            if frame.finish_reason is not None:
                self.done.append(self.requests.pop(frame.request_id))
                self.ask()

    def ask(self) -> None:
        """Send one more request of the present load."""
        if self.load is None:
            return
        index = next(self._ids)
        adapter, folder = None, None
        if self.load.num_adapters:
            place = index % self.load.num_adapters
            folder = str(self.adapters[place])
            adapter = AdapterRef(adapter_id=f"a{place}", version=1, digest=folder, uri=folder)
        body = RequestBody(
            request_id=f"r{index}",
            tenant_id=f"tenant{index % 4}",
            base_model=BASE,
            adapter=adapter,
            prompt_token_ids=prompt(index, self.load.prompt_tokens),
            sampling=SamplingParams(
                max_tokens=self.load.output_tokens, temperature=0, ignore_eos=True
            ),
        )
        self.requests[body.request_id] = RequestTimes(time.perf_counter())
        self.orders.append(Generate(request=body, reply_to="bench", adapter_dir=folder))


class Bench:
    """One engine and its callers."""

    def __init__(self, model: BenchModel, **settings: object) -> None:
        self.model = model
        self.connection = ScriptedConnection()
        self.connection.adapters = model.adapters
        options = {"base_models": [f"{BASE}={model.folder}"], **settings}
        self.engine = EngineLoop(EngineSettings.model_validate(options), self.connection)
        self.host = self.engine.hosts[BASE]
        self._jobs = itertools.count()

    def run(
        self, load: Load | None, num_jobs: int, seconds: float, warm_s: float = 2.0
    ) -> PhaseResult:
        """One phase: start callers and jobs, warm up, measure, stop them."""
        jobs = [self._start_job() for _ in range(num_jobs)]
        self.connection.load = load
        for _ in range(load.num_streams if load else 0):
            self.connection.ask()
        self._drive(warm_s)
        self.connection.done.clear()
        tokens, trained = self.engine.meter.output_tokens, self.host.trainer.trained_tokens
        began_s = time.perf_counter()
        self.engine.meter.report([self.host])
        self._drive(seconds)
        elapsed_s = time.perf_counter() - began_s
        steps = [s.model_dump() for s in self.engine.meter.report([self.host]).steps]
        result = PhaseResult(
            elapsed_s,
            (self.engine.meter.output_tokens - tokens) / elapsed_s,
            (self.host.trainer.trained_tokens - trained) / elapsed_s,
            [r.ttft_ms for r in self.connection.done if r.sent_s >= began_s],
            [r.tpot_ms for r in self.connection.done],
            steps,
        )
        self._stop(jobs)
        return result

    def _drive(self, seconds: float) -> None:
        stop_s = time.perf_counter() + seconds
        while time.perf_counter() < stop_s:
            self.engine.turn()

    def _start_job(self) -> str:
        job_id = f"job{next(self._jobs)}"
        spec = FinetuneSpec(
            base_model=BASE,
            n_epochs=50,
            batch_size=4,
            method_config={"rank": 16, "alpha": 32},
            checkpoint_every_steps=10_000,
            checkpoint_every_s=1e6,
        )
        self.connection.orders.append(
            StartJob(
                job_id=job_id,
                tenant_id=job_id,
                epoch=1,
                spec=spec,
                train_path=str(self.model.dataset),
                checkpoint_root=str(self.model.folder.parent / "checkpoints" / job_id),
            )
        )
        return job_id

    def _stop(self, jobs: list[str]) -> None:
        self.connection.load = None
        self.connection.orders = [
            *(Abort(request_id=request_id) for request_id in self.connection.requests),
            *(StopJob(job_id=job_id) for job_id in jobs),
        ]
        self.engine.turn()
        self.connection.requests.clear()
        self.connection.done.clear()
