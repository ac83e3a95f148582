"""A job on its way: its stream of work, and the pack that runs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from workers.attention import AttendsBack
from workers.batch import ForwardBatch, TrainWindow
from workers.model import DecoderConfig
from workers.span_attention import pack_attention
from workers.train_job import TrainJob
from workers.train_pack import LossSums, PackWork, TrainPack


@dataclass(slots=True)
class ActiveJob:
    """A job, the stream that it is in the middle of, and what it does next.

    Attributes:
        work: the stream's current piece of work.
        tokens_before: tokens that were trained before it came here.
        pack: that work in memory; None while it waits for memory.
        window: a forward window that stands between two layers.
        groups: attention groups of the pack's token ranges, shared by all layers.
    """

    job: TrainJob
    stream: Generator[PackWork, LossSums]
    work: PackWork
    tokens_before: int
    pack: TrainPack | None = None
    window: ForwardBatch | None = None
    groups: dict[tuple[int, int], Sequence[AttendsBack]] = field(default_factory=dict)

    @classmethod
    def try_begin(cls, job: TrainJob) -> ActiveJob | None:
        """The job at its first piece of work; None when nothing is left to do."""
        stream = job.stream()
        work = next(stream, None)
        return None if work is None else cls(job, stream, work, job.trained_tokens)

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
        self.groups.clear()
        return freed

    def close(self) -> None:
        """Let go of everything."""
        self.stream.close()
        self.release()

    def range_groups(self, start: int, stop: int, config: DecoderConfig) -> Sequence[AttendsBack]:
        """Attention groups of tokens [start, stop) of the pack, rows counted from `start`."""
        if (start, stop) not in self.groups:
            pack = self.running_pack()
            window = TrainWindow(pack, start, stop, 0, pack.layers)
            self.groups[start, stop] = pack_attention(window, config)
        return self.groups[start, stop]
