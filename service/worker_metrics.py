"""The workers' last reports as Prometheus series, at the moment of a scrape.

What the engines count are totals since their start, so every gateway tells the same and a report
that a gateway missed is missing nowhere.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from scheduler.domain.engine_stats import EngineStats, HistogramTotals
    from scheduler.domain.messages import WorkerInfo
    from scheduler.domain.service_class import ClassTargets
    from service.worker_pool import WorkerPool

    Reports = list[tuple[WorkerInfo, EngineStats]]

_LABELS = ["model_name", "engine"]
_GAUGES = {
    "vllm:num_requests_running": ("Sequences in the engine's batch.", "num_running"),
    "vllm:num_requests_waiting": ("Requests waiting in the engine.", "num_waiting"),
    "vllm:kv_cache_usage_perc": ("Share of KV blocks in use, 0 to 1.", "kv_usage"),
    "tandem_training_memory_perc": ("Share of KV blocks lent to training.", "training_usage"),
}
_COUNTERS = {
    "vllm:prompt_tokens": ("Prompt tokens, computed or cached.", "prompt_tokens"),
    "vllm:generation_tokens": ("Tokens generated.", "generation_tokens"),
    "vllm:prefix_cache_queries": ("Tokens looked up in the prefix cache.", "prefix_queries"),
    "vllm:prefix_cache_hits": ("Tokens found in it, and not computed.", "prefix_hits"),
    "tandem_kv_kept_tokens": ("Prompt tokens that KV policies kept.", "kv_kept_tokens"),
    "tandem_kv_dropped_tokens": ("Prompt tokens that they dropped.", "kv_dropped_tokens"),
    "vllm:num_preemptions": ("Sequences preempted.", "num_preemptions"),
    "tandem_training_recalls": ("Packs that started over to free blocks.", "num_recalls"),
    "tandem_trained_tokens": ("Tokens trained on.", "trained_tokens"),
}
# series: (meaning, the engine's name for it, how many of its units make one of the series')
_HISTOGRAMS = {
    "vllm:iteration_tokens_total": ("Inference tokens of a step.", "inference_tokens", 1.0),
    "tandem_step_seconds": ("Time of a step.", "step_ms", 1e3),
    "tandem_step_prediction_error_seconds": (
        "Distance between a step's predicted and real time; steps that were cut short left out.",
        "prediction_error_ms",
        1e3,
    ),
    "tandem_step_slack_seconds": (
        "Time that training might take in a step that a caller with a target waited for.",
        "slack_ms",
        1e3,
    ),
    "tandem_adapter_cold_load_seconds": (
        "Time in which an adapter came from the disk, for the requests that waited.",
        "adapter_load_ms",
        1e3,
    ),
    "tandem_adapter_expand_seconds": (
        "Time in which a compressed adapter came from host memory.",
        "adapter_expand_ms",
        1e3,
    ),
}
_TIERS = {
    "tandem_adapter_resident": (GaugeMetricFamily, "Adapters that a tier holds.", "num_adapters"),
    "tandem_adapter_hits": (
        CounterMetricFamily, "Requests that found their adapter in a tier.", "num_hits"
    ),
    "tandem_adapter_misses": (
        CounterMetricFamily, "Requests that looked for it there in vain.", "num_misses"
    ),
    "tandem_adapter_loads": (CounterMetricFamily, "Adapters brought into a tier.", "num_loads"),
    "tandem_adapter_evictions": (
        CounterMetricFamily, "Adapters that made room for others.", "num_evictions"
    ),
}  # fmt: skip


class WorkerCollector(Collector):
    """One family per series, one sample per worker."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """All series."""
        reports = [(w, w.stats) for w in self._pool.roster.workers if w.stats is not None]
        yield from _reported(reports)
        yield from _histograms(reports)
        yield _tokens_by_kind(reports)
        yield _slo(reports)
        yield from _adapter_tiers(reports)
        yield _targets(self._pool.roster.service_classes)
        yield from self._counted(reports)

    def _counted(self, reports: Reports) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("tandem_active_jobs", "Jobs that train.", labels=["engine"])
        for worker, stats in reports:
            jobs.add_metric([worker.worker_id], len(stats.active_jobs))
        yield jobs
        workers = len(self._pool.roster.workers)
        yield GaugeMetricFamily("tandem_workers", "Live workers.", value=workers)
        waiting = self._pool.live.num_waiting()
        yield GaugeMetricFamily(
            "tandem_gateway_waiting_requests", "Requests without a first token.", value=waiting
        )
        yield CounterMetricFamily(
            "tandem_stream_gaps", "Gaps seen in workers' frames.", value=self._pool.num_gaps
        )
        moves = CounterMetricFamily(
            "tandem_request_moves",
            "Requests whose worker died: tried elsewhere before their first token (retry), "
            "gone on with elsewhere (continuation), or ended with an error (none).",
            labels=["move"],
        )
        for move, count in self._pool.num_moves.items():
            moves.add_metric([move], count)
        yield moves


def _labels(worker: WorkerInfo) -> list[str]:
    models = ",".join(base.id for base in worker.capabilities.base_models)
    return [models, worker.worker_id]


def _reported(reports: Reports) -> Iterator[Metric]:
    kinds = ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS))
    for family, table in kinds:
        for name, (text, attribute) in table.items():
            metric = family(name, text, labels=_LABELS)
            for worker, stats in reports:
                metric.add_metric(_labels(worker), getattr(stats, attribute))
            yield metric


def _histograms(reports: Reports) -> Iterator[Metric]:
    for name, (text, measured, divisor) in _HISTOGRAMS.items():
        metric = HistogramMetricFamily(name, text, labels=_LABELS)
        for worker, stats in reports:
            if measured in stats.histograms:
                totals = stats.histograms[measured]
                metric.add_metric(
                    _labels(worker), _buckets(totals, divisor), totals.total / divisor
                )
        yield metric


def _buckets(totals: HistogramTotals, divisor: float) -> list[tuple[str, float]]:
    """Counts up to each bound, as Prometheus wants them: each bucket holds those before it."""
    bounds = [*(str(bound / divisor) for bound in totals.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(totals.counts)), strict=True))


def _tokens_by_kind(reports: Reports) -> Metric:
    metric = CounterMetricFamily(
        "tandem_step_tokens",
        "Tokens of steps: decode, prefill, train_forward, train_backward.",
        labels=[*_LABELS, "kind"],
    )
    for worker, stats in reports:
        for kind, count in stats.tokens_by_kind.items():
            metric.add_metric([*_labels(worker), kind], count)
    return metric


def _adapter_tiers(reports: Reports) -> Iterator[Metric]:
    for name, (family, text, attribute) in _TIERS.items():
        metric = family(name, text, labels=["engine", "tier"])
        for worker, _ in reports:
            for tier in worker.adapter_tiers:
                metric.add_metric([worker.worker_id, tier.tier], getattr(tier, attribute))
        yield metric


def _slo(reports: Reports) -> Metric:
    metric = CounterMetricFamily(
        "tandem_slo_requests",
        "Answers within and over their class's target of time to first token and mean time per "
        "output token, by whether a job trained meanwhile.",
        labels=[*_LABELS, "service_class", "target", "training", "outcome"],
    )
    for worker, stats in reports:
        for row in stats.slo:
            labels = [row.service_class, row.target, str(row.training_active).lower()]
            for outcome, count in (("within", row.num_within), ("over", row.num_over)):
                metric.add_metric([*_labels(worker), *labels, outcome], count)
    return metric


def _targets(classes: Mapping[str, ClassTargets]) -> Metric:
    metric = GaugeMetricFamily(
        "tandem_slo_target_seconds",
        "Targets of the service classes; a class without one has no series.",
        labels=["service_class", "target"],
    )
    for name, targets in classes.items():
        for target, limit_ms in (("ttft", targets.ttft_ms), ("tpot", targets.tpot_ms)):
            if limit_ms is not None:
                metric.add_metric([name, target], limit_ms / 1e3)
    return metric
