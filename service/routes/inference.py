"""What the two inference routes share."""

from scheduler.domain.errors import InvalidInput
from service.deps import ModelDoor


def require_model(name: str | None, models: ModelDoor) -> str:
    """The model's name; an adapter's own URL needs none.

    Raises:
        InvalidInput: it is missing.
    """
    if name is None and models.bound_to is None:
        raise InvalidInput("'model': Required field is missing; set it.", param="model")
    return name or ""
