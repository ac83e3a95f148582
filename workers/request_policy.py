"""The KV policy of a request, its own or the worker's, checked against the model it runs on."""

from __future__ import annotations

from typing import Any

from scheduler.domain.errors import InvalidInput
from scheduler.domain.request import NO_KV_POLICY, KvPolicyChoice, RequestBody
from workers.kv_policies import KV_POLICIES
from workers.kv_policy import KvPolicy
from workers.model import DecoderConfig
from workers.plugin_options import plugin_options


def default_policy(setting: dict[str, Any] | None) -> KvPolicyChoice | None:
    """The worker's policy for requests that name none.

    Raises:
        UnknownPlugin: no policy of that name.
        InvalidInput: an option is wrong, or there is no name.
    """
    if setting is None:
        return None
    options = dict(setting)
    choice = KvPolicyChoice(type=options.pop("type", ""), options=options)
    plugin_options(KV_POLICIES[choice.type].Config, options)
    return choice


def with_default(
    request: RequestBody, default: KvPolicyChoice | None, config: DecoderConfig
) -> RequestBody:
    """The request with the default where it names no policy and the model can be compressed."""
    if request.kv_policy is not None or default is None or has_windows(config):
        return request
    return request.model_copy(update={"kv_policy": default})


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
    if has_windows(config):
        raise InvalidInput(
            "This model has layers with a sliding window; their K/V are not compressed.",
            param="kv_policy",
        )
    return policy(options)


def has_windows(config: DecoderConfig) -> bool:
    """Whether some layer sees the last tokens only."""
    return any(window is not None for window in config.windows)
