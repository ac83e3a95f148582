"""`python -m workers.engine_follower RANK MEETING`: one more rank of a leader's group."""

from __future__ import annotations

import signal
import sys

import structlog
import torch

from scheduler.domain.errors import DomainError
from scheduler.processes import EXIT_UNUSABLE
from scheduler.telemetry import configure_logging
from workers.engine import EngineLoop
from workers.group_connection import GroupConnection
from workers.process_group import GroupLost, ProcessGroup
from workers.settings import EngineSettings

log = structlog.get_logger(__name__)


def main() -> int:
    """Run the leader's steps until it drains or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the leader's agent decides when to end
    settings = EngineSettings()
    torch.set_num_threads(settings.num_threads)
    torch.set_flush_denormal(True)
    configure_logging(settings.log_level, settings.log_format)
    rank, meeting = int(sys.argv[1]), sys.argv[2]
    try:
        group = ProcessGroup(rank, settings.tensor_parallel, meeting)
        EngineLoop(settings, GroupConnection(None, group), group).run()
    except DomainError as error:  # a base model that cannot be loaded
        log.error("follower_cannot_start", rank=rank, reason=error.message)
        return EXIT_UNUSABLE
    except GroupLost as error:
        log.error("group_lost", rank=rank, reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
