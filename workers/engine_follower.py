"""`python -m workers.engine_follower RANK MEETING`: one more rank of a leader's group."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import structlog
import torch

from scheduler.telemetry import configure_logging
from workers.engine import EngineLoop
from workers.group_connection import GroupConnection
from workers.process_group import GroupLost, ProcessGroup
from workers.settings import EngineSettings

log = structlog.get_logger(__name__)


def main() -> int:
    """Run the leader's steps until it drains or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader's agent decides when to end
    settings = EngineSettings()
    torch.set_num_threads(settings.num_threads)
    torch.set_flush_denormal(True)
    configure_logging(settings.log_level, settings.log_format)
    rank, meeting = int(sys.argv[1]), Path(sys.argv[2])
    try:
        group = ProcessGroup(rank, settings.tensor_parallel, meeting)
        EngineLoop(settings, GroupConnection(None, group), group).run()
    except GroupLost as error:
        log.error("group_lost", rank=rank, reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
