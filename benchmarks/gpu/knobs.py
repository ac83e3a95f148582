"""Constants and launch options of the Triton kernels, to be tried at other values for a while."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Protocol
from unittest.mock import patch

from triton.runtime.jit import JITFunction


class Knob(Protocol):
    """Something that a kernel is launched with."""

    @property
    def label(self) -> str:
        """Its name in the figures."""

    @property
    def values(self) -> tuple[int, ...]:
        """What to try."""

    def set_to(self, value: int) -> AbstractContextManager[None]:
        """While entered, kernels are launched with this value."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A number that a module of `workers.kernels` defines, and others import from it."""

    module: str
    name: str
    values: tuple[int, ...]

    @property
    def label(self) -> str:
        """See Knob."""
        return f"{self.module.rpartition('.')[2]}.{self.name}"

    @contextmanager
    def set_to(self, value: int) -> Iterator[None]:
        """See Knob."""
        with ExitStack() as stack:
            for user in users_of(self.module, self.name):
                stack.enter_context(patch.object(user, self.name, value))
            yield


@dataclass(frozen=True, slots=True)
class LaunchOption:
    """`num_warps` or `num_stages` of one kernel."""

    kernel: str
    name: str
    values: tuple[int, ...]

    @property
    def label(self) -> str:
        """See Knob."""
        return f"{self.kernel}.{self.name}"

    @contextmanager
    def set_to(self, value: int) -> Iterator[None]:
        """See Knob."""
        launch, knob = JITFunction.run, self

        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            own = {knob.name: value} if self.__name__ == knob.kernel else {}
            return launch(self, *args, **(kwargs | own))

        with patch.object(JITFunction, "run", run):
            yield


@cache
def users_of(module: str, name: str) -> list[ModuleType]:
    """The loaded modules that know a constant: its own, and those that import it from there."""
    loaded = [m for key, m in list(sys.modules.items()) if key.startswith("workers.")]
    return [m for m in loaded if m.__name__ == module or _imports(m, module, name)]


def _imports(user: ModuleType, module: str, name: str) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == module
        and name in [alias.name for alias in node.names]
        for node in ast.walk(ast.parse(inspect.getsource(user)))
    )
