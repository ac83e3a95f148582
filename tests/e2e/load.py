"""Callers that keep a service busy."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.e2e.service import BASE_MODEL, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import OpenAI


def answer(client: OpenAI) -> None:
    """An answer that is as long as it may be."""
    client.completions.create(
        model=BASE_MODEL, prompt="question 1", max_tokens=32, extra_body={"ignore_eos": True}
    )


def compressed_answer(client: OpenAI) -> None:
    """An answer that sees half of its prompt."""
    policy = {"type": "snapkv", "budget": 0.5, "window": 1}
    client.completions.create(
        model=BASE_MODEL,
        prompt="question 1",
        max_tokens=4,
        extra_body={"ignore_eos": True, "kv_policy": policy},
    )


@contextmanager
def callers(*clients: OpenAI) -> Iterator[None]:
    """One answer after the other for each of them, for as long as the block lasts."""
    over = threading.Event()

    def call(client: OpenAI) -> None:
        while not over.is_set():
            answer(client)

    threads = [threading.Thread(target=call, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
