"""An adapter_config.json of LoRA: what this service computes, and what it refuses by name.

The gateway reads configurations of strangers with it, and the engine those of the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from scheduler.domain.errors import InvalidInput

# Options of peft whose every other value would change what is computed. A missing one is plain.
PLAIN: dict[str, object] = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "layers_to_transform": None,
    "fan_in_fan_out": False,
}
# Options that change nothing once the weights are trained; their values are not kept.
_WITHOUT_EFFECT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode"),
        *("layers_pattern", "lora_dropout", "megatron_core", "peft_type", "peft_version"),
        *("qalora_group_size", "revision", "task_type"),
    }
)
_READ = frozenset(
    {
        *("r", "lora_alpha", "target_modules", "use_rslora", "init_lora_weights"),
        *("rank_pattern", "alpha_pattern"),
    }
)
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # others rewrite the base's weights
_MAX_SHOWN_CHARS = 80
_MAX_PATTERNS = 1024

Rank = Annotated[int, Field(ge=1, le=256, strict=True)]
Alpha = Annotated[float, Field(gt=0, le=4096)]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=128)]
Value = TypeVar("Value", int, float)


def _apart(pattern: dict[str, Value]) -> dict[str, Value]:
    """Refuse names of which one ends another: peft takes the first, and sorts them as it saves."""
    for name in pattern:
        parts = name.split(".")
        ends = (".".join(parts[i:]) for i in range(1, len(parts)))
        if (end := next(filter(pattern.__contains__, ends), None)) is not None:
            raise ValueError(f"{name!r} and {end!r} name the same projection")
    return pattern


Ranks = Annotated[dict[SiteName, Rank], Field(max_length=_MAX_PATTERNS), AfterValidator(_apart)]
Alphas = Annotated[dict[SiteName, Alpha], Field(max_length=_MAX_PATTERNS), AfterValidator(_apart)]


class LoraOptions(BaseModel):
    """The options that are computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Rank
    alpha: Alpha
    target_modules: tuple[str, ...] = Field(min_length=1, max_length=64)
    use_rslora: bool = Field(False, strict=True)
    rank_pattern: Ranks = Field(default_factory=dict)
    alpha_pattern: Alphas = Field(default_factory=dict)

    def peft_config(self, base_model: str) -> dict[str, Any]:
        """The adapter_config.json that says just this."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(self.target_modules),
            "use_rslora": self.use_rslora,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "inference_mode": True,
            **PLAIN,
        }


def read_lora_options(config: dict[str, Any]) -> LoraOptions:
    """The options behind an adapter_config.json.

    Raises:
        InvalidInput: an option that is not computed, by name, or a value out of range.
    """
    for key, value in config.items():
        _check_option(key, value)
    modules = config.get("target_modules")
    if (
        not isinstance(modules, list)
        or not all(isinstance(module, str) for module in modules)
        or len(set(modules)) != len(modules)
    ):
        raise InvalidInput(
            "target_modules must be a list of distinct projections, such as ['q_proj', 'v_proj'].",
            param="adapter_config.json",
        )
    try:
        return LoraOptions(
            rank=config["r"],
            alpha=config["lora_alpha"],
            target_modules=tuple(modules),
            use_rslora=config.get("use_rslora") or False,
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
        )
    except KeyError as error:
        raise InvalidInput(
            f"adapter_config.json lacks {error}.", param="adapter_config.json"
        ) from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInput(
            f"adapter_config.json is not a plain LoRA: {place}: {first['msg']}.",
            param="adapter_config.json",
        ) from None


def at_site(site: str, pattern: Mapping[str, Value], plain: Value) -> Value:
    """The value of the pattern that names the end of a site, as peft looks it up.

    `site` is the path of a projection in the model. Patterns are names; peft would read them as
    regular expressions, which is the same for the names that it writes.
    """
    for name, value in pattern.items():
        if site == name or site.endswith(f".{name}"):
            return value
    return plain


def _check_option(key: str, value: object) -> None:
    if key in _WITHOUT_EFFECT:
        return
    if key == "init_lora_weights":
        computed = value in _INITS
    elif key in PLAIN and key not in _READ:
        computed = value is None or value == PLAIN[key]
    else:  # what this service has never heard of may be there, as long as it is off
        computed = key in _READ or not value
    if not computed:
        raise _uncomputed(key, value)


def _uncomputed(key: str, value: object) -> InvalidInput:
    return InvalidInput(
        f"LoRA with {_shown(key, value)} is not supported; train or convert it to a plain LoRA.",
        param="adapter_config.json",
    )


def _shown(key: str, value: object) -> str:
    shown = f"{key}={value!r}"
    return shown if len(shown) <= _MAX_SHOWN_CHARS else f"{shown[:_MAX_SHOWN_CHARS]}..."
