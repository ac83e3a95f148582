"""Rules about the whole tree: what is documented, what is named, and who imports where."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from scheduler.base_model import ARCHITECTURES
from scheduler.domain.errors import DomainError
from scheduler.settings import SchedulerSettings
from service.settings import ServiceSettings
from workers.models import MODELS, llama
from workers.settings import FollowerSettings, WorkerSettings

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("scheduler", "service", "workers")
SOURCES = [path for name in PACKAGES for path in sorted((REPO / name).rglob("*.py"))]
DOCS = [*sorted((REPO / "docs").glob("*.md")), REPO / "README.md", REPO / "CONTRIBUTING.md"]
SETTINGS: tuple[type[BaseSettings], ...] = (
    SchedulerSettings,
    ServiceSettings,
    WorkerSettings,
    FollowerSettings,
)


def _all_errors(cls: type[DomainError] = DomainError) -> set[type[DomainError]]:
    return {cls}.union(*(_all_errors(child) for child in cls.__subclasses__()))


def test_every_error_code_has_its_paragraph() -> None:
    headings = set(re.findall(r"^## `(\w+)`$", (REPO / "docs/errors.md").read_text(), re.M))

    assert headings == {error.code for error in _all_errors()}


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting_is_described_here_and_in_the_handbook(settings: type[BaseSettings]) -> None:
    handbook = (REPO / "docs/operations.md").read_text()

    for name, field in settings.model_fields.items():
        assert field.description, f"{settings.__name__}.{name} has no description."
        assert f"| `TANDEM_{name.upper()}` |" in handbook


def test_the_handbook_names_no_setting_that_is_gone() -> None:
    rows = re.findall(r"^\| `TANDEM_(\w+)` \|", (REPO / "docs/operations.md").read_text(), re.M)

    known = {name.upper() for settings in SETTINGS for name in settings.model_fields}
    assert set(rows) == known


def test_the_command_line_knows_the_families_that_the_engine_runs() -> None:
    assert llama.__name__ == "workers.models.llama"  # importing one registers them all
    assert set(MODELS.names()) == ARCHITECTURES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_no_function_imports(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [n.lineno for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{source.relative_to(REPO)}:{inner[0]} imports inside {node.name}."


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_every_module_says_what_it_is(source: Path) -> None:
    tree = ast.parse(source.read_text())

    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}."


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_every_make_target_that_is_mentioned_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPO / "Makefile").read_text(), re.M))

    assert set(re.findall(r"`?make ([a-z0-9-]+)`", page.read_text())) <= targets
