"""Adapters shared between tenants over HTTP."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.integration.gateway.caller import Caller
from tests.integration.gateway.conftest import wait_until
from tests.integration.gateway.fake_worker import Plan
from tests.unit.scheduler.artefact.archives import make_zip
from tests.unit.scheduler.artefact.peft_folder import good_files

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

pytestmark = pytest.mark.usefixtures("worker")


_ARCHIVE = {"file": ("a.zip", make_zip(list(good_files().items())))}
CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("DELETE", "", {}),
    ("POST", "/promote", {"json": {"version": 1}}),
    ("POST", "/rollback", {}),
    ("PUT", "/tags/prod", {"json": {"version": 1}}),
    ("DELETE", "/tags/prod", {}),
    ("POST", "/pin", {}),
    ("POST", "/unpin", {}),
    ("POST", "/shares", {"json": {"tenant_id": "org-x"}}),
    ("DELETE", "/shares/org-x", {}),
    ("POST", "/versions", {"files": _ARCHIVE}),
    ("GET", "/versions/1/export", {}),
    ("GET", "/versions/1/export?format=merged", {}),
    ("POST", "/versions/1/merge", {}),
    ("GET", "/versions/1/merge", {}),
    ("DELETE", "/versions/1/merge", {}),
]
READS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "", {}),
    ("GET", "/versions", {}),
    ("GET", "/versions/1", {}),
]


class TestSharing:
    def test_a_borrower_calls_with_its_own_salt_and_changes_nothing(
        self, owner: Caller, borrower: Caller, worker: FakeWorker
    ) -> None:
        adapter = owner.imported()
        path, name = f"/adapters/{adapter['id']}", adapter["model"]
        body = {"tenant_id": borrower.tenant.id}

        shared = owner.ok("POST", f"{path}/shares", json=body)
        assert shared["shared_with"] == [borrower.tenant.id]
        assert owner.ok("POST", f"{path}/shares", json=body) == shared

        assert borrower.chat(name).status_code == 200
        assert worker.requests[-1].tenant_id == borrower.tenant.id
        seen = borrower.ok("GET", path)
        assert (seen["shared_by"], seen["shared_with"]) == (owner.tenant.name, [])
        (listed,) = borrower.ok("GET", "/adapters")["data"]
        assert seen == listed | {"residency": []}
        models = {model["id"]: model for model in borrower.ok("GET", "/models")["data"]}
        assert models[name]["shared_by"] == models[name]["owned_by"] == owner.tenant.name
        for method, suffix, options in CHANGES:
            error = borrower.refused(method, path + suffix, 403, **options)
            assert error["code"] == "permission_denied"
        borrower.refused("DELETE", f"/models/{name}", 403)
        assert owner.ok("GET", path) == shared | {"residency": []}

    def test_unsharing_ends_it_with_the_next_request(
        self, service: Service, owner: Caller, borrower: Caller, worker: FakeWorker
    ) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}"
        owner.ok("POST", f"{path}/shares", json={"tenant_id": borrower.tenant.id})
        worker.plan = lambda _: Plan(service.tokenizer.encode("slow"), delay_s=0.15)
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(borrower.chat(adapter["model"])))
        asking.start()
        wait_until(lambda: len(worker.requests) == 1)

        owner.ok("DELETE", f"{path}/shares/{borrower.tenant.id}")

        assert borrower.chat(adapter["model"]).status_code == 404
        borrower.refused("GET", path, 404)
        assert borrower.ok("GET", "/adapters")["data"] == []
        asking.join()
        assert answers[0].status_code == 200  # what ran ran on

    def test_a_stranger_finds_nothing_and_hears_the_same_as_for_nothing(
        self, owner: Caller, borrower: Caller
    ) -> None:
        adapter = owner.imported()
        for method, suffix, options in (*CHANGES, *READS):
            said = [
                borrower.refused(method, f"/adapters/{name}{suffix}", 404, **options)["message"]
                for name in (adapter["id"], "NOBODYXX")
            ]
            assert said[0].replace(adapter["id"], "NOBODYXX") == said[1]
        for mark in ("", "@1", ":live", ":prod"):
            assert borrower.chat(adapter["model"] + mark).status_code == 404
        assert owner.ok("GET", f"/adapters/{adapter['id']}") == adapter | {"residency": []}

    def test_an_unknown_borrower_is_not_found(self, owner: Caller) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}/shares"

        assert owner.refused("POST", path, 404, json={"tenant_id": "org-x"})["param"] == "tenant_id"
        owner.refused("POST", path, 400, json={"tenant_id": owner.tenant.id})
        owner.refused("DELETE", f"{path}/org-x", 404)
