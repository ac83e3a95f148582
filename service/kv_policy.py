"""The KV policy that a caller asks for -> the one that travels, checked as workers describe it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import InvalidInput
from scheduler.domain.request import NO_KV_POLICY, KvPolicyChoice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.schemas.kv_policy import KvPolicyFields
    from service.worker_roster import WorkerRoster

ALWAYS_KEPT = ("window", "num_sinks")


def kv_policy_of(
    fields: KvPolicyFields | None, base_model: str, roster: WorkerRoster
) -> KvPolicyChoice | None:
    """The policy as it travels to a worker.

    Raises:
        UnknownPlugin: no such policy.
        InvalidInput: an option is wrong, or the budget or the interval is too small for what
            always stays.
        Overloaded: no worker is up to ask.
    """
    if fields is None:
        return None
    options = fields.model_dump(exclude={"type"}, exclude_none=True)
    if fields.type != NO_KV_POLICY:
        roster.check_options(base_model, "kv_policies", fields.type, options, "kv_policy")
        schema = roster.schemas("kv_policies")[fields.type]
        _check_room(schema, options)
        _check_interval(schema, options)
    return KvPolicyChoice(type=fields.type, options=options)


def _check_room(schema: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse a budget in tokens that does not hold the tokens that always stay."""
    described = schema.get("properties", {})
    always = {
        name: options.get(name, described[name]["default"])
        for name in ALWAYS_KEPT
        if name in described
    }
    budget = options["budget"]
    if isinstance(budget, int) and budget < sum(always.values()):
        parts = " + ".join(f"{name} {count}" for name, count in always.items())
        raise InvalidInput(
            f"'kv_policy.budget': {budget} tokens do not hold those that always stay ({parts}); "
            f"ask for at least {sum(always.values())}, or for a smaller window.",
            param="kv_policy.budget",
        )


def _check_interval(schema: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse compressions that come faster than the tokens that always stay behind them."""
    described = schema.get("properties", {})
    if "decode_interval" not in options or "window" not in described:
        return
    interval = options["decode_interval"]
    window = options.get("window", described["window"]["default"])
    if interval < window:
        raise InvalidInput(
            f"'kv_policy.decode_interval': {interval} tokens do not hold the window of {window}; "
            f"ask for at least {window}, or for a smaller window.",
            param="kv_policy.decode_interval",
        )
