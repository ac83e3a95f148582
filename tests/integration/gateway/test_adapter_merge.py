"""Whole models made of adapters, over HTTP."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.domain.adapter import TENSORS_FILE
from scheduler.domain.errors import InvalidInput
from scheduler.tasks.adapter_order import carry_out_order
from scheduler.tasks.context import TaskContext
from scheduler.tasks.encode import EncodedSummary
from scheduler.tasks.programs import Program
from tests.integration.gateway.caller import Caller, stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.gateway.conftest import Service

pytestmark = pytest.mark.usefixtures("worker")


class TestMerge:
    def test_a_merged_model_is_ordered_made_and_fetched(
        self, service: Service, owner: Caller
    ) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}/versions/1"
        owner.refused("GET", f"{path}/merge", 404)
        owner.refused("GET", f"{path}/export?format=merged", 404)

        ordered = owner.ok("POST", f"{path}/merge")
        waiting = owner.refused("GET", f"{path}/export?format=merged", 400)
        service.thread.run(carry_out_order(f"{adapter['id']}@1", context_of(service)))
        made = owner.ok("GET", f"{path}/merge")
        fetched = owner.call("GET", f"{path}/export?format=merged")

        assert (ordered["status"], ordered["bytes"]) == ("queued", None)
        assert (waiting["code"], "queued" in waiting["message"]) == ("conflict", True)
        assert (made["status"], made["bytes"], made["error"]) == ("succeeded", 2 + 11, None)
        assert owner.ok("POST", f"{path}/merge") == made
        with tarfile.open(fileobj=io.BytesIO(fetched.content)) as archive:
            folder = f"{adapter['id']}-v1-merged"
            assert archive.getnames() == [f"{folder}/config.json", f"{folder}/model.safetensors"]
        assert owner.ok("DELETE", f"{path}/merge")["deleted"] is True
        owner.refused("GET", f"{path}/merge", 404)
        mine = {name for name in stored(service) if name.startswith(adapter["id"])}
        assert not any("merged" in name for name in mine)

    def test_what_cannot_be_merged_says_why(self, service: Service, owner: Caller) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}/versions/1/merge"
        owner.ok("POST", path)

        context = context_of(service, error=InvalidInput("It overflows."))
        service.thread.run(carry_out_order(f"{adapter['id']}@1", context))

        failed = owner.ok("GET", path)
        assert (failed["status"], failed["error"]) == ("failed", "It overflows.")
        assert owner.ok("POST", path)["status"] == "queued"
        assert not any("merged" in name for name in stored(service) if adapter["id"] in name)

    def test_one_whose_adapter_is_deleted_meanwhile_leaves_nothing(
        self, service: Service, owner: Caller
    ) -> None:
        adapter = owner.imported()
        owner.ok("POST", f"/adapters/{adapter['id']}/versions/1/merge")
        context, adapters = context_of(service), service.gateway.adapters

        async def run(program: str, options: Mapping[str, str | Path]) -> None:
            await context.run(program, options)
            await adapters.for_tenant(owner.tenant.id).delete(adapter["id"])

        service.thread.run(carry_out_order(f"{adapter['id']}@1", replace(context, run=run)))

        assert not any("merged" in name for name in stored(service) if adapter["id"] in name)

    def test_merges_are_limited(self, service: Service, owner: Caller) -> None:
        adapter = owner.imported()
        for shift in range(service.settings.max_merges):
            owner.with_version(adapter, float(shift))
        path = f"/adapters/{adapter['id']}/versions"
        for number in range(1, service.settings.max_merges + 1):
            owner.ok("POST", f"{path}/{number}/merge")

        error = owner.refused("POST", f"{path}/{service.settings.max_merges + 1}/merge", 429)
        assert error["code"] == "rate_limit_exceeded"
        owner.refused("POST", f"{path}/99/merge", 404)


def context_of(service: Service, error: Exception | None = None) -> TaskContext:
    """A task's context whose merge writes two small files, or fails."""

    async def run(program: str, options: Mapping[str, str | Path]) -> None:
        base, adapter, out = (Path(options[name]) for name in ("base", "adapter", "out"))
        assert program == Program.MERGE_EXPORT
        assert (base / "config.json").exists()
        assert (adapter / TENSORS_FILE).exists()
        if error is not None:
            raise error
        out.mkdir()
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_bytes(b"safetensors")

    async def encode(*_given: Any) -> EncodedSummary:
        raise AssertionError("nothing is tokenised here")

    return TaskContext(
        db=service.gateway.db, objects=service.gateway.objects,
        model_dirs=service.settings.model_dirs(), encode=encode, run=run,
    )  # fmt: skip
