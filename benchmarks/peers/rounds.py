"""A peer's side of a measurement: it stands still until it is told to start and, later, to stop.

The peer says READY once it is warm. A line of input starts a round; the next one stops it after
the step in work; the peer then prints one line of JSON and stands still again.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Callable

READY = "READY"


def serve_rounds(
    step: Callable[[], None], begin: Callable[[float], None], result: Callable[[float], object]
) -> None:
    """Measure a round for every two lines of input, until there is no more.

    Args:
        step: does a piece of work.
        begin: told how many seconds the peer stood still before this round.
        result: told how many seconds the round took; what it returns is printed.
    """
    print(READY, flush=True)
    stopped_s = time.perf_counter()
    while sys.stdin.readline():
        began_s = time.perf_counter()
        begin(began_s - stopped_s)
        while not select.select([sys.stdin], [], [], 0)[0]:
            step()
        sys.stdin.readline()
        stopped_s = time.perf_counter()
        print(json.dumps(result(stopped_s - began_s)), flush=True)
