"""An adapter's versions over HTTP: promoted, rolled back, tagged."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.integration.gateway.caller import Caller
from tests.integration.gateway.conftest import wait_until
from tests.integration.gateway.fake_worker import Plan
from tests.integration.gateway.tiny_folder import BASE
from tests.integration.gateway.training import finished_job
from tests.unit.scheduler.artefact.archives import make_zip
from tests.unit.scheduler.artefact.peft_folder import good_files

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

pytestmark = pytest.mark.usefixtures("worker")


class TestVersions:
    def test_names_mean_versions_and_live_moves(self, owner: Caller, worker: FakeWorker) -> None:
        adapter = owner.imported()
        second = owner.with_version(adapter, 1.0)
        third = owner.with_version(adapter, 2.0)
        path, name = f"/adapters/{adapter['id']}", adapter["model"]

        def answering(model: str) -> int:
            assert owner.chat(model).status_code == 200
            used = worker.requests[-1].adapter
            assert used is not None
            return used.version

        assert (second["version"], third["version"]) == (2, 3)
        assert [answering(n) for n in (name, f"{name}@2", f"{name}:live")] == [1, 2, 3]
        owner.ok("POST", f"{path}/promote", json={"version": 2})
        promoted = owner.ok("POST", f"{path}/promote", json={"version": 3})
        assert promoted["live_version"] == 3
        assert answering(name) == answering(f"{name}:live") == 3
        assert owner.ok("POST", f"{path}/rollback")["live_version"] == 2
        assert answering(name) == 2
        assert owner.ok("POST", f"{path}/rollback")["live_version"] is None
        assert answering(name) == 1
        assert owner.refused("POST", f"{path}/rollback", 400)["code"] == "conflict"
        tagged = owner.ok("PUT", f"{path}/tags/prod", json={"version": 2})
        assert tagged["tags"] == {"prod": 2}
        assert answering(f"{name}:prod") == 2
        assert owner.ok("DELETE", f"{path}/tags/prod")["deleted"] is True
        assert owner.chat(f"{name}:prod").status_code == 404

    def test_what_runs_keeps_the_version_it_began_with(
        self, service: Service, owner: Caller, worker: FakeWorker
    ) -> None:
        adapter = owner.imported()
        owner.with_version(adapter, 1.0)
        worker.plan = lambda _: Plan(service.tokenizer.encode("slow"), delay_s=0.15)
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(owner.chat(adapter["model"])))
        asking.start()
        wait_until(lambda: len(worker.requests) == 1)

        owner.ok("POST", f"/adapters/{adapter['id']}/promote", json={"version": 2})
        owner.chat(adapter["model"])
        asking.join()

        used = [request.adapter.version for request in worker.requests if request.adapter]
        assert used == [1, 2]
        assert answers[0].status_code == 200

    def test_versions_are_paged_and_shown(self, owner: Caller) -> None:
        adapter = owner.imported()
        for shift in (1.0, 2.0):
            owner.with_version(adapter, shift)
        path = f"/adapters/{adapter['id']}/versions"

        first = owner.ok("GET", f"{path}?limit=2")
        rest = owner.ok("GET", f"{path}?limit=2&after={first['last_id']}")

        assert [v["version"] for v in (*first["data"], *rest["data"])] == [3, 2, 1]
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert owner.ok("GET", f"{path}/2") == first["data"][1]
        assert owner.refused("GET", f"{path}/4", 404)["code"] == "not_found"
        for number in ("0", "-1", "x", str(10**30)):
            owner.refused("GET", f"{path}/{number}", 400)

    def test_adapters_are_paged(self, owner: Caller) -> None:
        ids = [owner.imported(float(n))["id"] for n in range(3)]

        first = owner.ok("GET", "/adapters?limit=2")
        rest = owner.ok("GET", f"/adapters?limit=2&after={first['last_id']}")

        assert [a["id"] for a in (*first["data"], *rest["data"])] == ids
        assert owner.ok("GET", "/adapters?order=desc&limit=1")["data"][0]["id"] == ids[-1]
        owner.refused("GET", "/adapters?after=nobody", 400)

    def test_a_trained_version_tells_its_job_and_its_data(
        self, service: Service, owner: Caller
    ) -> None:
        job = finished_job(service, service.client(owner.key))

        adapter = owner.ok("GET", f"/adapters/{job.adapter_id}")

        version = adapter["versions"][-1]
        assert (version["origin"], version["job_id"]) == ("job", job.id)
        assert set(version["data_digests"]) == {"training_file"}
        assert len(version["data_digests"]["training_file"]) == 64

    @pytest.mark.parametrize("field", ["name", "model"])
    def test_a_further_version_has_its_adapters_name_and_base(
        self, owner: Caller, field: str
    ) -> None:
        adapter = owner.imported()
        files = {"file": ("a.zip", make_zip(list(good_files().items())))}

        error = owner.refused(
            "POST", f"/adapters/{adapter['id']}/versions", 400, data={field: BASE}, files=files
        )
        assert error["param"] == field
