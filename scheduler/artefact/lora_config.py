"""An adapter_config.json of LoRA: what this service computes, and what it refuses by name.

The gateway reads configurations of strangers with it, and the engine those of the registry.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scheduler.domain.errors import InvalidInput

# Options of peft whose every other value would change what is computed. A missing one is plain.
PLAIN: dict[str, object] = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
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


class LoraOptions(BaseModel):
    """The options that are computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1, le=256, strict=True)
    alpha: float = Field(gt=0, le=4096)
    target_modules: tuple[str, ...] = Field(min_length=1, max_length=64)
    use_rslora: bool = Field(False, strict=True)

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
            rank=_common("rank_pattern", config, config["r"], modules),
            alpha=_common("alpha_pattern", config, config["lora_alpha"], modules),
            target_modules=tuple(modules),
            use_rslora=config.get("use_rslora") or False,
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


def _common(key: str, config: dict[str, Any], plain: Any, modules: list[str]) -> Any:
    """The one value that all projections have, by a pattern of their names or without one.

    Raises:
        InvalidInput: they have several, or the pattern is of anything but names.
    """
    pattern = config.get(key) or {}
    known = isinstance(pattern, dict) and pattern.keys() <= set(modules)
    values = [pattern.get(module, plain) for module in modules] if known else []
    if not known or any(value != values[0] for value in values):
        raise _several(key, pattern)
    return values[0] if values else plain


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


def _several(key: str, pattern: object) -> InvalidInput:
    return InvalidInput(
        f"LoRA with {_shown(key, pattern)} is not supported: all projections need one rank and "
        "one alpha. Pad every A and B with zeros to the largest rank, multiply each B by its own "
        "scale, and choose lora_alpha so that the common scale is 1.",
        param="adapter_config.json",
    )


def _uncomputed(key: str, value: object) -> InvalidInput:
    return InvalidInput(
        f"LoRA with {_shown(key, value)} is not supported; train or convert it to a plain LoRA.",
        param="adapter_config.json",
    )


def _shown(key: str, value: object) -> str:
    shown = f"{key}={value!r}"
    return shown if len(shown) <= _MAX_SHOWN_CHARS else f"{shown[:_MAX_SHOWN_CHARS]}..."
