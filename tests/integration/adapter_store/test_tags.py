"""Tags on versions, on every database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    InvalidInput,
    ModelNotFound,
    NotFound,
)
from scheduler.store.adapter_pointers import MAX_TAGS

if TYPE_CHECKING:
    from tests.integration.adapter_store.conftest import World


async def test_a_tag_is_put_moved_and_forgotten(world: World) -> None:
    adapter = await world.imported(2)
    name = f"{adapter.model_name}:prod"

    await world.mine.set_tag(adapter.id, "prod", 1)
    assert await world.number_of(name) == 1
    moved = await world.mine.set_tag(adapter.id, "prod", 2)
    assert moved.tags == {"prod": 2}
    assert await world.number_of(name) == 2

    await world.mine.drop_tag(adapter.id, "prod")
    with pytest.raises(ModelNotFound):
        await world.number_of(name)
    with pytest.raises(NotFound):
        await world.mine.drop_tag(adapter.id, "prod")


@pytest.mark.parametrize(
    "tag", ["live", "latest", "ckpt-step-5", "", "A", "-a", "a b", "a:b", "a@1", "a" * 65]
)
async def test_a_tag_is_a_short_word_without_a_meaning(world: World, tag: str) -> None:
    adapter = await world.imported()

    with pytest.raises(InvalidInput) as caught:
        await world.mine.set_tag(adapter.id, tag, 1)
    assert caught.value.param == "tag"


async def test_tags_are_limited_but_can_be_moved_at_the_limit(world: World) -> None:
    adapter = await world.imported(2)
    for number in range(MAX_TAGS):
        await world.mine.set_tag(adapter.id, f"t{number}", 1)

    with pytest.raises(InvalidInput):
        await world.mine.set_tag(adapter.id, "one-more", 1)
    await world.mine.set_tag(adapter.id, "t0", 2)
