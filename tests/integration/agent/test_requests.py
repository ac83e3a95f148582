"""Requests on their way through an agent to its engine, and their frames back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import pytest

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.message_codec import encode
from scheduler.domain.messages import Abort, Listening
from scheduler.domain.request import WeightedModel
from tests.integration.agent.conftest import OUT, until
from tests.integration.scripted_engine import HANG, write_adapter

if TYPE_CHECKING:
    from tests.integration.agent.conftest import Stage


async def _stored_adapter(
    stage: Stage, folder: Path, content: bytes, adapter_id: str = "a1"
) -> AdapterRef:
    digest, _ = write_adapter(folder, content)
    uri = f"adapters/{adapter_id}/1/v1"
    await stage.objects.put_dir(folder, uri)
    return AdapterRef(adapter_id=adapter_id, version=1, digest=digest, uri=uri)


async def test_a_request_is_answered_on_the_stream_it_names(stage: Stage) -> None:
    async with stage.agent():
        await stage.submit("r1", 1, 2)
        (frame,) = await stage.frames(1)

    assert (frame.request_id, frame.token_ids) == ("r1", (1, 2, 0))


async def test_an_announcement_carries_what_the_engine_says_about_itself(stage: Stage) -> None:
    async with stage.agent():
        await until(lambda: _announced_stats(stage))
        worker = await stage.worker()

    assert worker.capabilities.base_models[0].id == "tiny"
    assert worker.stats is not None
    assert worker.stats.kv_usage == 0.25


async def _announced_stats(stage: Stage) -> bool:
    return (await stage.worker()).stats is not None


async def test_an_adapter_is_fetched_once_and_handed_to_the_engine(
    stage: Stage, tmp_path: Path
) -> None:
    ref = await _stored_adapter(stage, tmp_path / "made", b"weights")

    async with stage.agent():
        for number in range(3):
            await stage.submit(f"r{number}", 1, adapter=ref)
        frames = await stage.frames(3)
        await stage.objects.delete("adapters/a1")
        await stage.submit("r3", 1, adapter=ref)
        frames = await stage.frames(4)

    assert {frame.token_ids for frame in frames} == {(1, 3)}  # three files in its folder


async def test_all_adapters_of_a_mixture_are_handed_to_the_engine(
    stage: Stage, tmp_path: Path
) -> None:
    refs = [await _stored_adapter(stage, tmp_path / name, name.encode(), name) for name in "ab"]
    parts = [WeightedModel(adapter=ref, weight=0.5) for ref in refs]
    gone = AdapterRef(adapter_id="c", version=1, digest="e" * 64, uri="adapters/c/1/v1")

    async with stage.agent():
        await stage.submit("r1", 1, adapter=refs[0])  # one of the two is there already
        await stage.frames(1)
        await stage.submit("r2", 1, mixture=[WeightedModel(adapter=None, weight=0.0), *parts])
        await stage.frames(2)
        await stage.submit("r3", 1, mixture=[parts[0], WeightedModel(adapter=gone, weight=0.5)])
        _, mixed, refused = await stage.frames(3)

    assert mixed.token_ids == (1, 6)  # three files in each folder
    assert refused.error_code == "model_not_found"


async def test_a_damaged_adapter_never_reaches_the_engine(stage: Stage, tmp_path: Path) -> None:
    ref = await _stored_adapter(stage, tmp_path / "made", b"weights")
    await stage.objects.put_bytes(f"{ref.uri}/adapter_model.safetensors", b"tampered")

    async with stage.agent():
        await stage.submit("r1", 1, adapter=ref)
        (frame,) = await stage.frames(1)

    assert frame.error == "adapter_model.safetensors of adapter a1 is damaged."


async def test_an_adapter_that_is_gone_is_an_error_and_not_silence(stage: Stage) -> None:
    gone = AdapterRef(adapter_id="a2", version=1, digest="e" * 64, uri="adapters/a2/1/v1")

    async with stage.agent():
        await stage.submit("r1", 1, adapter=gone)
        (frame,) = await stage.frames(1)

    assert frame.error_code == "model_not_found"


async def test_an_abort_reaches_the_engine(stage: Stage) -> None:
    async with stage.agent():
        worker = await stage.submit("r1", HANG)
        await stage.frames(1)
        await stage.channel.append(worker.inbox, encode(Abort(request_id="r1")))

        await until(lambda: stage.has_noted("abort r1"))


async def test_the_requests_of_a_gateway_that_fell_silent_are_stopped(stage: Stage) -> None:
    async with stage.agent(gateway_silence_s=0.3):
        worker = await stage.submit("r1", HANG)
        await stage.frames(1)
        await asyncio.sleep(0.5)
        assert stage.notes("abort") == []  # it has never said that it listens

        await stage.channel.append(worker.inbox, encode(Listening(reply_to=OUT)))
        first, last = await stage.frames(2)
        await until(lambda: stage.has_noted("abort r1"))

    assert (first.seq, first.error) == (0, None)
    assert (last.seq, last.error_code) == (1, "worker_lost")


async def test_a_gateway_that_says_it_listens_keeps_its_requests(stage: Stage) -> None:
    async with stage.agent(gateway_silence_s=0.3):
        worker = await stage.submit("r1", HANG)
        for _ in range(8):
            await stage.channel.append(worker.inbox, encode(Listening(reply_to=OUT)))
            await asyncio.sleep(0.1)

        assert stage.notes("abort") == []


@pytest.mark.parametrize("body", [b"\x81\xa4type\xa4evil", b"\xc1", b"\x81"])
async def test_bytes_that_are_no_message_are_skipped(stage: Stage, body: bytes) -> None:
    async with stage.agent():
        worker = await stage.worker()
        await stage.channel.append(worker.inbox, body)
        await stage.submit("r1", 1)

        assert (await stage.frames(1))[0].request_id == "r1"


async def test_a_request_of_a_newer_gateway_is_sent_back_and_not_left_waiting(
    stage: Stage,
) -> None:
    async with stage.agent():
        worker = await stage.worker()
        submit = {"type": "submit", "request": {"request_id": "r1", "wish": 1}, "reply_to": OUT}
        await stage.channel.append(worker.inbox, msgpack.packb(submit))

        frame = (await stage.frames(1))[0]
        assert (frame.request_id, frame.error_code) == ("r1", "worker_lost")
