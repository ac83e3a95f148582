"""What the caller of a job request set, and where: errors name the place that they wrote it in.

An option may stand in `method.supervised.hyperparameters`, in the deprecated `hyperparameters`,
or (extras only) at the top of the body. It may stand in one place only. The commonest options of a
PEFT method and an optimizer may stand beside the plug-in's name, outside its config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import InvalidInput, UnknownPlugin
from service.schemas.fine_tuning import Hyperparameters, TrainingExtras

if TYPE_CHECKING:
    from service.schemas.fine_tuning import JobCreate
    from service.worker_roster import WorkerRoster


@dataclass(frozen=True, slots=True)
class PluginOption:
    """An option that chooses a plug-in.

    Attributes:
        kind: of the plug-in, as the workers' capabilities name it.
        default: the plug-in's name if the caller names none.
        config: the option that holds the plug-in's own.
        shorts: options of the plug-in that may also stand beside it.
    """

    name: str
    kind: str
    default: str
    config: str
    shorts: tuple[str, ...]


PEFT_METHOD = PluginOption(
    "peft_method", "peft_methods", "lora", "method_config", ("rank", "alpha", "target_modules")
)
OPTIMIZER = PluginOption("optimizer", "optimizers", "adamw", "optimizer_config", ("weight_decay",))


class GivenOptions:
    """The options that the caller set, each with the place where it stands."""

    def __init__(self, body: JobCreate) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self._add("", body, TrainingExtras)
        if body.hyperparameters is not None:
            self._add("hyperparameters.", body.hyperparameters, Hyperparameters)
        if body.method is not None and body.method.supervised is not None:
            inner = body.method.supervised.hyperparameters
            if inner is not None:
                self._add("method.supervised.hyperparameters.", inner, Hyperparameters)

    def _add(self, prefix: str, layer: TrainingExtras, fields: type[TrainingExtras]) -> None:
        for name in fields.model_fields:
            value = getattr(layer, name)
            if value is None:
                continue
            place = f"{prefix}{name}"
            if name in self.values and self.values[name] != value:
                raise InvalidInput(
                    f"{place!r} and {self.places[name]!r} differ; set only one.", param=place
                )
            self.values[name], self.places[name] = value, place

    def place(self, name: str) -> str:
        """Where the option stands, for `param`."""
        return self.places.get(name, name)

    def plugin(
        self, option: PluginOption, base_model: str, roster: WorkerRoster
    ) -> tuple[str, dict[str, Any]]:
        """A plug-in's name and its options, shorthands folded in, checked, defaults filled in.

        Raises:
            InvalidInput: the workers of the base model do not know it, or not with these options.
        """
        name = self.values.get(option.name, option.default)
        shorts = {short: self.values[short] for short in option.shorts if short in self.values}
        config = self.values.get(option.config, {}) | shorts
        try:
            roster.check_options(base_model, option.kind, name, config, option.config)
        except UnknownPlugin as error:
            raise UnknownPlugin(error.message, param=self.place(option.name)) from None
        except InvalidInput as error:
            raise self._at_place(error, option.config) from None
        properties = roster.schemas(option.kind)[name].get("properties", {})
        defaults = {
            key: schema["default"]
            for key, schema in properties.items()
            if schema.get("default") is not None
        }
        return name, defaults | config

    def check_rank(self, config: dict[str, Any], largest: int) -> None:
        """Refuse a PEFT method's config with a rank above the largest.

        Raises:
            InvalidInput: there is one.
        """
        ranks = {"rank": config.get("rank")}
        pattern = config.get("rank_pattern")
        if isinstance(pattern, dict):
            ranks |= {f"rank_pattern.{site}": rank for site, rank in pattern.items()}
        for option, rank in ranks.items():
            if isinstance(rank, int) and rank > largest:
                place = self.places.get(option, f"{self.place(PEFT_METHOD.config)}.{option}")
                raise InvalidInput(
                    f"{place!r}: {rank} is over the limit of {largest}.", param=place
                )

    def _at_place(self, error: InvalidInput, config_key: str) -> InvalidInput:
        """The same error, blaming the shorthand when that is what the caller wrote."""
        param = error.param or config_key
        option, _, rest = param.removeprefix(f"{config_key}.").partition(".")
        if option in self.places:
            place = self.places[option] + (f".{rest}" if rest else "")
        else:
            place = self.place(config_key) + param.removeprefix(config_key)
        return InvalidInput(error.message.replace(repr(param), repr(place), 1), param=place)
