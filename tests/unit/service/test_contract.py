"""The published contract equals the app; routes reach data through one door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

import service.routes
from service.openapi import schema
from service.settings import ServiceSettings

ROOT = Path(__file__).parents[3]
ROUTES = sorted(Path(next(iter(service.routes.__path__))).glob("*.py"))
WIDE_STORES = {
    "Files",
    "Jobs",
    "Adapters",
    "Orders",
    "Evaluations",
    "Leases",
    "Checks",
    "Database",
    "Usage",
    "Board",
    "Idempotency",
}


def test_the_published_contract_equals_the_app() -> None:
    published = yaml.safe_load((ROOT / "openapi.yaml").read_text())

    assert published == schema(), "run: python -m service.openapi > openapi.yaml"


def test_every_operation_documents_itself_and_its_errors() -> None:
    open_paths = {"/healthz", "/readyz", "/metrics"}
    for path, operations in schema()["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), f"{method} {path} says nothing"
            if path not in open_paths:
                assert "401" in operation["responses"], f"{method} {path} lacks 401"
            assert "422" not in operation["responses"], f"{method} {path} promises 422"


@pytest.mark.parametrize("path", ROUTES, ids=lambda path: path.stem)
def test_no_route_touches_a_store_of_all_tenants(path: Path) -> None:
    tree = ast.parse(path.read_text())

    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not (names | imported) & (WIDE_STORES | {"Gateway", "AnyGateway"})
    assert not attributes & {"for_tenant", "gateway", "state"}


def test_every_setting_says_what_it_means() -> None:
    for name, field in ServiceSettings.model_fields.items():
        assert field.description, f"{name} has no description"
        assert field.description.endswith("."), f"{name}'s description is no sentence"
