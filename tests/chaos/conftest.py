"""The report of a chaos run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chaos.report import ChaosReport, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the report goes."""
    parser.addoption("--chaos-report", type=Path, help="folder of the written report")


@pytest.fixture(scope="session")
def chaos_report(request: pytest.FixtureRequest) -> Iterator[ChaosReport]:
    """Findings of all scenarios, written at the end."""
    report = ChaosReport()
    yield report
    folder = request.config.getoption("--chaos-report", default=None)
    if folder is not None:
        report.write(folder)


@pytest.fixture
def found(
    request: pytest.FixtureRequest, chaos_report: ChaosReport
) -> Iterator[Callable[[int, str, str], None]]:
    """Takes repeats, what was expected, and what was seen; a test that fails is told as such."""
    began_s, told = time.monotonic(), list[tuple[int, str, str]]()
    scenario = request.node.originalname.removeprefix("test_").replace("_", " ")
    yield lambda *finding: told.append(finding)
    for repeats, expected, seen in told or [(0, "to pass", "failed")]:
        seconds = time.monotonic() - began_s
        chaos_report.findings.append(Finding(scenario, repeats, expected, seen, seconds))
