"""A caller of a running service, for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 300.0  # an import is checked inside the request
CHUNK_BYTES = 1 << 20


class ApiRefused(Exception):
    """The service said no, or nothing; the message is one sentence for a person."""


class ApiClient:
    """Speaks to one service with one key.

    Args:
        url: of the service, without /v1.
        key: of a tenant.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=f"{self._url}/v1",
            headers={"authorization": f"Bearer {key or 'none'}"},
            timeout=TIMEOUT_S,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON that the service answers with.

        Raises:
            ApiRefused: it refuses, or cannot be reached.
        """
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise ApiRefused(_sentence(response))
        return response.json()

    def download(self, path: str, target: Path, **params: str) -> int:
        """Write an answer's bytes to a new file; returns how many.

        Raises:
            ApiRefused: the service refuses, or cannot be reached.
            FileExistsError: the file is there already.
        """
        try:
            with self._http.stream("GET", path, params=params) as response:
                if response.is_error:
                    response.read()
                    raise ApiRefused(_sentence(response))
                with target.open("xb") as file:
                    return sum(file.write(chunk) for chunk in response.iter_bytes(CHUNK_BYTES))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: httpx.HTTPError) -> ApiRefused:
        return ApiRefused(f"{self._url} does not answer: {error}.")


def _sentence(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The service answered with status {response.status_code}."
