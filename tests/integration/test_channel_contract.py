"""One contract, kept by every channel: the embedded broker and a real Redis."""

from __future__ import annotations

import asyncio
import stat
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from scheduler.domain.messages import WorkerCapabilities, WorkerInfo
from scheduler.store.channel import START, Channel, ChannelDown
from scheduler.store.channels import connect_channel, local, memory
from scheduler.store.channels.local import LocalBroker
from scheduler.store.channels.redis import RedisChannel
from tests.integration.store_kit import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@dataclass
class Rig:
    """A running broker: makes clients, and can be restarted."""

    url: str
    restart: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]
    clients: AsyncExitStack

    def connect(self) -> Channel:
        channel = connect_channel(self.url)
        self.clients.push_async_callback(channel.close)
        return channel


async def local_rig(folder: Path, clients: AsyncExitStack) -> Rig:
    brokers = [LocalBroker(folder / "channel.sock")]
    await brokers[0].start()

    async def restart() -> None:
        await brokers[0].stop()
        await asyncio.sleep(0.2)
        await brokers[0].start()

    async def stop() -> None:
        await brokers[0].stop()

    return Rig(f"unix://{folder}/channel.sock", restart, stop, clients)


async def redis_rig(folder: Path, clients: AsyncExitStack) -> Rig:
    server = AsyncExitStack()
    await server.enter_async_context(redis_server(folder))

    async def restart() -> None:
        await server.aclose()
        await asyncio.sleep(0.2)
        await server.enter_async_context(redis_server(folder))

    return RedisRig(f"unix://{folder}/redis.sock", restart, server.aclose, clients)


class RedisRig(Rig):
    """Redis through its socket, whose URL scheme is not one operators would use."""

    def connect(self) -> Channel:
        channel = RedisChannel(self.url)
        self.clients.push_async_callback(channel.close)
        return channel


@pytest.fixture(params=["local", "redis"])
async def rig(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as clients:
        if request.param == "local":
            rig = await local_rig(short_dir, clients)
        else:
            rig = await redis_rig(short_dir, clients)
        yield rig
        await clients.aclose()
        await rig.stop()


def worker(worker_id: str, boot_id: str = "1") -> WorkerInfo:
    capabilities = WorkerCapabilities(
        base_models=(), peft_methods={}, optimizers={}, objectives={}, max_rank=8,
        max_num_sequences=4,
    )  # fmt: skip
    return WorkerInfo(worker_id=worker_id, boot_id=boot_id, capabilities=capabilities)


async def test_entries_come_back_in_order_and_once(rig: Rig) -> None:
    writer, reader = rig.connect(), rig.connect()
    for number in range(250):
        await writer.append("s", str(number).encode())

    last_id, seen = START, []
    while entries := await reader.read({"s": last_id}, count=100):
        seen += [data for _, _, data in entries]
        last_id = entries[-1][1]

    assert seen == [str(number).encode() for number in range(250)]


async def test_bytes_survive_as_they_are(rig: Rig) -> None:
    channel = rig.connect()
    data = bytes(range(256)) * 4000

    entry_id = await channel.append("s", data)

    assert await channel.read({"s": START}) == [("s", entry_id, data)]


async def test_reading_nothing_returns_at_once_without_block(rig: Rig) -> None:
    channel = rig.connect()

    async with asyncio.timeout(2):
        assert await channel.read({"empty": START}, block_ms=0) == []


async def test_a_blocked_read_ends_when_its_time_is_over(rig: Rig) -> None:
    channel = rig.connect()
    started = asyncio.get_running_loop().time()

    assert await channel.read({"empty": START}, block_ms=150) == []

    assert asyncio.get_running_loop().time() - started >= 0.14


async def test_a_blocked_read_wakes_at_an_append(rig: Rig) -> None:
    channel = rig.connect()
    reading = asyncio.create_task(channel.read({"a": START, "b": START}, block_ms=5000))
    await asyncio.sleep(0.05)

    entry_id = await channel.append("b", b"hello")

    async with asyncio.timeout(2):
        assert await reading == [("b", entry_id, b"hello")]


async def test_a_blocked_read_does_not_hold_up_other_calls(rig: Rig) -> None:
    channel = rig.connect()
    reading = asyncio.create_task(channel.read({"quiet": START}, block_ms=5000))
    await asyncio.sleep(0.05)

    async with asyncio.timeout(2):
        await channel.append("other", b"x")
        assert await channel.workers() == []
    reading.cancel()


async def test_a_cancelled_read_loses_nothing(rig: Rig) -> None:
    channel = rig.connect()
    reading = asyncio.create_task(channel.read({"s": START}, block_ms=5000))
    await asyncio.sleep(0.05)
    reading.cancel()

    await channel.append("s", b"kept")

    assert [data for _, _, data in await channel.read({"s": START})] == [b"kept"]


async def test_many_writers_keep_their_own_order(rig: Rig) -> None:
    writers = [rig.connect() for _ in range(4)]

    async def write(name: int) -> None:
        for number in range(25):
            await writers[name].append("s", f"{name}:{number}".encode())

    await asyncio.gather(*(write(name) for name in range(4)))

    entries = [data.decode() for _, _, data in await writers[0].read({"s": START}, count=200)]
    for name in range(4):
        mine = [entry for entry in entries if entry.startswith(f"{name}:")]
        assert mine == [f"{name}:{number}" for number in range(25)]


async def test_the_oldest_entries_fall_away(rig: Rig) -> None:
    channel = rig.connect()
    for number in range(500):
        await channel.append("s", str(number).encode(), maxlen=10)

    entries = await channel.read({"s": START}, count=1000)

    assert 10 <= len(entries) < 250  # Redis trims in whole nodes of about 100
    assert entries[-1][2] == b"499"


async def test_a_worker_is_listed_until_its_time_runs_out(rig: Rig) -> None:
    channel = rig.connect()
    await channel.announce(worker("w2"), ttl_s=30)
    await channel.announce(worker("w1", "old"), ttl_s=30)
    await channel.announce(worker("w1", "new"), ttl_s=0.2)

    assert await channel.workers() == [worker("w1", "new"), worker("w2")]
    await asyncio.sleep(0.3)
    assert await channel.workers() == [worker("w2")]


async def test_a_withdrawn_worker_is_gone_at_once(rig: Rig) -> None:
    channel = rig.connect()
    await channel.announce(worker("w1"), ttl_s=30)

    await channel.withdraw("w1")
    await channel.withdraw("never-there")

    assert await channel.workers() == []


async def test_clients_go_on_after_a_restart_of_the_broker(rig: Rig) -> None:
    writer, reader = rig.connect(), rig.connect()
    before = await writer.append("s", b"before")
    blocked = asyncio.create_task(reader.read({"s": before}, block_ms=8000))
    await asyncio.sleep(0.05)

    restarting = asyncio.create_task(rig.restart())
    await asyncio.sleep(0.1)
    after = await writer.append("s", b"after")
    await restarting

    async with asyncio.timeout(9):
        assert await blocked == [("s", after, b"after")]  # ids grow over restarts


async def test_a_broker_that_stays_away_is_reported(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.store.channels.local.PATIENCE_S", 0.3)
    monkeypatch.setattr("scheduler.store.channels.redis.PATIENCE_S", 0.3)
    channel = rig.connect()
    await rig.stop()

    with pytest.raises(ChannelDown):
        await channel.append("s", b"x")


async def test_a_closed_channel_ends_its_waiting_reads(rig: Rig) -> None:
    channel = rig.connect()
    reading = asyncio.create_task(channel.read({"s": START}, block_ms=60_000))
    await asyncio.sleep(0.05)

    await channel.close()

    async with asyncio.timeout(2):
        with pytest.raises(ChannelDown):
            await reading


async def test_a_redis_that_takes_no_writes_is_waited_for(short_dir: Path) -> None:
    socket = str(short_dir / "redis.sock")
    async with redis_server(short_dir), Redis(unix_socket_path=socket) as operator:
        channel = RedisChannel(f"unix://{socket}")
        await operator.config_set("maxmemory", 1)
        appending = asyncio.create_task(channel.append("s", b"x"))
        await asyncio.sleep(0.3)
        assert not appending.done()
        await operator.config_set("maxmemory", 0)
        appended = await appending

        assert await channel.read({"s": START}) == [("s", appended, b"x")]
        await channel.close()


class TestOnlyTheLocalBroker:
    async def test_its_socket_opens_only_for_its_owner(self, short_dir: Path) -> None:
        async with LocalBroker(short_dir / "c.sock"):
            mode = stat.S_IMODE((short_dir / "c.sock").stat().st_mode)

        assert mode == 0o600

    async def test_a_second_broker_on_one_socket_is_refused(self, short_dir: Path) -> None:
        async with LocalBroker(short_dir / "c.sock"):
            with pytest.raises(OSError, match="Another broker"):
                await LocalBroker(short_dir / "c.sock").start()

    async def test_a_killed_brokers_socket_is_replaced(self, short_dir: Path) -> None:
        (short_dir / "c.sock").touch()

        async with LocalBroker(short_dir / "c.sock"):
            channel = connect_channel(f"unix://{short_dir}/c.sock")
            assert await channel.workers() == []
            await channel.close()

    async def test_a_path_too_long_for_a_socket_is_a_clear_error(self, short_dir: Path) -> None:
        with pytest.raises(OSError, match="shorter data folder"):
            await LocalBroker(short_dir / ("x" * 120)).start()

    async def test_a_client_that_sends_garbage_is_cut_and_others_stay(
        self, short_dir: Path
    ) -> None:
        async with LocalBroker(short_dir / "c.sock"):
            reader, writer = await asyncio.open_unix_connection(str(short_dir / "c.sock"))
            writer.write(b"\xff\xff\xff\xff not a frame")
            assert await reader.read() == b""
            writer.close()
            channel = local.LocalChannel(short_dir / "c.sock")
            assert await channel.append("s", b"x")
            await channel.close()

    def test_streams_are_bounded_in_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "MAX_STREAM_BYTES", 1000)
        stream = memory.Stream()

        for _ in range(50):
            stream.append(b"x" * 100, maxlen=10_000)

        assert len(stream.entries) == 10
        assert stream.num_bytes == 1000


@pytest.mark.parametrize("url", ["tcp://x", "", "/path"])
def test_an_unknown_channel_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="neither unix"):
        connect_channel(url)
