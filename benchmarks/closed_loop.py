"""Drives an engine in this process with closed-loop streams and, if asked, training jobs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_model import BASE, BenchModel
from benchmarks.load import Load, StopRule
from benchmarks.phase import PhaseResult
from benchmarks.scripted_connection import ScriptedConnection
from benchmarks.step_record import RecordingMeter, trained_tokens
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import Abort, StartJob, StopJob
from scheduler.policy.slack import SloTargets
from workers.engine import EngineLoop
from workers.settings import EngineSettings

WARM_S = 2.0
MAX_WARM_S = 60.0  # a load whose prompts take longer than this is not worth measuring
NO_TARGETS = SloTargets(None, None)


class Bench:
    """One engine and its callers."""

    def __init__(
        self, model: BenchModel, connection: ScriptedConnection | None = None, **settings: object
    ) -> None:
        self.model = model
        self.connection = connection or ScriptedConnection(model.adapters)
        bases = [f"{BASE}={model.folder}"]
        options = {"base_models": bases, "prefix_caching": False, **settings}  # prompts come again
        self.engine = EngineLoop(EngineSettings.model_validate(options), self.connection)
        self.meter = RecordingMeter()
        self.engine.meter = self.engine.requests.meter = self.meter
        self.host = self.engine.hosts[BASE]
        self._jobs = itertools.count()

    def set_targets(self, targets: SloTargets) -> None:
        """What the service promises its callers from now on."""
        self.host.scheduler.classes = {"default": targets}

    def run(self, load: Load | None, num_jobs: int, stop: StopRule) -> PhaseResult:
        """One phase: start callers and jobs, warm up, measure, stop them."""
        jobs = self.start(load, num_jobs)
        result = self.measure(stop)
        self.stop(jobs)
        return result

    def start(self, load: Load | None, num_jobs: int) -> list[str]:
        """Start callers and jobs, and run until every caller has had its first token."""
        jobs = [self._start_job() for _ in range(num_jobs)]
        self.connection.begin(load)
        began_s = time.perf_counter()
        self.drive(lambda: self._is_warm(time.perf_counter() - began_s))
        return jobs

    def measure(self, stop: StopRule) -> PhaseResult:
        """Drive what has been started until the rule is met."""
        done = self.connection.done
        done.clear()
        if self.connection.load is None:  # nobody will be answered
            stop = StopRule(stop.seconds)
        self.meter.records = []
        tokens = self.meter.output_tokens
        began_s = time.perf_counter()
        self.drive(lambda: stop.is_met(time.perf_counter() - began_s, len(done)))
        elapsed_s = time.perf_counter() - began_s
        steps, self.meter.records = self.meter.records, []  # what follows is no step of this phase
        layers = self.host.runner.decoder.config.num_layers
        return PhaseResult(
            elapsed_s,
            (self.meter.output_tokens - tokens) / elapsed_s,
            trained_tokens(steps, layers) / elapsed_s,
            list(done),
            steps,
        )

    def stop(self, jobs: list[str]) -> None:
        """End all callers and the jobs, and drop what they leave behind."""
        self.connection.load = None
        self.connection.orders = [
            *(Abort(request_id=request_id) for request_id in self.connection.requests),
            *(StopJob(job_id=job_id, checkpoint=False) for job_id in jobs),
        ]
        self.engine.turn()
        self.connection.requests.clear()
        self.connection.done.clear()

    def drive(self, is_over: Callable[[], bool]) -> None:
        """Turn the engine until told otherwise."""
        while not is_over():
            self.engine.turn()
            if self.connection.failure is not None:
                raise RuntimeError(self.connection.failure)
            if self.meter.is_due():
                self.connection.send(self.meter.report([self.host]))

    def _is_warm(self, elapsed_s: float) -> bool:
        requests = self.connection.requests.values()
        is_served = not any(times.is_first and not times.token_s for times in requests)
        return (elapsed_s >= WARM_S and is_served) or elapsed_s >= MAX_WARM_S

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
        root: Path = self.model.folder.parent / "checkpoints" / job_id
        self.connection.orders.append(
            StartJob(
                job_id=job_id,
                tenant_id=job_id,
                epoch=1,
                spec=spec,
                train_path=str(self.model.dataset),
                checkpoint_root=str(root),
            )
        )
        return job_id
