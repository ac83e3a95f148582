"""Options of plug-ins are bounded before anything looks at them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.schemas.adapter_order import CompressOptions, MergeCreate
from service.schemas.fine_tuning import JobCreate
from service.schemas.options import MAX_BYTES, MAX_DEPTH, MAX_INT


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("x" * MAX_BYTES, "bytes of JSON"),
        (nested(MAX_DEPTH), "deep"),
        (nested(900), "deep"),
        (MAX_INT + 1, "integer"),
        ([{"a": -(2**70)}], "integer"),
        (float("nan"), "finite"),
        ("\ud800", "surrogates"),
    ],
)
def test_what_is_large_deep_or_odd_is_refused_without_repeating_it(
    value: Any, sentence: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        CompressOptions(config={"density": value})

    (error,) = caught.value.errors()
    assert error["loc"] == ("config",)
    assert sentence in error["msg"]
    assert len(error["msg"]) < 100


def test_ranks_of_every_site_of_a_large_model_are_taken() -> None:
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    sites = [f"layers.{layer}.self_attn.{module}" for layer in range(80) for module in modules]
    patterns = {name: dict.fromkeys(sites, 8) for name in ("rank_pattern", "alpha_pattern")}

    body = JobCreate(model="m", training_file="f", method_config=patterns)

    assert body.method_config == patterns


@pytest.mark.parametrize(
    "field",
    [
        {"method": {"type": "supervised", "dpo": nested(900)}},
        {"integrations": [{"a": nested(900)}]},
    ],
)
def test_nothing_else_of_a_job_is_deep_either(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="deep"):
        JobCreate.model_validate({"model": "m", "training_file": "f"} | field)


def test_a_merges_options_are_bounded_too() -> None:
    with pytest.raises(ValidationError, match="deep"):
        MergeCreate.model_validate({"sources": [{"model": "a"}], "config": {"a": nested(900)}})
