"""Fresh identifiers: unguessable, URL-safe, with OpenAI's prefixes."""

from __future__ import annotations

import secrets
import string

BASE62 = string.digits + string.ascii_letters


def new_id(prefix: str, num_chars: int = 24) -> str:
    """`prefix` and random base62 characters; 24 of them hold 142 bits."""
    return prefix + "".join(secrets.choice(BASE62) for _ in range(num_chars))
