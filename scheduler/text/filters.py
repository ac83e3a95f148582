"""The filters and functions that chat templates may use, each paying for what it makes.

Left out of Jinja's own: what makes text or lists of any length from a number (center, format,
batch, slice, wordwrap, round), what takes attributes by name (attr), and what no prompt needs.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.utils import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jinja2.runtime import Context

    from scheduler.text.budget import RenderBudget

BUDGET = "!budget"
MAX_RANGE = 100_000
MAX_INDENT = 64
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


def allowed_filters(known: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The harmless ones of `known`, and ours; names with "!" are for the rewritten tree."""
    return {name: known[name] for name in _FILTERS} | {
        "!turns": _turns,
        "!output": _output,
        "!concat": _concat,
        "indent": _indent,
        "join": join,
        "replace": _replace,
        "tojson": _tojson,
    }


class _TemplateNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"A namespace may not hold {name!r}.")
        super().__setitem__(name, value)


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
def join(context: Context, items: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    """Join `items`, or an attribute of each, with `d` between."""
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


GLOBALS: Mapping[str, Callable[..., Any]] = {
    "dict": _new_dict,
    "namespace": _TemplateNamespace,
    "raise_exception": _raise_exception,
    "range": _bounded_range,
    "strftime_now": _strftime_now,
}
