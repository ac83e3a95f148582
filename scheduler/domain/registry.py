"""Names -> classes of one kind of plug-in, filled by decorators and read by composition roots."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from scheduler.domain.errors import UnknownPlugin

T = TypeVar("T")


class PluginConfig(BaseModel):
    """Options of one plug-in, as a tenant or an operator writes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Registry(Generic[T]):
    """The plug-ins of one kind, by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a decorator that files a class under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def add(cls: type[T]) -> type[T]:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice.")
            self._items[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> type[T]:
        try:
            return self._items[name]
        except KeyError:
            known = ", ".join(self.names())
            raise UnknownPlugin(f"Unknown {self.kind} {name!r}; known: {known}.") from None

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._items)

    def discover(self, package: str) -> None:
        """Import every module of `package`, so that its decorators run."""
        for module in pkgutil.iter_modules(import_module(package).__path__):
            import_module(f"{package}.{module.name}")
