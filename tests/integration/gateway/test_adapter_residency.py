"""Where adapters are, and pinning them, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.adapter_tier import Tier
from tests.integration.gateway.caller import Caller
from tests.integration.gateway.conftest import wait_until
from tests.integration.gateway.fake_worker import tier

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

pytestmark = pytest.mark.usefixtures("worker")


class TestResidency:
    def test_an_owner_sees_the_nearest_tier_of_each_version_and_a_borrower_none(
        self, service: Service, owner: Caller, borrower: Caller, worker: FakeWorker
    ) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}"
        second = owner.with_version(adapter, 0.5)
        (first,) = adapter["versions"]
        owner.ok("POST", f"{path}/shares", json={"tenant_id": borrower.tenant.id})

        worker.tiers = (
            tier(Tier.SLOT, "f" * 64, first["digest"]),
            tier(Tier.RAM, first["digest"], second["digest"]),
        )
        wait_until(lambda: bool(owner.ok("GET", path)["residency"]))

        assert sorted(owner.ok("GET", path)["residency"], key=lambda row: row["version"]) == [
            {"worker": "w1", "version": 1, "tier": "slot"},
            {"worker": "w1", "version": 2, "tier": "ram"},
        ]
        assert borrower.ok("GET", path)["residency"] == []
        text = service.http.get("/metrics").text
        for line in (
            'tandem_adapter_resident{engine="w1",tier="ram"} 2.0',
            'tandem_adapter_hits_total{engine="w1",tier="slot"} 2.0',
            'tandem_adapter_misses_total{engine="w1",tier="slot"} 1.0',
            'tandem_adapter_loads_total{engine="w1",tier="ram"} 4.0',
            'tandem_adapter_evictions_total{engine="w1",tier="ram"} 3.0',
        ):
            assert f"\n{line}" in text

    def test_a_pin_reaches_the_worker_with_the_next_request(
        self, owner: Caller, worker: FakeWorker
    ) -> None:
        adapter = owner.imported()

        for wish in ("pin", "unpin"):
            owner.ok("POST", f"/adapters/{adapter['id']}/{wish}")
            owner.chat(adapter["model"])

        pins = [request.adapter.is_pinned for request in worker.requests if request.adapter]
        assert pins == [True, False]
