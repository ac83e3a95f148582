"""One file per KV policy."""

from workers.kv_policy import KV_POLICIES

__all__ = ["KV_POLICIES"]

KV_POLICIES.discover(__name__)
