"""The jobs inside the engine: started, stepped, stopped; one that raises fails alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import structlog

from scheduler.domain.errors import DomainError, ModelNotFound, Overloaded
from scheduler.domain.messages import JobStopped, StartJob, StopJob
from scheduler.domain.plan import LaneUnits, StepPlan
from scheduler.policy.pack_cursor import Unit
from workers.checkpoint_writer import CheckpointWriter
from workers.group import Group
from workers.model_host import ModelHost
from workers.trainer import Trainer
from workers.unit_clock import TimedUnit

log = structlog.get_logger()


class JobDesk:
    """All jobs of an engine, over all its base models."""

    def __init__(
        self, hosts: Mapping[str, ModelHost], writer: CheckpointWriter, group: Group
    ) -> None:
        self.hosts = hosts
        self.writer = writer
        self.group = group
        self.is_closed = False

    def start(self, order: StartJob) -> None:
        """Begin or resume a job, under the newest lease only."""
        host = self.hosts.get(order.spec.base_model)
        epochs = self._epochs_of(order.job_id)
        if any(epoch >= order.epoch for epoch in epochs):
            return  # sent twice
        if epochs:  # what trained under the older lease is nobody's any more
            self._drop(order.job_id)
        with self._boundary(order.job_id, order.epoch):
            if host is None:
                raise ModelNotFound(f"This worker does not hold {order.spec.base_model!r}.")
            try:
                if self.is_closed:
                    raise Overloaded("This worker is shutting down.")
                host.trainer.start(order)
            except Overloaded as error:  # no failure of the job's: another worker may take it
                log.warning("job_not_taken", job_id=order.job_id, reason=error.message)
                self.writer.submit(JobStopped(job_id=order.job_id, epoch=order.epoch))
                return
            log.info("job_started", job_id=order.job_id, epoch=order.epoch)

    def stop(self, order: StopJob) -> None:
        """Stop a job; the report follows its checkpoint."""
        for host in self.hosts.values():
            active = host.trainer.active.get(order.job_id)
            if active is not None:
                host.trainer.stop(order.job_id, checkpoint=order.checkpoint)
                self.writer.submit(JobStopped(job_id=order.job_id, epoch=active.job.order.epoch))

    def close(self) -> None:
        """Take no more jobs; checkpoint and stop those that run."""
        self.is_closed = True
        for host in self.hosts.values():
            for job_id in list(host.trainer.active):
                self.stop(StopJob(job_id=job_id, checkpoint=True))

    def drop_failed(self) -> None:
        """Forget jobs whose checkpoint could not be written; they are reported already."""
        for job_id in self.group.tell(self.writer.take_failed()):
            self._drop(job_id)

    def run_lane(
        self, host: ModelHost, plan: StepPlan, may_go_on: Callable[[], bool]
    ) -> list[Unit]:
        """Units of training, until done or until somebody new asks for service."""
        done: list[Unit] = []
        is_cold = bool(plan.spans or plan.windows)
        for lane in plan.units:
            active = host.trainer.active.get(lane.job_id)
            if active is None or active.pack is None:
                continue  # it failed beside the forward, or gave its memory back after the plan
            boundary = self._boundary(lane.job_id, active.job.order.epoch)
            with boundary, host.trainer.side.device.turn():
                for unit, own_ms in timed_units(host.trainer, lane, may_go_on):
                    elapsed_ms = self.group.tell(own_ms)
                    host.scheduler.law.observe_unit(unit, elapsed_ms, is_cold=is_cold)
                    is_cold = False
                    done.append(unit)
        return done

    def begin_beside(self, host: ModelHost, plan: StepPlan) -> None:
        """Start the units that run beside this packed forward and those that follow."""
        for lane in plan.beside:
            host.trainer.side.begin(lane, partial(units_beside, host.trainer, lane))

    def take_beside(self, host: ModelHost) -> list[Unit]:
        """Units of lanes that have ended; a job that raised fails here, on the engine's thread."""
        done: list[Unit] = []
        for lane, future in host.trainer.side.take_ended():
            with self._boundary(lane.job_id, host.trainer.active[lane.job_id].job.order.epoch):
                for unit, elapsed_ms in future.result():
                    if host.scheduler.planner.beside is not None:
                        host.scheduler.planner.beside.observe_unit(unit, elapsed_ms)
                    done.append(unit)
        return done

    def advance(self, host: ModelHost) -> None:
        """Give jobs that wait for work their next pack; optimizer steps happen here."""
        for job_id, active in list(host.trainer.active.items()):
            if host.trainer.side.runs(job_id):
                continue
            if active.waits_for_work:
                with self._boundary(job_id, active.job.order.epoch):
                    host.trainer.advance(job_id)

    @contextmanager
    def _boundary(self, job_id: str, epoch: int) -> Iterator[None]:
        """A job that raises fails alone; serving and other jobs go on."""
        try:
            yield
        except DomainError as error:
            self._fail(job_id, epoch, error.message, error.code)
        except Exception:
            log.exception("job_crashed", job_id=job_id)
            self._fail(job_id, epoch, "The engine hit an internal error in this job.", "internal")

    def _fail(self, job_id: str, epoch: int, message: str, code: str) -> None:
        self._drop(job_id)
        self.writer.submit(JobStopped(job_id=job_id, epoch=epoch, error=message, error_code=code))

    def _drop(self, job_id: str) -> None:
        for host in self.hosts.values():
            if job_id in host.trainer.active:
                host.trainer.drop(job_id)

    def _epochs_of(self, job_id: str) -> list[int]:
        """Under which leases the job trains here: none or one."""
        found = [host.trainer.active.get(job_id) for host in self.hosts.values()]
        return [active.job.order.epoch for active in found if active is not None]


def timed_units(
    trainer: Trainer, lane: LaneUnits, may_go_on: Callable[[], bool]
) -> Iterator[TimedUnit]:
    """Run the units of a lane while they may go on; each is yielded once its time is known."""
    clock = trainer.side.device.clock()
    clock.start()
    for unit in trainer.run_units(lane, may_go_on):
        yield from clock.lap(unit)
    yield from clock.finish()


def units_beside(trainer: Trainer, lane: LaneUnits) -> list[TimedUnit]:
    """Run the units of a lane until somebody waits for its end."""
    return list(timed_units(trainer, lane, trainer.side.may_go_on))
