"""Where a server of the tests may listen."""

from __future__ import annotations

import socket
import time

PATIENCE_S = 60.0


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def until_it_listens(port: int) -> None:
    """Wait until something takes connections there."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not _listens(port):
        assert time.monotonic() < deadline_s, f"nothing listens on port {port}"
        time.sleep(0.02)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
