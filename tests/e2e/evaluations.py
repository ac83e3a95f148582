"""Evaluations, asked for and waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.e2e.calls import call
from tests.e2e.service import (
    until,
)

if TYPE_CHECKING:
    from openai import OpenAI

GRADERS = [
    {"type": "loss"},
    {"type": "token_accuracy"},
    {"type": "string_check"},
    {"type": "regex", "config": {"pattern": "ok"}},
    {"type": "pairwise", "config": {"against": "base"}},
]


def evaluated(client: OpenAI, evaluation_id: str) -> Any:
    """An evaluation once it is over."""
    path = f"evaluations/{evaluation_id}"
    until(lambda: call(client, "GET", path).json()["status"] in ("succeeded", "failed"))
    shown = call(client, "GET", path).json()
    assert shown["status"] == "succeeded", shown["error"]
    return shown
