"""How many requests, and how many tokens, a tenant may ask for in a minute."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

MAX_PER_MINUTE = 10**9


class RateKind(StrEnum):
    """What is counted; the values are parts of headers and labels of metrics."""

    REQUESTS = "requests"
    TOKENS = "tokens"


RateLimits: TypeAlias = Mapping[RateKind, int]  # per minute; a kind that is missing has no limit
