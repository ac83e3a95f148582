"""A Jinja environment in which a chat template can neither escape nor run away.

Jinja's sandbox keeps templates from Python's internals but not from using all memory and time.
So every loop turn, call, output and concatenation is rewritten, in the parsed tree, to pay into a
RenderBudget that rides in the context under a name no template can write ("!" is no identifier).
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jinja2.parser import Parser
    from jinja2.runtime import Context

    from scheduler.text.budget import RenderBudget

BUDGET = "!budget"
MAX_RANGE = 100_000
MAX_INDENT = 64
MAX_INT_BITS = 256
CHARS_PER_ITEM = 64  # what a list element is charged, against its size in memory
_FILTERS = [
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "groupby",
    "int",
    "items",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "safe",
    "select",
    "selectattr",
    "sort",
    "string",
    "title",
    "trim",
    "unique",
    "upper",
]
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
        known = self.filters
        self.filters = {name: known[name] for name in _FILTERS} | {
            "!turns": _turns,
            "!output": _output,
            "!concat": _concat,
            "indent": _indent,
            "join": _join,
            "replace": _replace,
            "tojson": _tojson,
        }
        self.globals = {
            "dict": _new_dict,
            "namespace": _TemplateNamespace,
            "raise_exception": _raise_exception,
            "range": _bounded_range,
            "strftime_now": _strftime_now,
        }

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
                    return _join(__context, items, owner)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> None:
        """No wrapper: `is_safe_attribute` refuses `format` altogether."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No internals, and no string method that makes text of any length from a number."""
        if isinstance(obj, str) and attr in _GROWING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

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


class _TemplateNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"A namespace may not hold {name!r}.")
        super().__setitem__(name, value)


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


def _as_expression(node: nodes.Node) -> nodes.Expr:
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno)
    assert isinstance(node, nodes.Expr), "an output writes expressions"
    return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _size(value: Any) -> int:
    """What copying `value` costs, in characters."""
    if isinstance(value, str):
        return len(value)
    return CHARS_PER_ITEM * len(value) if isinstance(value, list | tuple) else 1


@pass_context
def _turns(context: Context, items: Iterable[Any]) -> Iterable[Any]:
    budget: RenderBudget = context.parent[BUDGET]
    if isinstance(items, list | tuple | str | dict | range):
        for _ in range(len(items)):
            budget.step()
        return items
    return _paid(budget, items)


def _paid(budget: RenderBudget, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        budget.step()
        yield item


@pass_context
def _output(context: Context, value: Any) -> Any:
    text = value if isinstance(value, str) else str(value)
    budget: RenderBudget = context.parent[BUDGET]
    budget.write(len(text))
    return text


@pass_context
def _concat(context: Context, parts: list[Any]) -> str:
    texts = [part if isinstance(part, str) else str(part) for part in parts]
    budget: RenderBudget = context.parent[BUDGET]
    budget.write(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _join(context: Context, items: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    budget: RenderBudget = context.parent[BUDGET]
    texts = []
    for item in items:
        text = str(item if attribute is None else context.environment.getitem(item, attribute))
        budget.step()
        budget.write(len(text) + len(d))
        texts.append(text)
    return d.join(texts)


@pass_context
def _replace(context: Context, text: str, old: str, new: str, count: int = -1) -> str:
    text, new = str(text), str(new)
    budget: RenderBudget = context.parent[BUDGET]
    budget.write(len(text) + text.count(old) * len(new))
    return text.replace(old, new, count)


@pass_context
def _indent(context: Context, text: str, width: int = 4, first: bool = False) -> str:
    if not 0 <= width <= MAX_INDENT:
        raise SecurityError(f"An indent must be 0 to {MAX_INDENT} wide.")
    lines = str(text).splitlines(keepends=True)
    budget: RenderBudget = context.parent[BUDGET]
    budget.write(len(text) + len(lines) * width)
    padded = [
        " " * width + line if line.strip() and (i > 0 or first) else line
        for i, line in enumerate(lines)
    ]
    return "".join(padded)


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: not escaped for HTML, letters kept."""
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise SecurityError(f"An indent must be 0 to {MAX_INDENT} wide.")
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget: RenderBudget = context.parent[BUDGET]
    budget.write(len(text))
    return text


def _bounded_range(*arguments: int) -> range:
    numbers = range(*arguments)
    if len(numbers) > MAX_RANGE:
        raise SecurityError(f"A range may have at most {MAX_RANGE} numbers.")
    return numbers


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format[:64])
