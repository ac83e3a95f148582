"""The engine: one loop that serves and trains every base model of this worker.

step:  drain orders -> schedule (ints) -> packed forward -> tokens leave -> units of training
"""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import torch

from scheduler.domain.messages import (
    Abort,
    Drain,
    EngineReady,
    Generate,
    Replay,
    StartJob,
    StopJob,
    ToEngine,
    WorkerCapabilities,
)
from scheduler.domain.plan import Span, StepPlan
from scheduler.domain.registry import Registry
from scheduler.domain.request import Sequence
from scheduler.policy.fairness import FairShare
from workers.adapter_loader import AdapterLoader
from workers.adapter_shelf import AdapterShelf
from workers.batch_builder import InferenceRow
from workers.checkpoint_writer import CheckpointWriter, FollowersWriter
from workers.codec_search import Ladder
from workers.codecs import CODECS
from workers.compaction import compress_due
from workers.connection import Connection
from workers.engine_stats import EngineMeter
from workers.flight import Flight
from workers.group import ALONE, Group
from workers.inline_executor import InlineExecutor
from workers.job_checkpoint import fingerprint
from workers.job_desk import JobDesk
from workers.kv_policies import KV_POLICIES
from workers.lane_device import serve_before_lanes
from workers.merges import MERGES
from workers.model_host import ModelHost, compute_dtype, load_host
from workers.optimizers import OPTIMIZERS
from workers.peft_methods import PEFT_METHODS
from workers.rehearsal import rehearse
from workers.request_desk import RequestDesk
from workers.request_policy import default_policy
from workers.settings import EngineSettings

IDLE_POLL_S = 0.25  # how long an engine without work sleeps between two looks at the clock
LOADING_POLL_S = 1e-3  # and while adapters are on their way

LANE_SWITCH_S = 5e-4  # how long one lane's Python may hold up the other's


class EngineLoop:
    """Orders in, frames and reports out."""

    def __init__(
        self, settings: EngineSettings, connection: Connection, group: Group = ALONE
    ) -> None:
        self.settings = settings
        self.group = group
        self.connection = connection
        device = torch.device(settings.device)
        serve_before_lanes(device)
        machine = fingerprint(device, compute_dtype(settings), settings.weight_format)
        machine["tensor_parallel"] = group.shard.size
        group.check_same([machine, settings.common()])
        writer_type = CheckpointWriter if group.is_leader else FollowersWriter
        self.writer = writer_type(connection.send, machine)
        fair = FairShare()
        self.hosts = {
            model_id: load_host(
                model_id, folder, settings, self.writer, connection.send, fair, group
            )
            for model_id, folder in settings.model_dirs().items()
        }
        group.check_same([host.info for host in self.hosts.values()])
        for host in self.hosts.values():
            if host.runner.graphs is not None:
                rehearse(host, host.runner.graphs)
        self.meter = EngineMeter()
        shelf = AdapterShelf(settings.adapter_ram_bytes)
        self.loader = AdapterLoader(shelf, None if group.is_alone else InlineExecutor())
        policy = default_policy(settings.kv_policy)
        self.requests = RequestDesk(self.hosts, connection, self.meter, self.loader, policy, group)
        self.jobs = JobDesk(self.hosts, self.writer, group)
        self.pending: list[ToEngine] = []
        self.is_draining = False
        sys.setswitchinterval(LANE_SWITCH_S)
        gc.collect()
        gc.freeze()  # what was loaded stays: no collection needs to walk it again

    def run(self) -> None:
        """Serve until drained, or until the connection closes."""
        self.connection.send(EngineReady(capabilities=self.capabilities()))
        while not (self.is_draining and not self.requests.live):
            self.turn()
            if self.meter.is_due():
                self._report()
        self.writer.close()

    def _report(self) -> None:
        hosts, requests = list(self.hosts.values()), self.requests
        stats = self.meter.report(hosts, requests.adapter_tiers(), requests.num_loading)
        self.connection.send(stats)

    def turn(self) -> None:
        """Handle the orders that have arrived, then one step of every base model."""
        self._take_orders()
        self.requests.collect_adapters()
        self.jobs.drop_failed()
        busy = [host for host in self.hosts.values() if host.has_work]
        for host in busy:
            self.step(host)
            if len(busy) > 1:
                host.trainer.finish_lane()  # the next base model's step has all of the machine

    def capabilities(self) -> WorkerCapabilities:
        """What this engine can do, for the gateway to validate against."""
        return WorkerCapabilities(
            base_models=tuple(host.info for host in self.hosts.values()),
            peft_methods=_schemas(PEFT_METHODS),
            optimizers=_schemas(OPTIMIZERS),
            objectives={"supervised": {}},
            kv_policies=_schemas(KV_POLICIES) if self.group.is_alone else {},
            codecs=_schemas(CODECS),
            ladders={"compeft": Ladder.model_json_schema()},
            merges=_schemas(MERGES),
            max_rank=self.settings.max_rank,
            max_num_sequences=self.settings.max_num_sequences,
            service_classes=self.settings.service_classes(),
        )

    def step(self, host: ModelHost) -> None:
        """Run one co-serving iteration of a base model."""
        plan = host.scheduler.schedule(self.group.now_s(), self.requests.admit)
        self.group.check_same(plan)
        began_s = time.perf_counter()
        self.jobs.begin_beside(host, plan)
        if plan.spans or plan.windows:
            with host.trainer.side.device.step(is_beside=plan.is_beside):
                self._forward(host, plan)
        else:
            self._land(host)
        beside = self.jobs.take_beside(host)
        units = self.jobs.run_lane(host, plan, self._nobody_new)
        self.jobs.advance(host)
        self.meter.count_step(plan, units, (time.perf_counter() - began_s) * 1e3, beside)

    def _forward(self, host: ModelHost, plan: StepPlan) -> None:
        """The packed forward; tokens leave before any backward begins."""
        flight = self._launch(host, plan)
        self._land(host)
        host.scheduler.commit(plan)
        flight.reserve()
        host.flight = flight
        if plan.windows:
            host.trainer.finish_windows(plan.windows, flight.result.hidden)
        if flight.needs_reading or not host.runner.reads_late:
            self._land(host)
        compress_due(host, flight.rows)

    def _launch(self, host: ModelHost, plan: StepPlan) -> Flight:
        """Issue the packed forward and the draw; nothing is waited for on a device of its own."""
        began_s = time.perf_counter()
        by_id = {sequence.id: sequence for sequence in host.scheduler.running}
        rows = [self._row(span, by_id[span.sequence_id]) for span in plan.spans]
        host.runner.cache.clear(list(plan.fresh_blocks))
        result = host.runner.run(rows, host.trainer.pack_windows(plan.windows))
        for row in rows:
            if row.span.sequence_id in result.prompt_logprobs:
                scores = result.prompt_logprobs[row.span.sequence_id]
                self.requests.keep_prompt_scores(row.sequence, row.span.start, scores)
        return Flight(plan, rows, result, began_s)

    def _land(self, host: ModelHost) -> None:
        """Read the tokens of the packed forward that is on its way, and send them."""
        flight, host.flight = host.flight, None
        if flight is None:
            return
        self.requests.emit(host, flight.leads, flight.read())
        since_s, host.landed_s = max(flight.began_s, host.landed_s), time.perf_counter()
        elapsed_ms = self.group.tell((host.landed_s - since_s) * 1e3)
        host.scheduler.observe_forward(flight.plan, elapsed_ms)

    def _row(self, span: Span, sequence: Sequence) -> InferenceRow:
        columns = self.requests.columns(sequence)
        return InferenceRow(span, sequence, columns, self.requests.watch(sequence, span))

    def _take_orders(self) -> None:
        """Handle what has arrived; sleep when there is nothing to do at all."""
        orders, self.pending = self.pending, []
        has_work = bool(orders) or any(host.has_work for host in self.hosts.values())
        idle_s = LOADING_POLL_S if self.loader.is_busy else IDLE_POLL_S
        orders += self.connection.poll(0.0 if has_work else idle_s)
        for order in orders:
            self._handle(order)

    def _handle(self, order: ToEngine) -> None:
        match order:
            case Generate():
                self.requests.generate(order)
            case Abort():
                self.requests.abort(order)
            case Replay():
                self.requests.replay(order)
            case StartJob():
                self.jobs.start(order)
            case StopJob():
                self.jobs.stop(order)
            case Drain():
                self.is_draining = self.requests.is_closed = True
                self.jobs.close()

    def _nobody_new(self) -> bool:
        """Look for orders and adapters between two units; the lane yields to any."""
        if not self.pending:
            self.pending = self.connection.poll(0.0)
        return not self.pending and not self.loader.has_news


def _schemas(registry: Registry[Any]) -> dict[str, dict[str, Any]]:
    """Name -> JSON Schema of the plug-in's options."""
    return {name: registry[name].Config.model_json_schema() for name in registry.names()}
