"""The operator's board as Prometheus series, which name tenants and so are for admin keys only.

They are read from SQL at the moment of a scrape, but for what this gateway has refused. Only jobs
that run have series of their own, and there are never more of those than the workers train at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from scheduler.domain.rate_limit import RateKind
    from scheduler.store.board import JobTally, OutboxBacklog, RunningJob
    from scheduler.store.usage import ModelUsage

_JOB_LABELS = ["job", "tenant"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # registries hash their collectors
class BoardReport(Collector):
    """What one scrape has read."""

    usage: Sequence[ModelUsage]
    running: Sequence[RunningJob]
    tally: JobTally
    outbox: OutboxBacklog
    refused: Mapping[tuple[str, RateKind], int]

    def collect(self) -> Iterator[Metric]:
        """All series."""
        yield self._tokens()
        yield self._refused()
        yield self._jobs()
        yield from self._training()
        yield GaugeMetricFamily(
            "tandem_leases_expired",
            "Running jobs whose worker is unheard of and that nobody has taken back yet.",
            value=self.tally.num_expired,
        )
        yield GaugeMetricFamily(
            "tandem_outbox_unsent", "Hints that wait to be sent.", value=self.outbox.num_unsent
        )
        yield GaugeMetricFamily(
            "tandem_outbox_oldest_seconds", "Age of the oldest.", value=self.outbox.oldest_s
        )

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def _tokens(self) -> Metric:
        metric = CounterMetricFamily(
            "tandem_tenant_tokens",
            "Tokens of a tenant: prompt, output, trained (of jobs that have ended).",
            labels=["tenant", "kind"],
        )
        totals: Counter[tuple[str, str]] = Counter()
        for row in self.usage:
            totals[row.tenant, "prompt"] += row.prompt_tokens
            totals[row.tenant, "output"] += row.output_tokens
            totals[row.tenant, "trained"] += row.trained_tokens
        for labels, count in totals.items():
            metric.add_metric(labels, count)
        return metric

    def _refused(self) -> Metric:
        metric = CounterMetricFamily(
            "tandem_rate_limited_requests",
            "Requests refused for a limit of their tenant: requests or tokens a minute.",
            labels=["tenant", "kind"],
        )
        for (tenant, kind), count in self.refused.items():
            metric.add_metric([tenant, kind], count)
        return metric

    def _jobs(self) -> Metric:
        metric = GaugeMetricFamily("tandem_jobs", "Jobs by status.", labels=["status"])
        for status, count in self.tally.by_status.items():
            metric.add_metric([status], count)
        return metric

    def _training(self) -> Iterator[Metric]:
        loss = GaugeMetricFamily("tandem_job_loss", "Newest training loss.", labels=_JOB_LABELS)
        rate = GaugeMetricFamily(
            "tandem_job_tokens_per_second", "Trained tokens a second.", labels=_JOB_LABELS
        )
        done = GaugeMetricFamily(
            "tandem_job_progress_ratio", "Steps done, of all.", labels=_JOB_LABELS
        )
        lease = GaugeMetricFamily(
            "tandem_lease_left_seconds",
            "Until the job is taken from its worker, unless it is renewed.",
            labels=[*_JOB_LABELS, "engine"],
        )
        for job in self.running:
            labels = [job.job_id, job.tenant]
            lease.add_metric([*labels, job.lease.owner], job.lease.left_s)
            if job.newest is not None:
                loss.add_metric(labels, job.newest.train_loss)
                rate.add_metric(labels, job.newest.tokens_per_second)
                done.add_metric(labels, job.newest.step / job.newest.total_steps)
        yield from (loss, rate, done, lease)
