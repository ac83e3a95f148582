"""The pipe between agent and engine: order, volume, and what either end sees of a death."""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.message_codec import encode
from scheduler.domain.messages import Abort, Drain, Frames, StopJob, TokenFrame
from workers.engine_process import ConnectionClosed, EngineConnection, EngineProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ECHO = """
from scheduler.domain.messages import Frames, TokenFrame
from workers.engine_process import ConnectionClosed, EngineConnection

connection = EngineConnection.from_environment()
try:
    while True:
        for order in connection.poll(10.0):
            if order.type == "drain":
                raise SystemExit(7)
            frame = TokenFrame(request_id=order.request_id, index=0, seq=0)
            connection.send(Frames(reply_to="out", frames=(frame,)))
except ConnectionClosed:
    raise SystemExit(3) from None
"""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, EngineConnection]]:
    ours, theirs = socket.socketpair()
    connection = EngineConnection(theirs)
    yield ours, connection
    ours.close()
    connection.close()


@pytest.fixture
def echo(tmp_path: Path) -> tuple[str, str]:
    program = tmp_path / "echo.py"
    program.write_text(ECHO)
    return (sys.executable, str(program))


def test_poll_without_orders_waits_no_longer_than_told(
    ends: tuple[socket.socket, EngineConnection],
) -> None:
    started_s = time.monotonic()

    assert ends[1].poll(0.05) == []

    assert 0.04 < time.monotonic() - started_s < 1.0


def test_poll_returns_all_orders_in_order_even_when_bytes_come_in_pieces(
    ends: tuple[socket.socket, EngineConnection],
) -> None:
    agent, connection = ends
    orders = [StopJob(job_id=f"job-{i}") for i in range(5)]
    stream = b"".join(_framed(order) for order in orders)

    agent.sendall(stream[:-3])
    first = connection.poll(1.0)
    agent.sendall(stream[-3:])
    second = connection.poll(1.0)

    assert first + second == orders


def test_poll_reports_a_gone_agent_only_after_its_last_order(
    ends: tuple[socket.socket, EngineConnection],
) -> None:
    agent, connection = ends
    agent.sendall(_framed(Drain()))
    agent.close()

    assert connection.poll(1.0) == [Drain()]
    with pytest.raises(ConnectionClosed):
        connection.poll(1.0)


def test_send_never_waits_for_an_agent_that_does_not_read(
    ends: tuple[socket.socket, EngineConnection],
) -> None:
    frame = TokenFrame(request_id="r", index=0, seq=0, token_ids=tuple(range(1000)))
    started_s = time.monotonic()

    for _ in range(1000):  # far more than a socket buffer holds
        ends[1].send(Frames(reply_to="out", frames=(frame,)))

    assert time.monotonic() - started_s < 1.0
    ends[0].close()  # or the writer thread would wait for ever


async def test_an_engine_child_answers_over_the_pipe_and_ends_with_it(
    echo: tuple[str, str],
) -> None:
    engine = await EngineProcess.start(echo, {"PYTHONPATH": "."})

    await engine.send(Abort(request_id="r1"))
    received = await engine.receive()
    status = await engine.stop(timeout_s=10)

    assert received is not None
    assert received[0] == Frames(
        reply_to="out", frames=(TokenFrame(request_id="r1", index=0, seq=0),)
    )
    assert status == 3  # what the program returns when its agent is gone


async def test_the_agent_sees_the_death_of_its_engine(echo: tuple[str, str]) -> None:
    engine = await EngineProcess.start(echo, {"PYTHONPATH": "."})

    await engine.send(Drain())

    assert await engine.receive() is None
    assert await engine.stop() == 7


def _framed(order: Abort | Drain | StopJob) -> bytes:
    body = encode(order)
    return len(body).to_bytes(4, "big") + body
