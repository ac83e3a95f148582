"""`python -m workers.engine_child`: the process that owns the device; an agent starts it."""

from __future__ import annotations

import signal
import sys

import structlog
import torch

from scheduler.domain.errors import DomainError
from scheduler.processes import EXIT_UNUSABLE
from scheduler.telemetry import configure_logging
from workers.engine import EngineLoop
from workers.engine_process import ConnectionClosed, EngineConnection
from workers.followers import leading_group
from workers.group_connection import GroupConnection
from workers.process_group import GroupLost
from workers.settings import EngineSettings

log = structlog.get_logger(__name__)


def main() -> int:
    """Serve the agent at the other end of the pipe until it closes or says Drain."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the agent's to deal with
    connection = EngineConnection.from_environment()
    settings = EngineSettings()
    torch.set_num_threads(settings.num_threads)
    torch.set_flush_denormal(True)  # a denormal costs a hundred cycles and means nothing here
    configure_logging(settings.log_level, settings.log_format)
    try:
        with leading_group(settings) as group:
            pipe = connection if group.is_alone else GroupConnection(connection, group)
            EngineLoop(settings, pipe, group).run()
    except DomainError as error:  # a base model that cannot be loaded
        log.error("engine_cannot_start", reason=error.message)
        return EXIT_UNUSABLE
    except GroupLost as error:
        log.error("group_lost", rank=0, reason=str(error))
        return 1
    except ConnectionClosed:
        return 0
    finally:
        connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
