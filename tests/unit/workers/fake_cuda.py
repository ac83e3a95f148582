"""Streams and events that keep a diary of what CUDA would have been told, in order."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


@dataclass
class FakeCuda:
    """Stands where CUDA's streams do; every thread begins on the engine's."""

    diary: list[str] = field(default_factory=list)
    thread: threading.local = field(default_factory=threading.local)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Take CUDA's place; returns the diary."""
        monkeypatch.setattr(torch.cuda, "Stream", lambda _, priority: FakeStream(self, priority))
        monkeypatch.setattr(torch.cuda, "Event", lambda **_: FakeEvent(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.issuing_to)
        return self.diary

    @property
    def current(self) -> FakeStream:
        return getattr(self.thread, "stream", FakeStream(self, -1))

    @contextmanager
    def issuing_to(self, stream: FakeStream) -> Iterator[None]:
        before, self.thread.stream = self.current, stream
        try:
            yield
        finally:
            self.thread.stream = before


@dataclass
class FakeStream:
    """A stream: of training, if its priority is the lowest."""

    cuda: FakeCuda
    priority: int

    @property
    def name(self) -> str:
        return "training" if self.priority == 0 else "engine"

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.diary.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.cuda.diary.append(f"host waits for {self.name}")


@dataclass
class FakeEvent:
    """An event; a millisecond passes with every entry of the diary."""

    cuda: FakeCuda
    ms: float = 0.0

    def record(self) -> None:
        self.ms = float(len(self.cuda.diary))
        self.cuda.diary.append(f"event on {self.cuda.current.name}")

    def synchronize(self) -> None:
        self.cuda.diary.append("host waits for an event")

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.ms - self.ms
