"""Writes checkpoints on a thread of its own, in order, so that no step waits for a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from scheduler.domain.messages import CheckpointWritten, JobStopped
from workers.adapter_file import BaseIdentity
from workers.job_checkpoint import CheckpointData, write_checkpoint
from workers.peft_method import PeftMethod


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """A checkpoint to be written: copies that nobody changes any more.

    Attributes:
        seed: what alone has drawn the adapter's initial value; None: that hangs on the base, too.
    """

    root: Path
    job_id: str
    epoch: int
    method: PeftMethod
    data: CheckpointData
    base: BaseIdentity
    seed: int | None
    is_final: bool


class CheckpointWriter:
    """One thread that writes and reports."""

    def __init__(
        self,
        report: Callable[[CheckpointWritten | JobStopped], None],
        machine: dict[str, str | int],
    ) -> None:
        self._report = report
        self._machine = machine
        self._requests: SimpleQueue[WriteRequest | JobStopped | None] = SimpleQueue()
        self._failed: SimpleQueue[str] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, request: WriteRequest | JobStopped) -> None:
        """Queue a checkpoint; or a report that must follow the checkpoints before it."""
        self._requests.put(request)

    def take_failed(self) -> list[str]:
        """Jobs whose checkpoint could not be written since the last call; they must stop."""
        return [self._failed.get() for _ in range(self._failed.qsize())]

    def close(self, timeout_s: float = 60.0) -> None:
        """Write out everything that is queued."""
        self._requests.put(None)
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        while (request := self._requests.get()) is not None:
            self._report(request if isinstance(request, JobStopped) else self._write(request))

    def _write(self, request: WriteRequest) -> CheckpointWritten | JobStopped:
        try:
            folder, adapter = write_checkpoint(
                request.root,
                request.method,
                request.data,
                request.base,
                self._machine,
                request.seed,
            )
        except OSError as error:
            self._failed.put(request.job_id)
            return JobStopped(
                job_id=request.job_id,
                epoch=request.epoch,
                error=f"The checkpoint could not be written: {error.strerror}.",
                error_code="checkpoint_failed",
            )
        state = request.data.state
        return CheckpointWritten(
            job_id=request.job_id,
            epoch=request.epoch,
            step=state.step,
            path=str(folder),
            adapter_digest=adapter.digest,
            num_bytes=adapter.num_bytes,
            trained_tokens=state.trained_tokens,
            metrics=state.metrics,
            final=request.is_final,
        )


class FollowersWriter(CheckpointWriter):
    """The writer of a rank that leads no group: the leader writes and reports for all."""

    def submit(self, request: WriteRequest | JobStopped) -> None:
        """See CheckpointWriter: somebody else does it."""
