from __future__ import annotations

from itertools import product

from scheduler.policy.prefix_chain import block_key, chain_root

PARTS = ("", "a", "ab", "b")


def test_every_tenant_salt_base_and_adapter_has_a_root_of_its_own() -> None:
    roots = {chain_root(*parts) for parts in product(PARTS, repeat=4)}

    assert len(roots) == len(PARTS) ** 4


def test_a_key_tells_all_tokens_up_to_its_block_and_their_order() -> None:
    root, other = chain_root("t", "", "base", None), chain_root("u", "", "base", None)

    def last_key(start: bytes, *blocks: list[int]) -> bytes:
        for block in blocks:
            start = block_key(start, block)
        return start

    keys = [
        last_key(root, [1, 2], [3, 4]),
        last_key(root, [3, 4], [1, 2]),
        last_key(root, [1, 2], [4, 3]),
        last_key(root, [9, 2], [3, 4]),
        last_key(root, [3, 4]),
        last_key(other, [1, 2], [3, 4]),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == last_key(last_key(root, [1, 2]), [3, 4])
