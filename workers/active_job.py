"""A job on its way: its stream of work, and the pack that runs."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field

from workers.batch import ForwardBatch
from workers.model import DecoderConfig
from workers.pack_range import PackRange
from workers.train_job import TrainJob
from workers.train_pack import LossSums, PackWork, TrainPack


@dataclass(slots=True)
class ActiveJob:
    """A job, the stream that it is in the middle of, and what it does next.

    Attributes:
        preparing: what a thread still does before the stream begins.
        work: the stream's current piece of work, once it has begun.
        tokens_before: tokens that were trained before it came here.
        pack: that work in memory; None while it waits for memory.
        window: a forward window that stands between two layers.
        ranges: the pack's token ranges, by first token and end.
    """

    job: TrainJob
    stream: Generator[PackWork, LossSums]
    tokens_before: int
    preparing: Future[None] | None = None
    work: PackWork = field(init=False)
    pack: TrainPack | None = None
    window: ForwardBatch | None = None
    ranges: dict[tuple[int, int], PackRange] = field(default_factory=dict)

    @classmethod
    def of(cls, job: TrainJob, preparing: Future[None] | None) -> ActiveJob:
        """A job whose stream has not begun."""
        return cls(job, job.stream(), job.trained_tokens, preparing)

    @property
    def waits_for_work(self) -> bool:
        """Whether `advance` would give it something to do."""
        if self.preparing is not None:
            return self.preparing.done()
        return self.pack is not None and self.pack.cursor.is_done

    def advance(self) -> bool:
        """Go to the first or next piece of work; False when the job has ended.

        Raises:
            DomainError: it could not be prepared, or its optimizer step failed.
        """
        return self.begin() if self.preparing is not None else self.next_work()

    def begin(self) -> bool:
        """Go to the first piece of work; False when nothing is left to do."""
        if self.preparing is not None:
            self.preparing.result()
            self.preparing = None
        work = next(self.stream, None)
        if work is not None:
            self.work = work
        return work is not None

    @property
    def trained_tokens(self) -> int:
        """Tokens of the optimizer steps that it has taken here."""
        return self.job.trained_tokens - self.tokens_before

    def running_pack(self) -> TrainPack:
        """The pack, of which there must be one."""
        assert self.pack is not None
        return self.pack

    def next_work(self) -> bool:
        """Hand the finished pack's sums to the stream; False when the job has ended."""
        sums = self.running_pack().read_sums()
        self.release()
        try:
            self.work = self.stream.send(sums)
        except StopIteration:
            return False
        return True

    def start_over(self) -> int:
        """Give the pack's memory back, to be run again; returns how many blocks are free again.

        Once a backward unit has added to the job's gradient, its whole optimizer step starts over.
        """
        if self.running_pack().cursor.has_begun_backward:
            self.stream.close()
            self.stream = self.job.stream()
            self.work = next(self.stream)
        return self.release()

    def release(self) -> int:
        """Give the pack's memory back; returns how many blocks are free again."""
        if self.pack is None:
            return 0
        freed = self.pack.loan.end()
        self.pack = self.window = None
        self.ranges.clear()
        return freed

    def close(self) -> None:
        """Let go of everything."""
        if self.preparing is not None:
            self.preparing.cancel()
        self.stream.close()
        self.release()

    def range(self, start: int, stop: int, config: DecoderConfig) -> PackRange:
        """Tokens [start, stop) of the pack."""
        if (start, stop) not in self.ranges:
            pack, columns = self.running_pack(), self.job.slot.columns
            self.ranges[start, stop] = PackRange.of(pack, start, stop, columns, config)
        return self.ranges[start, stop]
