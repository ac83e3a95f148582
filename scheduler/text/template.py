"""A base model's chat template: messages in, prompt text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from scheduler.domain.errors import InvalidInput
from scheduler.text.budget import RenderBudget, TemplateTooExpensive
from scheduler.text.filters import BUDGET
from scheduler.text.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TEMPLATE_BYTES = 64 * 1024
MAX_OUTPUT_CHARS = 32 * 1024 * 1024
MAX_NAMED_CHARS = 200  # of a template's own complaint, which may quote a whole message
# What a careless or hostile template can raise from plain values.
_RENDER_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A compiled template and the variables that every rendering sees."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        """Compile `source`.

        Args:
            source: Jinja text, as in a model folder.
            variables: bos_token, eos_token and the like.

        Raises:
            InvalidInput: too long, or not a template.
        """
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise InvalidInput(f"A chat template may have at most {MAX_TEMPLATE_BYTES} bytes.")
        try:
            self._compiled = Sandbox().from_string(source)
        except (TemplateError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
            raise InvalidInput(f"The chat template does not compile: {_reason(error)}.") from None
        self.source = source
        self._variables = dict(variables)

    def render(self, variables: Mapping[str, Any]) -> str:
        """Fill the template in.

        Raises:
            InvalidInput: the template refuses the messages, fails on them or runs away; `param`
                is `messages`.
        """
        scope = {**self._variables, **variables, BUDGET: RenderBudget()}
        try:
            text = _bounded_join(self._compiled.generate(scope))
        except _RENDER_ERRORS as error:
            raise InvalidInput(
                f"The model's chat template cannot render these messages: {_reason(error)}.",
                param="messages",
            ) from None
        return text


def _bounded_join(pieces: Any) -> str:
    """Join what a rendering yields, and stop it at the output limit."""
    texts: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_OUTPUT_CHARS:
            raise TemplateTooExpensive(f"the prompt is longer than {MAX_OUTPUT_CHARS} characters")
        texts.append(piece)
    return "".join(texts)


def _reason(error: BaseException) -> str:
    """One line, bounded, with no trace of our own frames."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line[:MAX_NAMED_CHARS].rstrip(".")
