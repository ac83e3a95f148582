"""How much memory a piece of work takes: each allocation and release, as the allocator saw it."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_rise_bytes(work: Callable[[], None]) -> int:
    """From the lowest point before the peak of live bytes, up to the peak."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    memory = [event for event in results.events() if event.name() == "[memory]"]
    return highest_rise([e.nbytes() for e in sorted(memory, key=lambda e: e.start_ns())])


def highest_rise(changes: list[int]) -> int:
    """The largest sum of consecutive changes: the highest climb of their running total."""
    best = rise = 0
    for change in changes:
        rise = max(0, rise + change)
        best = max(best, rise)
    return best
