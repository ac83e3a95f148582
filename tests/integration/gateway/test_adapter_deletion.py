"""Adapters deleted over HTTP."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.integration.gateway.caller import Caller, stored
from tests.integration.gateway.conftest import wait_until
from tests.integration.gateway.fake_worker import Plan

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

pytestmark = pytest.mark.usefixtures("worker")


class TestDeletion:
    def test_a_pinned_adapter_stays_until_it_is_unpinned(
        self, service: Service, owner: Caller
    ) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}"

        assert owner.ok("POST", f"{path}/pin")["pinned"] is True
        for deletion in (path, f"/models/{adapter['model']}"):
            error = owner.refused("DELETE", deletion, 400)
            assert error["code"] == "adapter_in_use"
            assert "pinned" in error["message"]
        assert owner.ok("POST", f"{path}/unpin")["pinned"] is False
        assert owner.ok("DELETE", path) == {
            "id": adapter["id"], "object": "adapter", "deleted": True,
        }  # fmt: skip

        assert not any(name.startswith(adapter["id"]) for name in stored(service))
        owner.refused("GET", path, 404)
        assert owner.chat(adapter["model"]).status_code == 404

    def test_an_adapter_that_answers_or_is_shared_stays(
        self, service: Service, owner: Caller, borrower: Caller, worker: FakeWorker
    ) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}"
        worker.plan = lambda _: Plan(service.tokenizer.encode("slow"), delay_s=0.15)
        asking = threading.Thread(target=lambda: owner.chat(adapter["model"]))
        asking.start()
        wait_until(lambda: len(worker.requests) == 1)

        assert "answering" in owner.refused("DELETE", path, 400)["message"]
        asking.join()
        owner.ok("POST", f"{path}/shares", json={"tenant_id": borrower.tenant.id})
        assert "shared" in owner.refused("DELETE", path, 400)["message"]
        owner.ok("DELETE", f"{path}/shares/{borrower.tenant.id}")
        owner.ok("DELETE", path)
