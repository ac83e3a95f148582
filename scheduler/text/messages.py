"""Chat messages as tenants write them, brought to the one form that templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.domain.errors import InvalidInput

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_COPIED = ("name", "tool_call_id", "reasoning_content")


def normalize_messages(messages: object, *, knows_developer: bool = False) -> list[dict[str, Any]]:
    """Check messages and copy what templates read.

    Text parts become one string (a line each), a tool call's arguments a JSON object, and
    `developer` becomes `system` unless the template knows that role.

    Raises:
        InvalidInput: with `param` such as `messages.0.role`.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidInput("messages must be a list with at least one message.", param="messages")
    return [
        _normalize(message, f"messages.{i}", knows_developer) for i, message in enumerate(messages)
    ]


def normalize_tools(tools: object) -> list[dict[str, Any]] | None:
    """Check a list of function tools; an empty one is none.

    Raises:
        InvalidInput: with `param` such as `tools.0`.
    """
    if tools is None or tools == []:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise InvalidInput("tools must be a list.", param="tools")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidInput(
                f'tools.{i} must be {{"type": "function", "function": {{"name": ...}}}}.',
                param=f"tools.{i}",
            )
    return [dict(tool) for tool in tools]


def _normalize(message: object, path: str, knows_developer: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidInput(f"{path} must be an object with role and content.", param=path)
    role = message.get("role")
    if role not in ROLES:
        raise InvalidInput(f"{path}.role must be one of {', '.join(ROLES)}.", param=f"{path}.role")
    calls = _tool_calls(message.get("tool_calls"), f"{path}.tool_calls")
    if calls and role != "assistant":
        raise InvalidInput(f"{path}.tool_calls is for assistant only.", param=f"{path}.tool_calls")
    if role == "developer" and not knows_developer:
        role = "system"
    copy: dict[str, Any] = {
        "role": role,
        "content": _text(message.get("content"), f"{path}.content", may_miss=bool(calls)),
    }
    for key in _COPIED:
        value = message.get(key)
        if value is not None:
            if not isinstance(value, str):
                raise InvalidInput(f"{path}.{key} must be a string.", param=f"{path}.{key}")
            copy[key] = value
    return copy | ({"tool_calls": calls} if calls else {})


def _text(content: object, path: str, *, may_miss: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_miss:
        return ""
    if isinstance(content, Sequence) and content:
        return "\n".join([_part(part, f"{path}.{i}") for i, part in enumerate(content)])
    raise InvalidInput(f"{path} must be a string or a list of text parts.", param=path)


def _part(part: object, path: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    raise InvalidInput(
        f'{path} must be {{"type": "text", "text": ...}}; other parts are not supported.',
        param=path,
    )


def _tool_calls(calls: object, path: str) -> list[dict[str, Any]]:
    if calls is None:
        return []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InvalidInput(f"{path} must be a list.", param=path)
    return [_tool_call(call, f"{path}.{i}") for i, call in enumerate(calls)]


def _tool_call(call: object, path: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InvalidInput(f"{path} must have a function.", param=path)
    if not isinstance(function.get("name"), str):
        raise InvalidInput(f"{path}.function.name must be a string.", param=f"{path}.function.name")
    arguments = _arguments(function.get("arguments", "{}"), f"{path}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def _arguments(arguments: object, path: str) -> dict[str, Any]:
    """OpenAI writes arguments as a JSON string; templates want the object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise InvalidInput(f"{path} must be a JSON object in a string.", param=path)
    return arguments
