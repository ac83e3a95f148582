"""Terms become a mixture that says the same: each model once, and none that cancels out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.errors import InvalidInput, ModelNotFound
from service.catalogue import ServedModel
from service.logit_arithmetic import merged, with_terms
from service.schemas.logit_arithmetic import LogitTerm

if TYPE_CHECKING:
    from scheduler.text.tokenizer import ChatTokenizer

NAMES = ["base", "a", "b", "c", "d"]
LOGIT = dict(zip(NAMES, (0.3, -1.7, 2.9, 4.1, -0.6), strict=True))


def ref(name: str) -> AdapterRef | None:
    if name == "base":
        return None
    return AdapterRef(adapter_id=name, version=1, digest=name, uri="none")


def served(name: str, base_model: str = "m") -> ServedModel:
    return ServedModel(
        name=name,
        base_model=base_model,
        adapter=ref(name),
        tokenizer=cast("ChatTokenizer", None),
        max_model_len=8,
        fingerprint=None,
    )


async def find(name: str) -> ServedModel:
    if name == "foreign":
        raise ModelNotFound("The model 'foreign' does not exist.", param="model")
    return served(name, "other" if name == "stranger" else "m")


def logit(model: ServedModel) -> float:
    """The mixture's logit of one token, where each model's is a number of its own."""
    parts = model.mixture or merged([(model.adapter, 1.0)])
    return sum(p.weight * LOGIT[p.adapter.adapter_id if p.adapter else "base"] for p in parts)


TERMS = st.lists(
    st.builds(
        LogitTerm,
        model=st.sampled_from(NAMES),
        reference=st.none() | st.sampled_from(NAMES),
        beta=st.floats(-4, 4).map(lambda beta: round(beta, 2)),
    ),
    max_size=3,
)


@given(over=st.sampled_from(NAMES), terms=TERMS)
async def test_a_mixture_is_the_formula_with_each_model_once(
    over: str, terms: list[LogitTerm]
) -> None:
    mixed = await with_terms(served(over), terms, find)

    want = LOGIT[over] + sum(
        t.beta * (LOGIT[t.model] - LOGIT[t.reference or "base"]) for t in terms
    )
    assert logit(mixed) == pytest.approx(want, abs=1e-6)
    digests = [part.adapter and part.adapter.digest for part in mixed.mixture]
    assert len(set(digests)) == len(digests) != 1
    assert all(part.weight for part in mixed.mixture)


@pytest.mark.parametrize(
    ("names", "error", "param"),
    [
        ({"model": "foreign"}, ModelNotFound, "logit_arithmetic.0.model"),
        ({"model": "a", "reference": "foreign"}, ModelNotFound, "logit_arithmetic.0.reference"),
        ({"model": "stranger"}, InvalidInput, "logit_arithmetic.0.model"),
        ({"model": "a", "reference": "stranger"}, InvalidInput, "logit_arithmetic.0.reference"),
    ],
)
async def test_a_wrong_model_is_named_by_its_field(
    names: dict[str, Any], error: type[InvalidInput], param: str
) -> None:
    with pytest.raises(error) as caught:
        await with_terms(served("b"), [LogitTerm(beta=1.0, **names)], find)

    assert caught.value.param == param
