"""One tenant's calls, and adapters to call with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from scheduler.domain.adapter import TENSORS_FILE
from tests.integration.gateway.tiny_folder import BASE
from tests.unit.scheduler.artefact.archives import make_tar_gz, make_zip
from tests.unit.scheduler.artefact.peft_folder import good_files, good_tensors, safetensors

if TYPE_CHECKING:
    from tests.integration.gateway.conftest import Service

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]


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
