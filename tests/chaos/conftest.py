"""The report of a chaos run, and who looks at a module's `cluster`."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from openai import OpenAI

from tests.chaos.ledger import Ledger
from tests.chaos.report import ChaosReport, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.cluster import Cluster


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


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[OpenAI]:
    """A new tenant's, patient enough for an outage."""
    key = asyncio.run(cluster.new_key())
    with OpenAI(base_url=f"{cluster.url}/v1", api_key=key, max_retries=8) as one:
        yield one


@pytest.fixture(scope="module")
def ledger(cluster: Cluster) -> Iterator[Ledger]:
    """What its database says of jobs."""
    with closing(Ledger(cluster.stores.database_url)) as one:
        yield one
