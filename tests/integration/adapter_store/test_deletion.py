"""What goes with a deleted adapter, on every database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from scheduler.domain.errors import (
    AdapterInUse,
    ModelNotFound,
)

if TYPE_CHECKING:
    from tests.integration.adapter_store.conftest import World


async def test_a_pinned_or_shared_adapter_stays(world: World) -> None:
    adapter = await world.imported()

    await world.mine.set_pinned(adapter.id, True)
    with pytest.raises(AdapterInUse, match="pinned"):
        await world.mine.delete(adapter.id)
    await world.mine.set_pinned(adapter.id, False)
    await world.mine.share(adapter.id, world.borrower.id)
    with pytest.raises(AdapterInUse, match="shared"):
        await world.mine.delete(adapter.id)
    await world.mine.unshare(adapter.id, world.borrower.id)

    await world.mine.delete(adapter.id)
    assert len(await world.mine.list()) == 0


async def test_what_pointed_at_its_versions_goes_with_it(world: World) -> None:
    adapter = await world.imported(2)
    await world.mine.set_tag(adapter.id, "prod", 2)
    await world.mine.promote(adapter.id, 2)

    await world.mine.delete(adapter.id)

    for mark in ("", "@1", ":live", ":prod"):
        with pytest.raises(ModelNotFound):
            await world.mine.resolve(adapter.model_name + mark)
    async with world.db.read() as conn:
        for table in ("adapter_tags", "adapter_promotions", "adapter_versions"):
            assert await conn.scalar(text(f"SELECT count(*) FROM {table}")) == 0
