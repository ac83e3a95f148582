"""One conversation, ready to be rendered as a whole or up to some message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import InvalidInput
from scheduler.text.messages import normalize_messages, normalize_tools
from scheduler.text.specials import Specials, unused_marker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scheduler.text.template import ChatTemplate

# Everything else a caller might send could reach into how prompts are made.
TEMPLATE_OPTIONS: dict[str, type] = {
    "enable_thinking": bool,
    "preserve_thinking": bool,
    "thinking": bool,
    "reasoning_effort": str,
}


class Conversation:
    """Messages and tools, checked, with special tokens' texts broken by `marker`.

    Attributes:
        marker: a character that occurs in no rendering but between the halves of such texts.
        messages: in the form templates expect.
    """

    def __init__(
        self,
        template: ChatTemplate,
        specials: Specials,
        messages: object,
        tools: object,
        options: Mapping[str, Any] | None,
    ) -> None:
        """Check everything.

        Raises:
            InvalidInput: what is wrong, `param` where.
        """
        checked = normalize_messages(messages, knows_developer="developer" in template.source)
        offered = normalize_tools(tools)
        chosen = _checked_options(options or {})
        self.marker = unused_marker([checked, offered, chosen])
        self.messages: list[dict[str, Any]] = specials.shield(checked, self.marker)
        self._variables = {
            **specials.shield(chosen, self.marker),
            "tools": specials.shield(offered, self.marker),
            "documents": None,
        }
        self._template = template
        self._specials = specials

    def render(self, end: int | None = None, *, add_generation_prompt: bool) -> str:
        """The text of the first `end` messages, markers in it.

        Raises:
            InvalidInput: the template refuses them.
        """
        return self._template.render(
            {
                **self._variables,
                "messages": self.messages[:end],
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def last_border(self, rendered: str) -> int:
        """Where the last special token or white space of a rendering ends; 0 if it has none."""
        after_space = max(rendered.rfind(space) for space in " \n") + 1
        ends = [match.end() for match in self._specials.pattern.finditer(rendered)]
        return max(after_space, *ends[-1:], 0)


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        kind = TEMPLATE_OPTIONS.get(name)
        path = f"chat_template_kwargs.{name}"
        if kind is None:
            raise InvalidInput(
                f"{path} is not known; known: {', '.join(TEMPLATE_OPTIONS)}.", param=path
            )
        if not isinstance(value, kind):
            raise InvalidInput(f"{path} must be a {kind.__name__}.", param=path)
    return dict(options)
