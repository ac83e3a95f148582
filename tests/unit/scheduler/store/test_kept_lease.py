"""A lease is kept while its work goes on, and work without a lease does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import OperationalError

from scheduler.domain.errors import LostLease
from scheduler.store.kept_lease import kept_lease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LEASE_S = 0.06
AWAY = OperationalError("update", {}, OSError("the database is away"))


def renewals(*answers: bool | Exception) -> tuple[list[int], Callable[[], Awaitable[bool]]]:
    """A way to renew that answers so, the last for ever, and how often it was asked."""
    asked: list[int] = []

    async def renew() -> bool:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(len(asked))
        if isinstance(answer, Exception):
            raise answer
        return answer

    return asked, renew


async def test_it_is_renewed_for_as_long_as_the_block_lasts() -> None:
    asked, renew = renewals(True)

    async with kept_lease(renew, LEASE_S):
        while len(asked) < 3:
            await asyncio.sleep(0.001)
    num_renewals = len(asked)
    await asyncio.sleep(LEASE_S)

    assert len(asked) == num_renewals


async def test_a_block_is_cut_off_once_the_lease_is_lost() -> None:
    _, renew = renewals(True, False)

    with pytest.raises(LostLease):
        async with kept_lease(renew, LEASE_S):
            await asyncio.Event().wait()


async def test_a_database_that_is_away_is_asked_again() -> None:
    asked, renew = renewals(AWAY, True)

    async with kept_lease(renew, LEASE_S):
        while len(asked) < 2:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("error", [TimeoutError("its own"), ValueError("its own")])
async def test_an_error_of_the_block_is_left_as_it_is(error: Exception) -> None:
    _, renew = renewals(True)

    with pytest.raises(type(error), match="its own"):
        async with kept_lease(renew, LEASE_S):
            raise error
