"""Adapters handed out over HTTP."""

from __future__ import annotations

import io
import tarfile
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.adapter import CONFIG_FILE, TENSORS_FILE
from tests.integration.gateway.caller import Caller
from tests.integration.gateway.conftest import wait_until
from tests.integration.gateway.tiny_folder import BASE
from tests.unit.scheduler.artefact.peft_folder import good_files

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service

pytestmark = pytest.mark.usefixtures("worker")


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

    def test_a_tenant_holds_so_many_transfers_at_once_and_another_is_not_affected(
        self, service: Service, owner: Caller, borrower: Caller
    ) -> None:
        path = f"/adapters/{owner.imported()['id']}/versions/1/export"
        most, transfers = service.settings.max_transfers, service.gateway.transfers
        wait_until(lambda: not transfers.num_open(owner.tenant.id))  # the upload's, too

        with ExitStack() as others:
            for _ in range(most):
                others.enter_context(transfers.one_of(owner.tenant.id))
            error = owner.refused("GET", path, 429)
            owner.refused("POST", "/adapters", 429)
            owner.refused("POST", "/files", 429)
            borrower.imported()

        assert error["code"] == "rate_limit_exceeded"
        assert str(most) in error["message"]
        for _ in range(most + 1):  # each gives its place back once it is sent
            assert owner.call("GET", path).status_code == 200
