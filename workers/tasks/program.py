"""What the programs of this folder share: options, niceness, and how they say no."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from scheduler.domain.errors import DomainError
from scheduler.processes import EXIT_REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def run_program(
    run: Callable[[argparse.Namespace], None],
    options: Mapping[str, Callable[[str], object]],
    arguments: list[str] | None = None,
) -> int:
    """Run with the command line's options; what is refused is one sentence and its exit status.

    Args:
        run: the work.
        options: name -> type of each option; all are required.
        arguments: the command line; None for this process's own.
    """
    parser = argparse.ArgumentParser()
    for name, kind in options.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--nice", type=int, default=0, help="Give way to other processes.")
    given = parser.parse_args(arguments)
    os.nice(given.nice)
    try:
        run(given)
    except DomainError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_REFUSED
    return 0
