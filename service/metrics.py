"""Prometheus series: vLLM's names where it has them, `tandem_*` for training.

Clocks here are the gateway's own; `worker_metrics` tells what the workers report. Labels are what
operators name (base models, workers, service classes): one taken from a request would be an attack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from service.worker_metrics import WorkerCollector

if TYPE_CHECKING:
    from service.worker_pool import WorkerPool

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TPOT_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
E2E_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class GatewayMetrics:
    """All series of one gateway process."""

    def __init__(self, pool: WorkerPool) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(WorkerCollector(pool))
        labels = ["model_name"]
        self._ttft = self._histogram("time_to_first_token", labels, TTFT_BUCKETS)
        self._itl = self._histogram("inter_token_latency", labels, TPOT_BUCKETS)
        self._tpot = self._histogram("request_time_per_output_token", labels, TPOT_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency", labels, E2E_BUCKETS)
        self._success = Counter(
            "vllm:request_success",
            "Answers that ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )

    def _histogram(self, name: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
        text = f"{name.replace('_', ' ').capitalize()} as the gateway sees it."
        full = f"vllm:{name}_seconds"
        return Histogram(full, text, labels, buckets=buckets, registry=self.registry)

    def first_token(self, model: str, elapsed_s: float) -> None:
        """A sequence produced its first token."""
        self._ttft.labels(model).observe(elapsed_s)

    def next_tokens(self, model: str, elapsed_s: float, num_tokens: int) -> None:
        """A sequence produced tokens after a pause of `elapsed_s`."""
        self._itl.labels(model).observe(elapsed_s / num_tokens)

    def request_done(
        self, model: str, reason: str, elapsed_s: float, decode_s: float, num_tokens: int
    ) -> None:
        """An answer ended by itself; `decode_s` runs from its first token to its last."""
        self._success.labels(model, reason).inc()
        self._e2e.labels(model).observe(elapsed_s)
        if num_tokens > 1:
            self._tpot.labels(model).observe(decode_s / (num_tokens - 1))

    def request_aborted(self, model: str) -> None:
        """An answer ended before it was complete."""
        self._success.labels(model, "abort").inc()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
