"""The engine itself over a random model, with callers that arrive in bursts and jobs that train.

Lengths are drawn like those of ShareGPT's conversations, log-normal; arrivals are Poisson with a
rate that jumps between half and half as much again of its mean every two seconds.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu.random_job import lora_job, write_dataset
from benchmarks.gpu.random_model import BASE, random_weights
from benchmarks.gpu.setting import Setting, llama_config
from benchmarks.load import RequestTimes
from benchmarks.step_record import RecordingMeter, trained_tokens
from scheduler.domain.messages import (
    Abort,
    Frames,
    FromEngine,
    Generate,
    JobStopped,
    StopJob,
    ToEngine,
)
from scheduler.domain.request import KvPolicyChoice, RequestBody, SamplingParams
from scheduler.policy.fairness import FairShare
from workers.adapter_file import BaseIdentity
from workers.engine import EngineLoop
from workers.model_host import LoadedBase, make_host
from workers.rehearsal import rehearse
from workers.settings import EngineSettings

PHASE_S = 2.0
MEDIANS = {"prompt": 120.0, "output": 160.0}
SPREAD = 0.9
MOST_TOKENS = 1024
JUDGED_TOKENS = 32


@dataclass(frozen=True, slots=True)
class CardPhase:
    """What some seconds gave.

    Attributes:
        requests: those that were answered to the end in them.
        running: those that were not, but had JUDGED_TOKENS and more by then: without them the
            long answers would be missing.
    """

    seconds: float
    output_tokens_per_s: float
    train_tokens_per_s: float
    requests: list[RequestTimes]
    running: list[RequestTimes]


class Arrivals:
    """The engine's pipe, with callers at the other end who do not wait for each other."""

    def __init__(self, is_tiny: bool) -> None:
        self.is_tiny = is_tiny
        self.random = np.random.default_rng(0)
        self.orders: list[ToEngine] = []
        self.rate = 0.0
        self.next_s = 0.0
        self.requests: dict[str, RequestTimes] = {}
        self.done: list[RequestTimes] = []
        self.failure: str | None = None
        self._ids = itertools.count()

    def begin(self, rate: float) -> None:
        """Requests a second from now on."""
        self.rate, self.next_s = rate, time.perf_counter()

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See workers.connection.Connection."""
        now_s = time.perf_counter()
        while self.rate and self.next_s <= now_s:
            self.ask()
            burst = 1.5 if int(now_s / PHASE_S) % 2 else 0.5
            self.next_s += self.random.exponential(1 / (self.rate * burst))
        if timeout_s and not self.orders:
            time.sleep(min(timeout_s, 0.001))
        orders, self.orders = self.orders, []
        return orders

    def send(self, message: FromEngine) -> None:
        """Take frames."""
        if isinstance(message, JobStopped) and message.error:
            self.failure = message.error
        if not isinstance(message, Frames):
            return
        now_s = time.perf_counter()
        for frame in message.frames:
            times = self.requests.get(frame.request_id)
            self.failure = self.failure or frame.error
            if times is None:
                continue
            times.token_s += [now_s] * len(frame.token_ids)
            if frame.finish_reason is not None:
                self.done.append(self.requests.pop(frame.request_id))

    def ask(
        self,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        kv_policy: KvPolicyChoice | None = None,
    ) -> RequestTimes:
        """One more request; lengths that are not given are drawn."""
        request_id = f"r{next(self._ids)}"
        prompt = self._length("prompt") if prompt_tokens is None else prompt_tokens
        output = self._length("output") if output_tokens is None else output_tokens
        body = RequestBody(
            request_id=request_id,
            tenant_id="callers",
            base_model=BASE,
            prompt_token_ids=tuple(self.random.integers(2, 500, prompt).tolist()),
            sampling=SamplingParams(max_tokens=output, temperature=0, ignore_eos=True),
            kv_policy=kv_policy,
        )
        self.orders.append(Generate(request=body, reply_to="callers"))
        times = self.requests[request_id] = RequestTimes(time.perf_counter())
        return times

    def _length(self, kind: str) -> int:
        if self.is_tiny:
            return int(self.random.integers(4, 12))
        drawn = self.random.lognormal(np.log(MEDIANS[kind]), SPREAD)
        return int(min(max(drawn, 4), MOST_TOKENS))


class CardEngine:
    """An engine over weights made on its device."""

    def __init__(self, setting: Setting, shape: str, tpot_ms: float, folder: Path) -> None:
        self.setting, self.folder = setting, folder
        self.connection = Arrivals(setting.is_tiny)
        settings = engine_settings(setting, tpot_ms)
        self.engine = EngineLoop(settings, self.connection)
        config = llama_config(shape)
        base = LoadedBase(
            BaseIdentity(BASE, "0"), config, random_weights(config, setting), frozenset({1})
        )
        writer, send = self.engine.writer, self.connection.send
        self.host = make_host(base, settings, writer, send, FairShare())
        self.engine.hosts[BASE] = self.host
        self.meter = RecordingMeter()
        self.engine.meter = self.engine.requests.meter = self.meter
        self.dataset = folder / "train.bin"
        tokens = 64 if setting.is_tiny else 4096
        write_dataset(self.dataset, 512, tokens, config.vocab_size)
        self._jobs = itertools.count()

    def rehearse(self) -> None:
        """Compile and capture, as a worker does before its first caller."""
        if self.host.runner.graphs is not None:
            rehearse(self.host, self.host.runner.graphs)

    def start_job(self) -> str:
        """A LoRA of rank 16 on all linears that trains until it is stopped."""
        job_id = f"job{next(self._jobs)}"
        self.connection.orders.append(lora_job(job_id, self.dataset, self.folder / job_id))
        self.engine.turn()
        return job_id

    def measure(self, seconds: float) -> CardPhase:
        """Drive what has been started for so long."""
        self.connection.done.clear()
        self.meter.records, tokens = [], self.meter.output_tokens
        began_s = time.perf_counter()
        self.drive(lambda: time.perf_counter() - began_s >= seconds)
        elapsed_s = time.perf_counter() - began_s
        layers = self.host.runner.decoder.config.num_layers
        return CardPhase(
            elapsed_s,
            (self.meter.output_tokens - tokens) / elapsed_s,
            trained_tokens(self.meter.records, layers) / elapsed_s,
            [times for times in self.connection.done if len(times.token_s) > 1],
            [t for t in self.connection.requests.values() if len(t.token_s) >= JUDGED_TOKENS],
        )

    def drive(self, is_over: Callable[[], bool]) -> None:
        """Turn the engine until told otherwise.

        Raises:
            RuntimeError: a request or a job failed.
        """
        while not is_over():
            self.engine.turn()
            if self.connection.failure is not None:
                raise RuntimeError(self.connection.failure)

    def stop(self) -> None:
        """End all callers and jobs."""
        self.connection.rate = 0.0
        self.connection.orders = [
            *(Abort(request_id=request_id) for request_id in self.connection.requests),
            *(StopJob(job_id=j, checkpoint=False) for j in self.host.trainer.active),
        ]
        self.engine.turn()
        self.connection.requests.clear()


def engine_settings(setting: Setting, tpot_ms: float) -> EngineSettings:
    """For an 80 GB card: 16 GB of weights, 42 of pages, 18 of which training may borrow."""
    options: dict[str, object] = {
        "device": "cuda:0" if setting.device.type == "cuda" else "cpu",
        "dtype": str(setting.dtype).removeprefix("torch."),
        "kv_cache_bytes": (64 << 20) if setting.is_tiny else (42 << 30),
        "max_num_sequences": 64 if setting.is_tiny else 128,
        "training_memory_bytes": (32 << 20) if setting.is_tiny else (18 << 30),
        "max_jobs": 1,
        "adapter_slots": 8,
        "tpot_ms": tpot_ms,
        "ttft_ms": 1000.0,
    }
    return EngineSettings.model_validate(options)


def card_engine(setting: Setting, tpot_ms: float) -> CardEngine:
    """An engine over the largest shape, with a scratch folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-gpu-"))
    return CardEngine(setting, setting.largest, tpot_ms, folder)
