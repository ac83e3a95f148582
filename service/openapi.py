"""`python -m service.openapi > openapi.yaml`: the published contract, from the app itself."""

from __future__ import annotations

import sys
from typing import Any

import yaml

from service.app import create_app
from service.settings import ServiceSettings


def schema() -> dict[str, Any]:
    """The app's OpenAPI document as plain data."""
    return create_app(ServiceSettings()).openapi()


def render() -> str:
    """The document as YAML, in the app's own order."""
    return yaml.safe_dump(schema(), sort_keys=False, allow_unicode=True, width=100)


if __name__ == "__main__":
    sys.stdout.write(render())
