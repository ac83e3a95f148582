"""Keys of blocks of K/V: equal keys, equal content.

What a block holds follows from the weights and from all tokens up to its end. Its key is therefore
a SHA-256 over the key of the block before it and its own tokens; before the first block stands a
root made of tenant, base weights and adapter weights. Other tenants and other versions of an
adapter have other roots, so that no block of theirs can ever have the same key; a tenant may divide
its own requests further by a salt.

Source: vLLM's automatic prefix caching (hash of parent and tokens, with a salt in the first).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def chain_root(tenant_id: str, salt: str, base_digest: str, adapter_digest: str | None) -> bytes:
    """What stands before a first block; no adapter is the bare base."""
    root = hashlib.sha256()
    for part in (tenant_id, salt, base_digest, adapter_digest or ""):
        root.update(hashlib.sha256(part.encode()).digest())
    return root.digest()


def block_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a full block that follows `parent`, a key or a root."""
    return hashlib.sha256(parent + array("I", token_ids).tobytes()).digest()
