"""Declaring service classes, and refusing those that nobody declared."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from scheduler.domain.errors import InvalidInput, Overloaded
from scheduler.domain.service_class import (
    ClassTargets,
    check_announced,
    parse_classes,
)
from workers.settings import EngineSettings


def test_a_declaration_gives_a_class_its_targets() -> None:
    classes = parse_classes(["interactive:ttft_ms=300,tpot_ms=30", "bulk:ttft_ms=5000", "free"])

    assert classes == {
        "interactive": ClassTargets(ttft_ms=300, tpot_ms=30),
        "bulk": ClassTargets(ttft_ms=5000),
        "free": ClassTargets(),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no name of a service class"),
        ("Interactive:tpot_ms=3", "is no name of a service class"),
        ("default:tpot_ms=3", "always there"),
        ("best_effort:tpot_ms=3", "always there"),
        ("fast:tpot=3", "tpot: "),
        ("fast:tpot_ms=quick", "tpot_ms: "),
        ("fast:tpot_ms", "tpot_ms: "),
        ("fast:tpot_ms=0", "greater than 0"),
    ],
)
def test_a_wrong_declaration_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_classes([text])

    assert words in refused.value.message
    assert "write NAME:ttft_ms=300,tpot_ms=30." in refused.value.message


def test_a_class_declared_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="declared twice"):
        parse_classes(["fast:tpot_ms=3", "fast:tpot_ms=4"])


def test_a_worker_has_the_declared_classes_and_the_two_that_are_always_there() -> None:
    settings = EngineSettings(
        ttft_ms=400, tpot_ms=40, slo_classes={"fast": ClassTargets(tpot_ms=5)}
    )

    assert settings.service_classes() == {
        "default": ClassTargets(ttft_ms=400, tpot_ms=40),
        "best_effort": ClassTargets(),
        "fast": ClassTargets(tpot_ms=5),
    }


@pytest.mark.parametrize("name", ["default", "best_effort", "Fast", ""])
def test_a_worker_refuses_to_redefine_what_is_always_there(name: str) -> None:
    with pytest.raises(ValidationError, match="slo_classes"):
        EngineSettings(slo_classes={name: ClassTargets(tpot_ms=5)})


def test_only_what_a_worker_declares_is_known() -> None:
    announced = [{"default": 1, "best_effort": 1}, {"default": 1, "best_effort": 1, "fast": 1}]

    check_announced("fast", announced)
    check_announced("best_effort", [])
    with pytest.raises(InvalidInput, match="known: best_effort, default, fast"):
        check_announced("slow", announced)
    with pytest.raises(Overloaded, match="start the service first"):
        check_announced("fast", [])
