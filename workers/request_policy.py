"""The KV policy that a request asks for, checked against the model that it runs on."""

from __future__ import annotations

from scheduler.domain.errors import InvalidInput
from scheduler.domain.request import NO_KV_POLICY, RequestBody
from workers.kv_policy import KV_POLICIES, KvPolicy
from workers.model import DecoderConfig
from workers.plugin_options import plugin_options


def request_policy(request: RequestBody, config: DecoderConfig) -> KvPolicy | None:
    """The policy with its options; None where the request has none.

    Raises:
        UnknownPlugin: no policy of that name.
        InvalidInput: an option is wrong, or the model has layers that see a window only: which of
            their tokens are in it cannot be told once slots have moved.
    """
    choice = request.kv_policy
    if choice is None or choice.type == NO_KV_POLICY:
        return None
    policy = KV_POLICIES[choice.type]
    options = plugin_options(policy.Config, choice.options)
    if any(window is not None for window in config.windows):
        raise InvalidInput(
            "This model has layers with a sliding window; their K/V are not compressed.",
            param="kv_policy",
        )
    return policy(options)
