"""Brings adapters from the disk or the shelf to where a slot can copy them, beside the steps.

Reading, decoding and checking run on a few threads. Tenants take turns, so that one who asks for a
thousand adapters does not keep the others waiting. Only so many adapters are brought ahead of the
requests that want them: more would fill the memory and speed nothing up. A request of several
adapters lets go of none before it has all, so once one of them is on its way the others follow at
once; otherwise requests that each lack one could keep each other waiting for ever.

All methods are called by the engine's own thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from scheduler.domain.adapter import AdapterKey, AdapterRef
from scheduler.domain.errors import DomainError
from scheduler.domain.messages import Generate
from workers.adapter_arena import AdapterArena
from workers.adapter_shelf import AdapterShelf, ShelvedAdapter, read_shelved
from workers.lowered_adapter import LoweredAdapter
from workers.model import DecoderConfig

NUM_THREADS = 2
MAX_AHEAD = 32  # adapters that are on their way, or have come and wait for a slot

Arrival = tuple[ShelvedAdapter, LoweredAdapter]


@dataclass(slots=True, eq=False)
class Load:
    """One adapter on its way, for all requests that wait for it.

    Attributes:
        bring: what a thread has to do.
        waiters: ids of the requests that have no slot yet.
        adapter: set once it has come.
        error: set once it is known that it cannot come.
        was_shelved: it came from host memory and not from the disk.
        is_held: the shelf keeps it until all waiters have a slot.
    """

    key: AdapterKey
    is_pinned: bool
    bring: Callable[[], Arrival]
    began_s: float = field(default_factory=time.monotonic)
    waiters: set[str] = field(default_factory=set)
    arriving: Future[Arrival] | None = None
    adapter: LoweredAdapter | None = None
    error: DomainError | None = None
    was_shelved: bool = False
    is_held: bool = False


class AdapterLoader:
    """All loads of an engine, over all its base models."""

    def __init__(self, shelf: AdapterShelf, executor: Executor | None = None) -> None:
        self.shelf = shelf
        self._loads: dict[AdapterKey, Load] = {}
        self._awaited: dict[str, list[Load]] = {}
        self._lines: dict[str, deque[Load]] = {}
        self._arriving: list[Load] = []
        self._num_ahead = 0
        self._executor = executor or ThreadPoolExecutor(
            NUM_THREADS, "adapter", torch.set_num_threads, (1,)
        )

    @property
    def is_busy(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._arriving)

    @property
    def has_news(self) -> bool:
        """Whether `collect` would return anything."""
        return any(load.arriving and load.arriving.done() for load in self._arriving)

    def ask(
        self, order: Generate, adapter: AdapterRef, config: DecoderConfig, arena: AdapterArena
    ) -> Load:
        """Have an adapter of a request brought; its load may be over at once."""
        request = order.request
        key = AdapterKey(request.base_model, adapter.digest)
        load = self._loads.get(key)
        if load is None:
            folder = Path(order.adapter_dirs[adapter.digest])
            read = partial(read_shelved, folder, config, arena)
            load = self._open(key, read, arena, is_pinned=adapter.is_pinned)
        load.waiters.add(request.request_id)
        awaited = self._awaited.setdefault(request.request_id, [])
        awaited.append(load)
        if any(other.arriving is not None for other in awaited):
            self._start(*awaited)
        elif load.adapter is None:
            self._lines.setdefault(request.tenant_id, deque()).append(load)
            self._begin()
        return load

    def leave(self, load: Load, request_id: str) -> None:
        """A request has its slot, or has ended."""
        load.waiters.discard(request_id)
        awaited = self._awaited.get(request_id, [])
        if load in awaited:
            awaited.remove(load)
        if not awaited:
            self._awaited.pop(request_id, None)
        if not load.waiters and load not in self._arriving:
            self._close(load)

    def collect(self) -> list[Load]:
        """Loads that have come to their end since the last call."""
        if not self.has_news:
            return []
        done = [load for load in self._arriving if load.arriving and load.arriving.done()]
        self._arriving = [load for load in self._arriving if load not in done]
        for load in done:
            self._finish(load)
        return done

    def _open(
        self,
        key: AdapterKey,
        read: Callable[[], ShelvedAdapter],
        arena: AdapterArena,
        *,
        is_pinned: bool,
    ) -> Load:
        """A load from the shelf where the adapter is there, and by `read` otherwise."""
        shelved = self.shelf.get(key)
        load = Load(key, is_pinned, partial(_bring, read, arena))
        if shelved is not None:
            load.was_shelved = True
            self._hold(load)
            load.bring = partial(_bring, lambda: shelved, arena)
            if isinstance(shelved, LoweredAdapter):
                load.adapter = shelved
        self._loads[key] = load
        return load

    def _begin(self) -> None:
        """Start what is next, as far as may be brought ahead."""
        while self._num_ahead < MAX_AHEAD and (load := self._next()) is not None:
            self._start(load)

    def _start(self, *loads: Load) -> None:
        """Start loads, and all others of the requests that wait for them."""
        todo = list(loads)
        while todo:
            load = todo.pop()
            if load.adapter is None and load.arriving is None:
                load.arriving = self._executor.submit(load.bring)
                self._arriving.append(load)
                self._num_ahead += 1
                todo += [other for waiter in load.waiters for other in self._awaited[waiter]]

    def _next(self) -> Load | None:
        """The first of a tenant's line that anybody still waits for; its tenant goes to the end."""
        while self._lines:
            tenant_id = next(iter(self._lines))
            line = self._lines.pop(tenant_id)
            load = line.popleft()
            if line:
                self._lines[tenant_id] = line
            if load.waiters and load.arriving is None:
                return load
        return None

    def _finish(self, load: Load) -> None:
        assert load.arriving is not None
        try:
            shelved, load.adapter = load.arriving.result()
        except DomainError as error:
            load.error = error
        else:
            if not load.is_held:
                self.shelf.offer(load.key, shelved, is_pinned=load.is_pinned)
                self._hold(load)
        if not load.waiters:
            self._close(load)

    def _hold(self, load: Load) -> None:
        if self.shelf.get(load.key) is not None:
            self.shelf.policy.hold(load.key)
            load.is_held = True

    def _close(self, load: Load) -> None:
        del self._loads[load.key]
        if load.is_held:
            self.shelf.policy.release(load.key)
        if load.arriving is not None:
            self._num_ahead -= 1
            self._begin()


def _bring(read: Callable[[], ShelvedAdapter], arena: AdapterArena) -> Arrival:
    shelved = read()
    return shelved, shelved.lowered(arena)
