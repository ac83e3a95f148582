"""Values -> JSON bytes, by pydantic's Rust serialiser: compact, and the fastest at hand."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json as _to_json


def to_json(value: Any) -> bytes:
    """Plain data or models -> compact UTF-8 JSON; not-a-number and infinity become null."""
    return _to_json(value, inf_nan_mode="null")
