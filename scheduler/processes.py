"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_UNUSABLE = 78  # sysexits.h: EX_CONFIG; starting the process again would not help
EXIT_REFUSED = 65  # sysexits.h: EX_DATAERR; a program cannot use what it was given
_PR_SET_PDEATHSIG = 1  # prctl(2): which signal a process gets when its parent dies


def tied_to_parent() -> Callable[[], None]:
    """Return a `preexec_fn` that has the kernel end the child when this process dies.

    Works on Linux. Elsewhere it returns a function that does nothing, and a parent killed with
    SIGKILL leaves its children behind.
    """
    parent_pid = os.getpid()
    if not sys.platform.startswith("linux"):
        return _do_nothing
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be imported

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the call above
            os._exit(1)

    return tie


def _do_nothing() -> None:
    """Stand-in where the kernel has no such service."""
