"""One line of an uploaded data set, checked but not yet tokenised."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from scheduler.domain.errors import InvalidInput

_BAD_TEXT = re.compile("[\x00\ud800-\udfff]")
_CHAT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})
_PAIR_KEYS = frozenset({"prompt", "completion"})


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation; `trained` holds the places of the assistant messages to learn."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    trained: frozenset[int]


@dataclass(frozen=True, slots=True)
class PairRow:
    """A prompt and the completion to learn."""

    prompt: str
    completion: str


def parse_row(
    line: bytes, *, max_line_bytes: int, max_depth: int, max_messages: int
) -> ChatRow | PairRow:
    """Read one line.

    Raises:
        InvalidInput: one sentence about what is wrong with it.
    """
    if len(line.rstrip(b"\r\n")) > max_line_bytes:
        raise InvalidInput(f"the line is longer than {max_line_bytes} bytes.")
    row = _load(line)
    if not isinstance(row, dict):
        raise InvalidInput("a row must be a JSON object.")
    _check_values(row, max_depth)
    if "messages" in row:
        _check_keys(row, _CHAT_KEYS)
        return _chat_row(row, max_messages)
    if row.keys() & _PAIR_KEYS:
        _check_keys(row, _PAIR_KEYS)
        return PairRow(*[_pair_text(row, key) for key in ("prompt", "completion")])
    raise InvalidInput("a row must have messages, or prompt and completion.")


def _load(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"byte {error.start + 1} is not UTF-8.") from None
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"not JSON: {error.msg} at character {error.pos + 1}.") from None
    except ValueError as error:  # a number with thousands of digits
        raise InvalidInput(f"not usable JSON: {str(error).split(':')[0]}.") from None
    except RecursionError:
        raise InvalidInput("the JSON is nested too deeply.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _check_values(row: dict[str, Any], max_depth: int) -> None:
    """Bound the depth, and refuse text that no tokenizer and no database takes."""
    level: list[Any] = [row]
    for _ in range(max_depth):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and _BAD_TEXT.search(value):
                raise InvalidInput("text may hold neither NUL nor a lone surrogate.")
        level = inner
        if not level:
            return
    raise InvalidInput(f"the JSON is nested deeper than {max_depth}.")


def _check_keys(row: dict[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(row.keys() - known)
    if unknown:
        raise InvalidInput(f"unknown key {unknown[0][:40]!r}; known: {', '.join(sorted(known))}.")


def _pair_text(row: dict[str, Any], key: str) -> str:
    text = row.get(key)
    if not isinstance(text, str):
        raise InvalidInput(f"{key} must be a string.")
    if key == "completion" and not text:
        raise InvalidInput("completion must have at least one character.")
    return text


def _chat_row(row: dict[str, Any], max_messages: int) -> ChatRow:
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise InvalidInput("messages must be a list of objects.")
    if len(messages) > max_messages:
        raise InvalidInput(f"a row may have at most {max_messages} messages.")
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    weights = {i: _weight(message, i) for i, message in enumerate(messages) if "weight" in message}
    if not answers:
        raise InvalidInput("messages must hold at least one of role assistant.")
    trained = frozenset(i for i in answers if weights.get(i, 1))
    if not trained:
        raise InvalidInput("every assistant message has weight 0; at least one must have 1.")
    tools = row.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise InvalidInput("tools must be a list.")
    return ChatRow(messages, tools, trained)


def _weight(message: dict[str, Any], i: int) -> int:
    weight = message["weight"]
    if message.get("role") != "assistant":
        raise InvalidInput(f"messages.{i}.weight is for assistant messages only.")
    if type(weight) is not int or weight not in (0, 1):
        raise InvalidInput(f"messages.{i}.weight must be 0 or 1.")
    return weight
