"""Adapters brought in over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scheduler.domain.adapter import CONFIG_FILE, TENSORS_FILE
from tests.integration.gateway.caller import Caller, files_of, stored
from tests.integration.gateway.tiny_folder import BASE
from tests.unit.scheduler.artefact.archives import make_tar_gz, make_zip
from tests.unit.scheduler.artefact.peft_folder import LORA, good_files, safetensors

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service
    from tests.integration.gateway.fake_worker import FakeWorker

pytestmark = pytest.mark.usefixtures("worker")


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
