"""`tandem adapters` against a running gateway, with real tasks and programs behind it."""

from __future__ import annotations

import asyncio
import json
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from scheduler import cli
from scheduler.api_client import ApiRefused
from scheduler.domain.adapter import CONFIG_FILE, TENSORS_FILE
from scheduler.tasks.adapter_order import carry_out_order
from scheduler.tasks.context import TaskContext
from scheduler.tasks.encode import EncodedSummary
from tests.integration.gateway.caller import Caller, files_of
from tests.integration.gateway.tiny_folder import BASE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.gateway.conftest import Service

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What peft saved."""
    path = tmp_path / "peft"
    path.mkdir()
    for name, content in files_of(0.0).items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def tasks(service: Service) -> Iterator[None]:
    """Something that carries orders out, as the scheduler's process does."""
    running = asyncio.run_coroutine_threadsafe(_carry_out_all(service), service.thread.loop)
    yield
    running.cancel()


async def _carry_out_all(service: Service) -> None:
    async def encode(*_given: Any) -> EncodedSummary:
        raise AssertionError("nothing is tokenised here")

    gateway = service.gateway
    context = TaskContext(
        db=gateway.db,
        objects=gateway.objects,
        model_dirs=service.settings.model_dirs(),
        encode=encode,
    )
    while True:
        for order_id in await gateway.orders.hint(60):
            await carry_out_order(order_id, context)
        await asyncio.sleep(0.05)


class Terminal:
    """A tenant at a terminal."""

    def __init__(self, service: Service, owner: Caller) -> None:
        self._environment = {"TANDEM_URL": service.url, "TANDEM_API_KEY": owner.key}

    def run(self, *arguments: object) -> Result:
        texts = [str(argument) for argument in ("adapters", *arguments)]
        return CliRunner(env=self._environment).invoke(cli.app, texts)

    def says(self, *arguments: object) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output


@pytest.fixture
def terminal(service: Service, owner: Caller) -> Terminal:
    return Terminal(service, owner)


def only_adapter(owner: Caller) -> Any:
    (adapter,) = owner.ok("GET", "/adapters")["data"]
    return adapter


def test_an_adapter_is_managed_from_a_terminal(
    service: Service, terminal: Terminal, owner: Caller, folder: Path
) -> None:
    name = terminal.says("import", folder, "--model", BASE, "--name", "mine").strip()
    adapter = only_adapter(owner)
    adapter_id = adapter["id"]
    terminal.says("import", folder, "--to", adapter_id)

    assert name == adapter["model"]
    assert adapter_id in terminal.says("list")
    assert adapter["versions"][0]["digest"][:12] in terminal.says("show", adapter_id)
    assert terminal.says("promote", adapter_id, 2) == "Live: 2.\n"
    assert terminal.says("rollback", adapter_id) == "Live: none promoted.\n"
    assert terminal.says("tag", adapter_id, "prod", 1) == "prod means version 1.\n"
    assert only_adapter(owner)["tags"] == {"prod": 1}
    assert terminal.says("tag", adapter_id, "prod") == "prod is gone.\n"
    borrower, _ = service.tenant()
    terminal.says("share", adapter_id, borrower.id)
    assert only_adapter(owner)["shared_with"] == [borrower.id]
    terminal.says("share", adapter_id, borrower.id, "--off")
    assert "is pinned" in terminal.says("pin", adapter_id)
    with pytest.raises(ApiRefused, match="pinned"):
        raise terminal.run("delete", adapter_id).exception or AssertionError
    terminal.says("pin", adapter_id, "--off")
    assert terminal.says("delete", adapter_id) == f"{adapter_id} is gone.\n"


@pytest.mark.usefixtures("tasks")
def test_versions_are_compressed_merged_exported_and_imported_again(
    terminal: Terminal, owner: Caller, folder: Path, tmp_path: Path
) -> None:
    terminal.says("import", folder, "--model", BASE, "--name", "mine")
    adapter = only_adapter(owner)
    adapter_id, name = adapter["id"], adapter["model"]

    said = terminal.says("compress", adapter_id, 1, "--config", '{"density": 0.5}')
    assert said.startswith(f"{adapter_id}@2: ")
    assert json.loads(said.partition("\n")[2])["config"]["density"] == 0.5

    small, again = tmp_path / "small.tandem", tmp_path / "peft.tar"
    terminal.says("export", adapter_id, 2, "--format", "compeft", "--out", small)
    terminal.says("import", small, "--to", adapter_id)
    versions = only_adapter(owner)["versions"]
    assert versions[2]["digest"] == versions[1]["digest"]

    terminal.says("export", adapter_id, 2, "--out", again)
    with tarfile.open(again) as archive:
        inside = f"{adapter_id}-v2"
        assert archive.getnames() == [f"{inside}/{CONFIG_FILE}", f"{inside}/{TENSORS_FILE}"]

    said = terminal.says(
        "merge", f"{name}@1", f"{name}@2", "--weight", 0.5, "--weight", 0.5, "--to", adapter_id
    )
    assert said.startswith(f"{adapter_id}@4: ")
    recipe = only_adapter(owner)["versions"][3]["recipe"]
    assert [source["version"] for source in recipe["sources"]] == [1, 2]

    orders = terminal.says("orders")
    assert orders.index("merge") < orders.index("compress")
    assert orders.count("succeeded") == 2


def test_a_refusal_is_one_sentence_and_status_1(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tandem", "adapters", "--url", service.url, "list"])

    with pytest.raises(SystemExit, match="1"):
        cli.main()

    said = capsys.readouterr().err
    assert said.startswith("tandem: ")
    assert said.count("\n") == 1
