"""A job request -> a FinetuneSpec: `auto` resolved, extras gathered, options checked.

An option may stand in `method.supervised.hyperparameters`, in the deprecated `hyperparameters`,
or (extras only) at the top of the body. It may stand in one place only; errors name that place.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from scheduler.domain.errors import InvalidInput, UnknownPlugin
from scheduler.domain.job import FinetuneSpec
from scheduler.store.jobs import JobDraft
from service.evaluation_request import draft_gate
from service.order_request import draft_compression
from service.schemas.fine_tuning import Hyperparameters, TrainingExtras

if TYPE_CHECKING:
    from service.catalogue import Catalogue
    from service.schemas.fine_tuning import JobCreate
    from service.worker_roster import WorkerRoster

BASE_LEARNING_RATE = 2e-4  # what a learning_rate_multiplier of 1 means
DEFAULT_EPOCHS = 3
DEFAULT_BATCH_SIZE = 8
MAX_SEED = 2**31 - 1
_OPENAI_KEYS = ("n_epochs", "batch_size", "learning_rate_multiplier")
_METHOD_SHORTS = ("rank", "alpha", "target_modules")
_OPTIMIZER_SHORTS = ("weight_decay",)
_SPEC_FIELDS = (
    *("n_epochs", "batch_size", "learning_rate", "lr_schedule", "warmup_ratio", "max_grad_norm"),
    *("gradient_accumulation_steps", "checkpoint_every_steps", "eval_every_steps"),
    *("deterministic", "priority", "max_share"),
)


class _Given:
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


def draft_job(body: JobCreate, catalogue: Catalogue, roster: WorkerRoster) -> JobDraft:
    """Everything the store needs to create the job.

    Raises:
        ModelNotFound: no such base model.
        InvalidInput: an option is unknown, out of range or given twice.
        Overloaded: no worker is up that could say which options there are.
    """
    if body.model.startswith("ft:"):
        raise InvalidInput(
            "Training on from a fine-tuned model is not possible yet; name a base model.",
            param="model",
        )
    catalogue.check_base(body.model)
    if body.integrations:
        raise InvalidInput("Integrations are not supported; leave them out.", param="integrations")
    _check_objective(body, roster)
    given = _Given(body)
    spec = _spec(body, given, roster)
    shown = _openai_hyperparameters(spec)
    all_shown = shown | _extras_shown(spec)
    return JobDraft(
        spec=spec,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix or "",
        hyperparameters=shown,
        method={"type": spec.objective, spec.objective: {"hyperparameters": all_shown}},
        metadata=body.metadata or {},
    )


def _check_objective(body: JobCreate, roster: WorkerRoster) -> None:
    if body.method is None:
        return
    if body.method.type != "supervised":
        raise UnknownPlugin(
            f"Unknown method type {body.method.type!r}; known: supervised.", param="method.type"
        )
    roster.check_options(body.model, "objectives", body.method.type, {}, "method.type")


def _spec(body: JobCreate, given: _Given, roster: WorkerRoster) -> FinetuneSpec:
    method, method_config = _options(
        given, roster, body.model, "peft_method", "method_config", _METHOD_SHORTS
    )
    _check_rank(method_config, given, roster, body.model)
    optimizer, optimizer_config = _options(
        given, roster, body.model, "optimizer", "optimizer_config", _OPTIMIZER_SHORTS
    )
    fields = {name: given.values[name] for name in _SPEC_FIELDS if name in given.values}
    fields.setdefault("n_epochs", DEFAULT_EPOCHS)
    fields.setdefault("batch_size", DEFAULT_BATCH_SIZE)
    fields.setdefault("learning_rate", _learning_rate(given))
    compress = None
    if body.compress is not None:
        compress = draft_compression(
            body.compress, body.model, body.validation_file, roster, "compress."
        )
    gate = None if body.promote_if is None else draft_gate(body.promote_if, body.validation_file)
    if gate is not None and compress is not None and compress.promote:
        raise InvalidInput(
            "With 'promote_if' only what was evaluated becomes live; leave one of the two out.",
            param="compress.promote",
        )
    try:
        return FinetuneSpec(
            base_model=body.model,
            method=method,
            method_config=method_config,
            optimizer=optimizer,
            optimizer_config=optimizer_config,
            seed=secrets.randbelow(MAX_SEED) if body.seed is None else body.seed,
            compress=compress,
            promote_if=gate,
            **fields,
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = given.place(str(first["loc"][0]))
        raise InvalidInput(f"{place!r}: {first['msg']}.", param=place) from None


def _learning_rate(given: _Given) -> float:
    multiplier = given.values.get("learning_rate_multiplier", 1.0)
    if not 0 < multiplier <= 1000:
        place = given.place("learning_rate_multiplier")
        raise InvalidInput(f"{place!r}: Must be above 0 and at most 1000.", param=place)
    return float(BASE_LEARNING_RATE * multiplier)


def _options(
    given: _Given,
    roster: WorkerRoster,
    base_model: str,
    name_key: str,
    config_key: str,
    shorts: tuple[str, ...],
) -> tuple[str, dict[str, Any]]:
    """A plug-in's name and its options, shorthands folded in, checked, defaults filled in."""
    default = "lora" if name_key == "peft_method" else "adamw"
    kind = f"{name_key}s"
    name = given.values.get(name_key, default)
    config = dict(given.values.get(config_key, {}))
    for short in shorts:
        if short in given.values:
            config[short] = given.values[short]
    try:
        roster.check_options(base_model, kind, name, config, config_key)
    except UnknownPlugin as error:
        raise UnknownPlugin(error.message, param=given.place(name_key)) from None
    except InvalidInput as error:
        raise _at_place(error, given, config_key) from None
    properties = roster.schemas(kind)[name].get("properties", {})
    defaults = {
        key: schema["default"]
        for key, schema in properties.items()
        if schema.get("default") is not None
    }
    return name, defaults | config


def _at_place(error: InvalidInput, given: _Given, config_key: str) -> InvalidInput:
    """The same error, blaming the shorthand when that is what the caller wrote."""
    param = error.param or config_key
    option, _, rest = param.removeprefix(f"{config_key}.").partition(".")
    if option in given.places:
        place = given.places[option] + (f".{rest}" if rest else "")
    else:
        place = given.place(config_key) + param.removeprefix(config_key)
    return InvalidInput(error.message.replace(repr(param), repr(place), 1), param=place)


def _check_rank(
    config: dict[str, Any], given: _Given, roster: WorkerRoster, base_model: str
) -> None:
    largest = max(worker.capabilities.max_rank for worker in roster.holding(base_model))
    ranks = {"rank": config.get("rank")}
    pattern = config.get("rank_pattern")
    if isinstance(pattern, dict):
        ranks |= {f"rank_pattern.{site}": rank for site, rank in pattern.items()}
    for option, rank in ranks.items():
        if isinstance(rank, int) and rank > largest:
            place = given.places.get(option, f"{given.place('method_config')}.{option}")
            raise InvalidInput(f"{place!r}: {rank} is over the limit of {largest}.", param=place)


def _openai_hyperparameters(spec: FinetuneSpec) -> dict[str, object]:
    return {
        "n_epochs": spec.n_epochs,
        "batch_size": spec.batch_size,
        "learning_rate_multiplier": round(spec.learning_rate / BASE_LEARNING_RATE, 9),
    }


def _extras_shown(spec: FinetuneSpec) -> dict[str, object]:
    shown = {name: getattr(spec, name) for name in _SPEC_FIELDS if name not in _OPENAI_KEYS}
    return shown | {
        "peft_method": spec.method,
        "method_config": spec.method_config,
        "optimizer": spec.optimizer,
        "optimizer_config": spec.optimizer_config,
        "compress": spec.compress and spec.compress.model_dump(mode="json"),
        "promote_if": spec.promote_if and spec.promote_if.model_dump(mode="json"),
    }
