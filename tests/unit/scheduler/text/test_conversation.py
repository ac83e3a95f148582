"""Messages, tools and template options are checked before any template sees them."""

from typing import Any

import pytest

from scheduler.domain.errors import InvalidInput
from scheduler.text.conversation import Conversation
from scheduler.text.messages import normalize_messages, normalize_tools
from scheduler.text.specials import Specials
from scheduler.text.template import ChatTemplate

USER = {"role": "user", "content": "hi"}


def converse(source: str, messages: Any, **options: Any) -> str:
    template = ChatTemplate(source, {})
    chat = Conversation(template, Specials(["<s>"]), messages, None, options)
    return chat.render(add_generation_prompt=True).replace(chat.marker, "")


def test_text_parts_become_lines_of_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert normalize_messages([{"role": "user", "content": parts}])[0]["content"] == "one\ntwo"


def test_fields_that_no_template_reads_are_dropped() -> None:
    message = {**USER, "refusal": None, "annotations": [], "weight": 1, "name": "ann"}
    assert normalize_messages([message]) == [{**USER, "name": "ann"}]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages.0"),
        ([USER, {"role": "robot", "content": "x"}], "messages.1.role"),
        ([{"role": ["user"], "content": "x"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": []}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0"),
        ([{**USER, "name": 3}], "messages.0.name"),
        ([{**USER, "tool_calls": [{"function": {"name": "f"}}]}], "messages.0.tool_calls"),
        ([{"role": "assistant", "tool_calls": "x"}], "messages.0.tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages.0.tool_calls.0"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}],
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_malformed_messages_are_refused_with_their_place(messages: Any, param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        normalize_messages(messages)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("tools", "param"), [("x", "tools"), ([{}], "tools.0"), ([{"function": {}}], "tools.0")]
)
def test_malformed_tools_are_refused_with_their_place(tools: Any, param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        normalize_tools(tools)
    assert caught.value.param == param


def test_developer_is_system_unless_the_template_knows_it() -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert converse("{{ messages[0].role }}", messages) == "system"
    knowing = "{% if messages[0].role == 'developer' %}known{% endif %}"
    assert converse(knowing, messages) == "known"


def test_only_known_template_options_reach_the_template() -> None:
    source = "{% if enable_thinking is false %}no thinking{% endif %}"
    assert converse(source, [USER], enable_thinking=False) == "no thinking"
    with pytest.raises(InvalidInput, match="known: enable_thinking") as caught:
        converse(source, [USER], tokenize=True)
    assert caught.value.param == "chat_template_kwargs.tokenize"
    with pytest.raises(InvalidInput, match="must be a bool"):
        converse(source, [USER], enable_thinking="yes")


def test_template_options_cannot_write_special_tokens() -> None:
    template = ChatTemplate("{{ reasoning_effort }}", {})
    chat = Conversation(template, Specials(["<s>"]), [USER], None, {"reasoning_effort": "<s>"})
    assert "<s>" not in chat.render(add_generation_prompt=True)


def test_deeply_nested_tool_arguments_are_refused() -> None:
    arguments: dict[str, Any] = {}
    for _ in range(80):
        arguments = {"a": arguments}
    call = {"function": {"name": "f", "arguments": arguments}}
    with pytest.raises(InvalidInput, match="at most 64 deep"):
        converse("x", [{"role": "assistant", "tool_calls": [call]}])
