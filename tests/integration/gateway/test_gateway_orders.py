"""Compressions and merges over HTTP: what is refused at once, and what a task makes of the rest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.artefact.coded_file import PREFIX
from scheduler.domain.adapter import ARCHIVE_MAGIC
from scheduler.domain.errors import InvalidInput
from scheduler.tasks.adapter_order import carry_out_order
from scheduler.tasks.context import TaskContext
from scheduler.tasks.encode import EncodedSummary
from tests.integration.gateway.caller import Caller, stored
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service

pytestmark = pytest.mark.usefixtures("worker")


def valid_file(caller: Caller) -> str:
    files = {"file": ("valid.jsonl", b'{"messages": []}')}
    uploaded = caller.ok("POST", "/files", data={"purpose": "fine-tune"}, files=files)
    file_id: str = uploaded["id"]
    return file_id


def sealed(header: bytes) -> bytes:
    """A coded file without a payload whose digest is right."""
    digest = hashlib.sha256(header).digest()
    return PREFIX.pack(ARCHIVE_MAGIC, digest, len(header)) + header


def lend(owner: Caller, adapter: Any, borrower: Caller) -> None:
    body = {"tenant_id": borrower.tenant.id}
    owner.ok("POST", f"/adapters/{adapter['id']}/shares", json=body)


class TestCapabilities:
    def test_codecs_ladders_and_merges_are_published(self, owner: Caller) -> None:
        shown = owner.ok("GET", "/capabilities")

        assert set(shown["codecs"]) == {"compeft", "int8"}
        assert "guard" in shown["ladders"]["compeft"]["properties"]
        assert set(shown["merges"]) == {"linear", "lorahub"}


class TestCompress:
    def test_it_is_ordered_shown_and_taken_back(self, owner: Caller) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}/versions/1/compress"

        order = owner.ok("POST", path, json={"config": {"density": 0.2}})

        assert (order["kind"], order["status"], order["version"]) == ("compress", "queued", 1)
        assert owner.ok("GET", f"/adapters/orders/{order['id']}") == order
        assert owner.ok("DELETE", f"/adapters/orders/{order['id']}")["deleted"] is True
        owner.refused("GET", f"/adapters/orders/{order['id']}", 404)

    def test_orders_are_listed_newest_first_page_by_page(
        self, owner: Caller, borrower: Caller
    ) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}/versions/1"
        owner.ok("POST", f"{path}/merge")  # a full model is found at its version
        made = [owner.ok("POST", f"{path}/compress", json={}) for _ in range(3)]

        first = owner.ok("GET", "/adapters/orders?limit=2")
        second = owner.ok("GET", f"/adapters/orders?limit=2&after={first['last_id']}")

        assert first["data"] == made[:0:-1]
        assert (first["first_id"], first["has_more"]) == (made[2]["id"], True)
        assert (second["data"], second["has_more"]) == (made[:1], False)
        assert borrower.ok("GET", "/adapters/orders")["data"] == []
        borrower.refused("GET", f"/adapters/orders?after={made[0]['id']}", 400)
        owner.refused("GET", f"/adapters/orders?after={adapter['id']}@1", 400)

    def test_a_repeated_key_orders_nothing_new(self, owner: Caller) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}/versions/1/compress"
        headers = {"idempotency-key": "once"}

        first = owner.ok("POST", path, json={}, headers=headers)

        assert owner.ok("POST", path, json={}, headers=headers) == first
        owner.refused("POST", path, 400, json={"codec": "int8"}, headers=headers)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"codec": "zip"}, "codec"),
            ({"config": {"density": 2}}, "config.density"),
            ({"config": {"speed": 1}}, "config"),
            ({"config": {}, "search": {}}, "search"),
            ({"search": {}}, "validation_file"),
            ({"guard": 0.1}, "validation_file"),
            ({"promote": True}, "promote"),
            ({"guard": -1}, "guard"),
            ({"colour": "red"}, "colour"),
        ],
    )
    def test_what_makes_no_sense_is_refused_at_once(
        self, owner: Caller, body: dict[str, Any], param: str
    ) -> None:
        adapter = owner.imported()

        error = owner.refused(
            "POST", f"/adapters/{adapter['id']}/versions/1/compress", 400, json=body
        )

        assert error["param"] == param

    def test_only_searchable_codecs_are_searched(self, owner: Caller) -> None:
        adapter = owner.imported()
        body = {"codec": "int8", "search": {}, "validation_file": valid_file(owner)}

        error = owner.refused(
            "POST", f"/adapters/{adapter['id']}/versions/1/compress", 400, json=body
        )

        assert "Unknown ladder 'int8'" in error["message"]

    def test_another_tenants_things_do_not_exist(self, owner: Caller, borrower: Caller) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}/versions/1/compress"
        mine = valid_file(borrower)

        error = owner.refused("POST", path, 404, json={"guard": 1, "validation_file": mine})
        assert error["param"] == "validation_file"
        borrower.refused("POST", path, 404, json={})
        owner.ok(
            "POST", f"/adapters/{adapter['id']}/shares", json={"tenant_id": borrower.tenant.id}
        )
        borrower.refused("POST", path, 403, json={})

    def test_no_more_of_the_validation_file_is_tokenised_than_is_read(
        self, service: Service, owner: Caller
    ) -> None:
        adapter = owner.imported()
        body = {"guard": 1, "validation_file": valid_file(owner)}
        order = owner.ok("POST", f"/adapters/{adapter['id']}/versions/1/compress", json=body)
        asked = []

        async def encode(*given: Any) -> EncodedSummary:
            asked.append(given[3])
            raise InvalidInput("That will do.")

        context = TaskContext(
            db=service.gateway.db, objects=service.gateway.objects,
            model_dirs=service.settings.model_dirs(), encode=encode,
        )  # fmt: skip
        service.thread.run(carry_out_order(order["id"], context))

        assert asked == [32_768]
        assert owner.ok("GET", f"/adapters/orders/{order['id']}")["error"] == "That will do."

    def test_open_orders_are_limited(self, service: Service, owner: Caller) -> None:
        adapter = owner.imported()
        path = f"/adapters/{adapter['id']}/versions/1/compress"
        for _ in range(service.settings.max_open_orders):
            owner.ok("POST", path, json={})

        owner.refused("POST", path, 429, json={})


class TestMerge:
    def test_a_new_adapter_is_ordered(self, owner: Caller) -> None:
        adapter = owner.imported()
        sources = [{"model": f"{adapter['model']}@1", "weight": 1}]

        order = owner.ok("POST", "/adapters/merges", json={"sources": sources, "name": "sum"})

        assert (order["kind"], order["version"]) == ("merge", None)
        assert order["adapter_id"] != adapter["id"]

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"name": None}, "name"),
            ({"adapter_id": "x"}, "name"),
            ({"method": "soup"}, "method"),
            ({"config": {"rank": 1}}, "config"),
            ({"sources": []}, "sources"),
            ({"sources": [{"model": "@1", "weight": 1}, {"model": "@2"}]}, "sources"),
            ({"sources": [{"model": "@1"}, {"model": "@2"}, {"model": "@1"}]}, "sources.2.model"),
            ({"sources": [{"model": "@2"}, {"model": ""}, {"model": "@1"}]}, "sources.2.model"),
        ],
    )
    def test_what_makes_no_sense_is_refused_at_once(
        self, owner: Caller, change: dict[str, Any], param: str
    ) -> None:
        adapter = owner.imported()
        owner.with_version(adapter, 0.5)
        body: dict[str, Any] = {"sources": [{"model": ""}], "name": "sum"} | change
        sources = [s | {"model": adapter["model"] + s["model"]} for s in body["sources"]]

        error = owner.refused("POST", "/adapters/merges", 400, json=body | {"sources": sources})

        assert error["param"] == param

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"sources": [{"model": "{mine}"}, {"model": "ft:none"}]}, "sources.1.model"),
            ({"validation_file": "file-none"}, "validation_file"),
            ({"name": None, "adapter_id": "none"}, "adapter_id"),
        ],
    )
    def test_what_is_not_found_is_blamed_on_the_field_that_names_it(
        self, owner: Caller, change: dict[str, Any], param: str
    ) -> None:
        mine = owner.imported()["model"]
        body: dict[str, Any] = {"sources": [{"model": "{mine}"}], "name": "sum"} | change
        sources = [{"model": s["model"].replace("{mine}", mine)} for s in body["sources"]]

        error = owner.refused("POST", "/adapters/merges", 404, json=body | {"sources": sources})

        assert error["param"] == param

    def test_a_borrowed_adapter_is_not_merged_into_a_copy(
        self, owner: Caller, borrower: Caller
    ) -> None:
        adapter = owner.imported()
        body = {"sources": [{"model": adapter["model"]}], "name": "copy"}
        borrower.refused("POST", "/adapters/merges", 404, json=body)
        owner.ok(
            "POST", f"/adapters/{adapter['id']}/shares", json={"tenant_id": borrower.tenant.id}
        )

        error = borrower.refused("POST", "/adapters/merges", 403, json=body)

        assert error["code"] == "permission_denied"


class TestCodedFiles:
    def test_a_plain_version_is_not_exported_as_one(self, owner: Caller) -> None:
        adapter = owner.imported()

        error = owner.refused(
            "GET", f"/adapters/{adapter['id']}/versions/1/export?format=compeft", 400
        )

        assert "/compress" in error["message"]

    @pytest.mark.parametrize(
        "content",
        [
            ARCHIVE_MAGIC,
            ARCHIVE_MAGIC + bytes(32) + b"\xff\xff\xff\xff",
            ARCHIVE_MAGIC + bytes(32) + (2).to_bytes(4, "little") + b"{}",
            sealed(b"[" * 10_000),
            sealed(b"{}"),
            sealed(b'{"base_digest": "' + b"d" * 64 + b'", "codec": "none"}'),
        ],
        ids=["empty", "endless header", "altered", "deep header", "other base", "no codec's"],
    )
    def test_a_hostile_one_is_refused_and_leaves_nothing(
        self, service: Service, owner: Caller, content: bytes
    ) -> None:
        before = stored(service)
        data = {"model": BASE, "name": "mine"}

        error = owner.refused(
            "POST", "/adapters", 400, data=data, files={"file": ("a.tandem", content)}
        )

        assert error["param"] == "file"
        assert stored(service) == before
        assert owner.ok("GET", "/adapters")["data"] == []


class TestJobs:
    def test_a_job_may_compress_what_it_trains(self, owner: Caller) -> None:
        file_id = valid_file(owner)
        body = {"model": BASE, "training_file": file_id, "validation_file": file_id,
                "compress": {"search": {"guard": 0.1}, "promote": True}}  # fmt: skip

        job = owner.ok("POST", "/fine_tuning/jobs", json=body)

        shown = job["method"]["supervised"]["hyperparameters"]["compress"]
        assert (shown["search"], shown["validation_file"]) == ({"guard": 0.1}, file_id)

    @pytest.mark.parametrize(
        ("compress", "param"),
        [
            ({"config": {"density": 0}}, "compress.config.density"),
            ({"guard": 0.1}, "validation_file"),
            ({"promote": True}, "compress.promote"),
        ],
    )
    def test_what_makes_no_sense_is_refused_before_it_trains(
        self, owner: Caller, compress: dict[str, Any], param: str
    ) -> None:
        body = {"model": BASE, "training_file": valid_file(owner), "compress": compress}

        assert owner.refused("POST", "/fine_tuning/jobs", 400, json=body)["param"] == param
