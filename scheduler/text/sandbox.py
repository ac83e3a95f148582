"""A Jinja environment in which a chat template can neither escape nor run away.

Jinja's sandbox keeps templates from Python's internals but not from using all memory and time.
So every loop turn, call, output and concatenation is rewritten, in the parsed tree, to pay into a
RenderBudget that rides in the context under a name no template can write ("!" is no identifier).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from scheduler.text.filters import BUDGET, GLOBALS, allowed_filters, join

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from jinja2.runtime import Context

    from scheduler.text.budget import RenderBudget


MAX_INT_BITS = 256
CHARS_PER_ITEM = 64  # what a list element is charged, against its size in memory
_GROWING_METHODS = frozenset(
    [
        "center",
        "encode",
        "expandtabs",
        "format",
        "format_map",
        "ljust",
        "rjust",
        "translate",
        "zfill",
    ]
)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that chat templates are written for, with bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # folding constants would run filters at compile time, unpaid
            extensions=[LoopControlExtension, GenerationExtension],
        )
        self.filters = allowed_filters(self.filters)
        self.globals = dict(GLOBALS)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        rewritten: nodes.Template = _Metering().visit(tree)
        return rewritten

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call `__obj` for a template, for one step and the text it makes."""
        budget: RenderBudget = __context.parent[BUDGET]
        budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            budget.write(len(owner))
            match getattr(__obj, "__name__", ""), args:
                case "replace", (str(old), str(new), *_):
                    budget.write(owner.count(old) * len(new))
                case "join", (items,):
                    return join(__context, items, owner)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> None:
        """No wrapper: `is_safe_attribute` refuses `format` altogether."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No internals, and no string method that makes text of any length from a number."""
        if isinstance(obj, str) and attr in _GROWING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Reaching for internals is an error at once, not an empty text."""
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is not for chat templates.")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+ * ** %` for a template, paid before the result exists."""
        budget: RenderBudget = context.parent[BUDGET]
        budget.step()
        sizes = [_size(left), _size(right)]
        if isinstance(left, int) and isinstance(right, int):
            if operator == "**" or left.bit_length() + right.bit_length() > MAX_INT_BITS:
                raise SecurityError("Numbers this large are not for chat templates.")
        elif operator == "*":
            repeats = [side for side in (left, right) if isinstance(side, int)]
            budget.write(max(sizes) * max(0, *repeats, 0))
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("Formatting with % is not for chat templates; use ~.")
        else:
            budget.write(sum(sizes))
        return super().call_binop(context, operator, left, right)


class GenerationExtension(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks answers for training: just its body."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Metering(NodeTransformer):
    """Wraps what can repeat or grow in filters that pay."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """A loop pays for each turn; recursive loops would hide theirs."""
        if node.recursive:
            raise SecurityError("Recursive loops are not for chat templates.")
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "!turns")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """`a ~ b` pays for its text."""
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "!concat")

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        """Everything that is written pays, the template's own text too."""
        self.generic_visit(node)
        node.nodes = [_filtered(_as_expression(child), "!output") for child in node.nodes]
        return node


def _as_expression(node: nodes.Node) -> nodes.Node:
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno)
    return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr), "only expressions can be filtered"
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _size(value: Any) -> int:
    """What copying `value` costs, in characters."""
    if isinstance(value, str):
        return len(value)
    return CHARS_PER_ITEM * len(value) if isinstance(value, list | tuple) else 1
