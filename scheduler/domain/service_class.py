"""Service classes: the latency that an operator promises, by a name that a tenant is put in.

`default` has the targets of the deployment and `best_effort` has none; both are always there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scheduler.domain.errors import InvalidInput, Overloaded

DEFAULT = "default"
BEST_EFFORT = "best_effort"
BUILT_IN = (DEFAULT, BEST_EFFORT)
CLASS_NAME = re.compile("[a-z][a-z0-9_-]{0,62}")


class ClassTargets(BaseModel):
    """Latency targets of one service class, in milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_ms: float | None = Field(None, gt=0, description="To the first token; none: no target.")
    tpot_ms: float | None = Field(None, gt=0, description="Mean per output token; none: no target.")


def check_class(name: str, known: Collection[str], param: str = "service_class") -> None:
    """Refuse a class that nobody declared.

    Raises:
        InvalidInput: with the classes there are.
    """
    if name not in known:
        listed = ", ".join(sorted(known))
        raise InvalidInput(f"Unknown service class {name!r}; known: {listed}.", param=param)


def check_announced(name: str, announced: Sequence[Collection[str]]) -> None:
    """Refuse a class that no live worker declares.

    Args:
        name: the class.
        announced: the classes of each live worker.

    Raises:
        InvalidInput: the workers know no such class.
        Overloaded: no worker is up to say.
    """
    if name in BUILT_IN:
        return
    if not announced:
        raise Overloaded(
            f"No worker is up to say whether there is a service class {name!r}; start the service "
            f"first, or choose {' or '.join(BUILT_IN)}.",
            param="service_class",
        )
    check_class(name, set().union(*announced))


def check_declared(names: Iterable[str]) -> None:
    """Refuse names that an operator may not declare.

    Raises:
        ValueError: a name is malformed, or one of those that are always there.
    """
    for name in names:
        if name in BUILT_IN:
            raise ValueError(f"{name!r} is always there and cannot be declared; choose another")
        if not CLASS_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name of a service class; use up to 63 of a-z, 0-9, '_' and '-', "
                "a letter first"
            )


def parse_class(text: str) -> tuple[str, ClassTargets]:
    """Read `NAME:ttft_ms=300,tpot_ms=30`; a target left out is none.

    Raises:
        InvalidInput: it is not of that form; one sentence.
    """
    name, _, targets = text.partition(":")
    try:
        check_declared([name])
        pairs = [pair.partition("=") for pair in targets.split(",") if pair]
        return name, ClassTargets.model_validate({key.strip(): value for key, _, value in pairs})
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        reason = str(error)
    raise InvalidInput(
        f"--slo-class {text!r}: {reason}; write NAME:ttft_ms=300,tpot_ms=30.", param="slo_class"
    )


def parse_classes(texts: Iterable[str]) -> dict[str, ClassTargets]:
    """Read several declarations.

    Raises:
        InvalidInput: one is wrong, or a class is declared twice.
    """
    classes: dict[str, ClassTargets] = {}
    for text in texts:
        name, targets = parse_class(text)
        if name in classes:
            raise InvalidInput(
                f"Service class {name!r} is declared twice; keep one --slo-class.",
                param="slo_class",
            )
        classes[name] = targets
    return classes
