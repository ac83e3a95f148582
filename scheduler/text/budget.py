"""How much one template may do before it is stopped: steps, characters and CPU time."""

from __future__ import annotations

import time

from jinja2.exceptions import TemplateError

MAX_STEPS = 1_000_000  # loop turns and calls; thousands in any real prompt
MAX_CHARS = 256 * 1024 * 1024  # characters handled, counting every copy
MAX_CPU_S = 2.0
_STEPS_PER_CLOCK = 256  # reading the clock costs more than a step


class TemplateTooExpensive(TemplateError):
    """The template loops, calls or writes more than any prompt needs."""


class RenderBudget:
    """Counts down over one rendering."""

    def __init__(
        self, steps: int = MAX_STEPS, chars: int = MAX_CHARS, cpu_s: float = MAX_CPU_S
    ) -> None:
        self._steps = steps
        self._chars = chars
        self._end_s = time.thread_time() + cpu_s

    def step(self) -> None:
        """Pay for one turn of a loop or one call.

        Raises:
            TemplateTooExpensive: no steps, or no time, are left.
        """
        self._steps -= 1
        if self._steps < 0:
            raise TemplateTooExpensive("it takes too many steps")
        if self._steps % _STEPS_PER_CLOCK == 0 and time.thread_time() > self._end_s:
            raise TemplateTooExpensive("it takes too much time")

    def write(self, num_chars: int) -> None:
        """Pay for characters before they exist.

        Raises:
            TemplateTooExpensive: that many are not left.
        """
        self._chars -= num_chars
        if self._chars < 0:
            raise TemplateTooExpensive("it writes too much text")
