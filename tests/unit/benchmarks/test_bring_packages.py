"""Which packages go along to a machine that has torch and no network."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from benchmarks.gpu.bring_packages import LEFT_OUT, PROJECT, ROOT, THERE, closure, needs_of, pinned


def test_what_the_service_needs_goes_along_and_what_torch_brings_does_not() -> None:
    names = closure([PROJECT], LEFT_OUT) - closure(THERE)

    assert {"fastapi", "pydantic", "sqlalchemy", "greenlet", "msgpack", "uvicorn"} <= names
    assert not names & {"torch", "numpy", "jinja2", "transformers", "openai"}


def test_packages_of_an_extra_are_needed_where_it_is_asked_for() -> None:
    def names(asked: str) -> set[str]:
        return {need.name for need in needs_of(Requirement(asked)) or []}

    assert "greenlet" in names("sqlalchemy[asyncio]")
    assert "greenlet" not in names("alembic")
    assert needs_of(Requirement("no-such-package")) is None


def test_every_package_that_goes_along_has_a_pinned_version() -> None:
    names = closure([PROJECT], LEFT_OUT) - closure(THERE) - {PROJECT}

    wanted = pinned(names, (ROOT / "constraints.txt").read_text())

    assert len(wanted) == len(names)
    with pytest.raises(KeyError):
        pinned({"no-such-package"}, "torch==2.13.0\n")
