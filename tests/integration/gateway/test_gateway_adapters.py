"""The adapter registry over HTTP: in, out, promoted, rolled back, tagged, shared, deleted."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from scheduler.domain.adapter import CONFIG_FILE, TENSORS_FILE
from scheduler.domain.adapter_tier import Tier
from scheduler.domain.errors import InvalidInput
from scheduler.tasks.adapter_order import carry_out_order
from scheduler.tasks.context import TaskContext
from scheduler.tasks.encode import EncodedSummary
from scheduler.tasks.programs import Program
from tests.integration.gateway.conftest import BASE, wait_until
from tests.integration.gateway.fake_worker import Plan, tier
from tests.integration.gateway.test_gateway_jobs import finished_job
from tests.unit.scheduler.artefact.peft_folder import LORA, good_files, good_tensors, safetensors
from tests.unit.scheduler.artefact.test_archive import make_tar_gz, make_zip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

pytestmark = pytest.mark.usefixtures("worker")
HELLO = [{"role": "user", "content": "Hi"}]


class Caller:
    """One tenant with a plain client."""

    def __init__(self, service: Service) -> None:
        self.tenant, self.key = service.tenant()
        self._http = service.http

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        return self._http.request(method, f"/v1{path}", headers=headers, **options)

    def ok(self, method: str, path: str, **options: Any) -> Any:
        response = self.call(method, path, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, method: str, path: str, status: int, **options: Any) -> dict[str, Any]:
        response = self.call(method, path, **options)
        assert response.status_code == status, response.text
        error: dict[str, Any] = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def chat(self, model: str) -> httpx.Response:
        return self.call("POST", "/chat/completions", json={"model": model, "messages": HELLO})

    def imported(self, shift: float = 0.0, **options: Any) -> Any:
        files = {"file": ("a.zip", make_zip(list(files_of(shift).items())))}
        data = {"model": BASE, "name": "mine"}
        return self.ok("POST", "/adapters", data=data, files=files, **options)

    def with_version(self, adapter: Any, shift: float) -> Any:
        files = {"file": ("a.tar.gz", make_tar_gz(list(files_of(shift).items())))}
        return self.ok("POST", f"/adapters/{adapter['id']}/versions", files=files)


def files_of(shift: float) -> dict[str, bytes]:
    """A good adapter; another shift is another content."""
    tensors = {name: tensor + shift for name, tensor in good_tensors().items()}
    return good_files() | {TENSORS_FILE: safetensors(tensors)}


def stored(service: Service) -> set[str]:
    """Every adapter artefact's file in the object store."""
    root = service.settings.data_dir / "objects" / "adapters"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def owner(service: Service) -> Caller:
    return Caller(service)


@pytest.fixture
def borrower(service: Service) -> Caller:
    return Caller(service)


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


class TestImport:
    @pytest.mark.parametrize("kind", ["zip", "tar.gz", "file id", "folder"])
    def test_an_adapter_comes_in_and_answers(
        self, owner: Caller, worker: FakeWorker, kind: str
    ) -> None:
        content = list(good_files().items())
        data = {"model": BASE, "name": "mine"}
        files: Any = {"file": ("a", make_zip(content) if kind == "zip" else make_tar_gz(content))}
        if kind == "folder":
            files = [("files", (name, content)) for name, content in good_files().items()]
        if kind == "file id":
            upload = {"purpose": "user_data"}
            data["file_id"] = owner.ok("POST", "/files", data=upload, files=files)["id"]
            files = {"unused": ("", b"")}
            body = {name: (None, value) for name, value in data.items()}
            adapter = owner.ok("POST", "/adapters", files=body)
        else:
            adapter = owner.ok("POST", "/adapters", data=data, files=files)

        name = f"ft:{BASE}:{owner.tenant.name}:mine:{adapter['id']}"
        assert adapter["model"] == name
        assert adapter["job_id"] is None
        assert adapter["final_version"] == 1
        (version,) = adapter["versions"]
        assert version["origin"] == "import"
        assert version["base_digest"] == "d" * 64
        assert (version["method"], version["model"]) == ("lora", f"{name}@1")
        assert owner.chat(name).json()["model"] == name
        (request,) = worker.requests
        assert request.adapter is not None
        assert (request.adapter.version, request.adapter.digest) == (1, version["digest"])
        assert name in [model["id"] for model in owner.ok("GET", "/models")["data"]]
        assert owner.ok("GET", f"/adapters/{adapter['id']}") == adapter | {"residency": []}

    def test_the_stored_artefact_is_what_a_worker_loads(
        self, service: Service, owner: Caller
    ) -> None:
        adapter = owner.imported()

        mine = sorted(name for name in stored(service) if name.startswith(adapter["id"]))
        assert [name.rsplit("/", 1)[1] for name in mine] == [
            CONFIG_FILE, TENSORS_FILE, "manifest.json",
        ]  # fmt: skip
        root = service.settings.data_dir / "objects" / "adapters"
        config = json.loads((root / mine[0]).read_text())
        assert config["base_model_name_or_path"] == BASE

    @pytest.mark.parametrize(
        ("fields", "content", "status", "param"),
        [
            ({"name": "a:b"}, {}, 400, "name"),
            ({"name": ""}, {}, 400, "name"),
            ({"name": "x" * 65}, {}, 400, "name"),
            ({"model": "nope"}, {}, 404, "model"),
            ({"model": "ft:x"}, {}, 404, "model"),
            ({"trust_remote_code": "true"}, {}, 400, "trust_remote_code"),
            ({"file": "text"}, {}, 400, "file"),
            ({"file_id": "file-unknown"}, {}, 400, "file"),
            ({}, {"adapter_model.bin": b"\x80"}, 400, "file"),
            ({}, {"../../evil.py": b""}, 400, "file"),
            ({}, {CONFIG_FILE: json.dumps(LORA | {"r": 65}).encode()}, 400, CONFIG_FILE),
            ({}, {CONFIG_FILE: json.dumps(LORA | {"use_dora": True}).encode()}, 400, CONFIG_FILE),
            ({}, {CONFIG_FILE: b"[" * 100_000}, 400, CONFIG_FILE),
            ({}, {TENSORS_FILE: b"\x80\x04pickle"}, 400, TENSORS_FILE),
            ({}, {TENSORS_FILE: safetensors({"x": np.zeros(1)})}, 400, TENSORS_FILE),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_what_is_wrong_is_refused_and_leaves_nothing_behind(
        self, service: Service, owner: Caller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
        fields: dict[str, str], content: dict[str, bytes], status: int, param: str,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        before = stored(service)
        archive = make_zip(list((good_files() | content).items()))

        error = owner.refused(
            "POST", "/adapters", status,
            data={"model": BASE, "name": "mine"} | fields, files={"file": ("a.zip", archive)},
        )  # fmt: skip

        assert error["param"] == param
        assert stored(service) == before
        assert list(tmp_path.iterdir()) == []
        assert owner.ok("GET", "/adapters")["data"] == []

    def test_nan_is_refused(self, owner: Caller) -> None:
        archive = make_zip(list(files_of(float("nan")).items()))

        error = owner.refused(
            "POST", "/adapters", 400,
            data={"model": BASE, "name": "mine"}, files={"file": ("a.zip", archive)},
        )  # fmt: skip
        assert "NaN" in error["message"]

    def test_no_source_or_two_are_refused(self, owner: Caller) -> None:
        data = {"model": BASE, "name": "mine"}
        archive = ("a.zip", make_zip(list(good_files().items())))
        parts = [("files", (name, content)) for name, content in good_files().items()]
        for files in ({"name": (None, "mine")}, [("file", archive), *parts[:1]]):
            error = owner.refused("POST", "/adapters", 400, data=data, files=files)
            assert error["param"] in ("file", "model")

    def test_another_tenants_file_is_no_source(self, owner: Caller, borrower: Caller) -> None:
        archive = {"file": ("a.zip", make_zip(list(good_files().items())))}
        foreign = borrower.ok("POST", "/files", data={"purpose": "user_data"}, files=archive)
        body = {"model": BASE, "name": "mine"}

        errors = []
        for file_id in (foreign["id"], "file-unknown"):
            form = {name: (None, value) for name, value in {**body, "file_id": file_id}.items()}
            error = owner.refused("POST", "/adapters", 404, files=form)
            errors.append(error["message"].replace(file_id, "ID"))
        assert errors[0] == errors[1]

    def test_a_repeated_import_makes_nothing_new(self, service: Service, owner: Caller) -> None:
        headers = {"idempotency-key": "once"}
        first = owner.imported(headers=headers)
        before = stored(service)

        assert owner.imported(headers=headers) == first
        assert stored(service) == before
        form = {"model": BASE, "name": "other"}
        archive = {"file": ("a.zip", make_zip(list(good_files().items())))}
        error = owner.refused("POST", "/adapters", 400, data=form, files=archive, headers=headers)
        assert error["code"] == "idempotency_mismatch"

    def test_a_body_that_is_no_form_is_refused(self, owner: Caller) -> None:
        owner.refused("POST", "/adapters", 400, json={"model": BASE, "name": "mine"})


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


class TestExport:
    def test_what_went_in_comes_out_and_goes_in_again(self, owner: Caller) -> None:
        adapter = owner.imported()

        response = owner.call("GET", f"/adapters/{adapter['id']}/versions/1/export")

        assert response.headers["content-length"] == str(len(response.content))
        with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
            names = archive.getnames()
            tensors = archive.extractfile(names[1])
            assert tensors is not None
            assert tensors.read() == good_files()[TENSORS_FILE]
        folder = f"{adapter['id']}-v1"
        assert names == [f"{folder}/{CONFIG_FILE}", f"{folder}/{TENSORS_FILE}"]
        again = owner.ok(
            "POST", "/adapters",
            data={"model": BASE, "name": "again"}, files={"file": ("a.tar", response.content)},
        )  # fmt: skip
        assert again["versions"][0]["digest"] == adapter["versions"][0]["digest"]

    def test_a_plain_version_is_exported_after_its_base_model_was_dropped(
        self, service: Service, owner: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter = owner.imported()
        monkeypatch.setattr(type(service.settings), "model_dirs", lambda _: {})

        response = owner.call("GET", f"/adapters/{adapter['id']}/versions/1/export")

        assert response.status_code == 200

    def test_damaged_or_missing_files_are_not_exported(
        self, service: Service, owner: Caller
    ) -> None:
        adapter = owner.imported()
        root = service.settings.data_dir / "objects" / "adapters"
        (tensors,) = (root / adapter["id"]).rglob(TENSORS_FILE)
        path = f"/adapters/{adapter['id']}/versions/1/export"

        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x7f")
        assert "damaged" in owner.refused("GET", path, 404)["message"]
        tensors.unlink()
        assert "gone" in owner.refused("GET", path, 404)["message"]

    def test_another_format_is_refused(self, owner: Caller) -> None:
        adapter = owner.imported()

        owner.refused("GET", f"/adapters/{adapter['id']}/versions/1/export?format=pickle", 400)


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
