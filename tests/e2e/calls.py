"""What a tenant does with an adapter beyond what the client of OpenAI has a word for."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from pathlib import Path

    from openai import OpenAI


QUESTION: list[Any] = [{"role": "user", "content": "question 1"}]


def call(client: OpenAI, method: str, path: str, **options: Any) -> httpx.Response:
    """A route that OpenAI's client has no word for."""
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx.Client(base_url=str(client.base_url), headers=headers, timeout=60) as http:
        return http.request(method, path, **options).raise_for_status()


def say(client: OpenAI, model: str, **extras: Any) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=12,
        temperature=0,
        extra_body=extras,
    )
    text: str = answer.choices[0].message.content
    return text


def unpack(content: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    (inside,) = folder.iterdir()
    return inside
