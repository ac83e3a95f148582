"""The dashboard's files: under a strict policy, whole without a network, and free of markup."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest

from service.app import create_app
from service.dashboard.files import FOLDER
from service.settings import ServiceSettings

if TYPE_CHECKING:
    from pathlib import Path

FILES = sorted(FOLDER.iterdir())
MODULES = [path for path in FILES if path.suffix == ".js"]
# What turns text into markup or into a program.
FORBIDDEN = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser"),
    *("createContextualFragment", "eval(", "new Function", "localStorage", "import("),
)


@pytest.fixture
def client(tmp_path: Path) -> httpx.AsyncClient:
    app = create_app(ServiceSettings(data_dir=tmp_path))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_every_file_is_served_without_a_key_under_the_policy(
    client: httpx.AsyncClient, path: Path
) -> None:
    async with client:
        response = await client.get(f"/dashboard/{path.name}")

    assert response.status_code == 200
    assert response.content == path.read_bytes()
    policy = dict(
        directive.split(" ", 1)
        for directive in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not [value for value in policy.values() if "unsafe" in value or "*" in value]
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_the_page_is_at_its_folder_and_nothing_outside_is_served(
    client: httpx.AsyncClient,
) -> None:
    async with client:
        bare = await client.get("/dashboard")
        page = await client.get("/dashboard/")
        above = await client.get("/dashboard/%2e%2e/files.py")

    assert (bare.status_code, bare.headers["location"]) == (307, "http://gateway/dashboard/")
    assert page.text.startswith("<!doctype html>")
    assert above.status_code == 404
    assert above.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_module_can_make_markup_of_text(path: Path) -> None:
    assert not [word for word in FORBIDDEN if word in path.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w./-]*", path.read_text())

    assert {address for address in addresses if "www.w3.org/2000/svg" not in address} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_every_import_is_a_module_of_the_page(path: Path) -> None:
    imported = re.findall(r'from "\./([\w.]+)"', path.read_text())

    assert set(imported) <= {module.name for module in MODULES}


def test_the_page_has_no_script_or_style_of_its_own() -> None:
    page = (FOLDER / "index.html").read_text()

    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="main.js">']
    assert not re.search(r"<style|style=| on\w+=", page)
