"""Options as a person wrote them -> a plug-in's configuration, or one sentence."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from scheduler.domain.errors import InvalidInput
from scheduler.domain.registry import PluginConfig

ConfigT = TypeVar("ConfigT", bound=PluginConfig)


def plugin_options(config_type: type[ConfigT], given: object) -> ConfigT:
    """The options, checked.

    Raises:
        InvalidInput: with the first that is wrong.
    """
    try:
        return config_type.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        what = f"Option {name} is" if name else "The options are"
        raise InvalidInput(f"{what} wrong: {first['msg']}.") from None
