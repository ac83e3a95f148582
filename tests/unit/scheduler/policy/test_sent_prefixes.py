"""A gateway remembers which beginnings of prompts it sent to whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policy.sent_prefixes import CHUNK_TOKENS, MAX_CHUNKS, SentPrefixes, chunk_keys

ROOT = b"root"
prompts = st.lists(st.integers(0, 2), max_size=6)  # which chunk stands at each place


def keys_of(prompt: list[int]) -> list[bytes]:
    return chunk_keys(ROOT, [chunk for chunk in prompt for _ in range(CHUNK_TOKENS)])


def num_common(one: list[int], other: list[int]) -> int:
    """The obvious count of equal chunks at the beginning."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


@given(st.lists(prompts, max_size=5), prompts)
def test_the_longest_common_beginning_counts_if_it_is_half_of_the_prompt(
    sent: list[list[int]], asked: list[int]
) -> None:
    memory = SentPrefixes()
    for prompt in sent:
        memory.add("w", keys_of(prompt))

    longest = max((num_common(prompt, asked) for prompt in sent), default=0)
    expected = longest if 2 * longest >= len(asked) else 0
    assert memory.num_matched("w", keys_of(asked)) == expected
    assert memory.num_matched("other", keys_of(asked)) == 0


def test_a_worker_that_has_gone_is_forgotten() -> None:
    memory = SentPrefixes()
    memory.add("w", keys_of([1, 2]))

    memory.forget("w")

    assert memory.num_matched("w", keys_of([1, 2])) == 0


def test_the_oldest_prompts_fall_away_from_their_ends() -> None:
    memory = SentPrefixes(max_keys=5)
    memory.add("w", keys_of([0, 0, 0]))
    memory.add("w", keys_of([1, 1, 1]))

    assert memory.num_matched("w", keys_of([1, 1, 1])) == 3
    assert memory.num_matched("w", keys_of([0, 0, 0])) == 2


def test_only_full_chunks_of_a_bounded_beginning_are_looked_at() -> None:
    assert chunk_keys(ROOT, [1] * (CHUNK_TOKENS - 1)) == []
    assert len(chunk_keys(ROOT, [1] * CHUNK_TOKENS * (MAX_CHUNKS + 9))) == MAX_CHUNKS
