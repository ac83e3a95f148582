"""`python -m service`: one gateway process."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import uvicorn

from scheduler.telemetry import configure_logging
from service.app import create_app
from service.settings import ServiceSettings

if TYPE_CHECKING:
    from types import FrameType

KEEP_ALIVE_S = 75  # longer than the minute after which proxies give up idle connections


def _exit(signum: int, frame: FrameType | None) -> None:
    """Uvicorn raises the signal again once it has drained; that is a good end."""
    del signum, frame
    sys.exit(0)


def main() -> None:
    """Serve until SIGTERM or SIGINT, then let open answers finish."""
    settings = ServiceSettings()
    configure_logging(settings.log_level, settings.log_format)
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_s,
    )


if __name__ == "__main__":
    main()
