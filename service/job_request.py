"""A job request -> a FinetuneSpec: `auto` resolved, extras gathered, options checked."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from pydantic import ValidationError

from scheduler.domain.errors import InvalidInput, UnknownPlugin
from scheduler.domain.job import FinetuneSpec
from scheduler.store.jobs import JobDraft
from service.evaluation_request import draft_gate
from service.given_options import OPTIMIZER, PEFT_METHOD, GivenOptions
from service.order_request import draft_compression

if TYPE_CHECKING:
    from scheduler.domain.adapter_order import Compression
    from scheduler.domain.evaluation import EvaluationPlan
    from service.catalogue import Catalogue
    from service.schemas.fine_tuning import JobCreate
    from service.worker_roster import WorkerRoster

BASE_LEARNING_RATE = 2e-4  # what a learning_rate_multiplier of 1 means
DEFAULT_EPOCHS = 3
DEFAULT_BATCH_SIZE = 8
MAX_SEED = 2**31 - 1
_OPENAI_KEYS = ("n_epochs", "batch_size", "learning_rate_multiplier")
_SPEC_FIELDS = (
    *("n_epochs", "batch_size", "learning_rate", "lr_schedule", "warmup_ratio", "max_grad_norm"),
    *("gradient_accumulation_steps", "checkpoint_every_steps", "eval_every_steps"),
    *("deterministic", "priority", "max_share"),
)


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
    given = GivenOptions(body)
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


def _spec(body: JobCreate, given: GivenOptions, roster: WorkerRoster) -> FinetuneSpec:
    method, method_config = given.plugin(PEFT_METHOD, body.model, roster)
    given.check_rank(method_config, _largest_rank(body.model, roster))
    optimizer, optimizer_config = given.plugin(OPTIMIZER, body.model, roster)
    fields = {name: given.values[name] for name in _SPEC_FIELDS if name in given.values}
    fields.setdefault("n_epochs", DEFAULT_EPOCHS)
    fields.setdefault("batch_size", DEFAULT_BATCH_SIZE)
    fields.setdefault("learning_rate", _learning_rate(given))
    compress, gate = _after_the_end(body, roster)
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


def _largest_rank(base_model: str, roster: WorkerRoster) -> int:
    return max(worker.capabilities.max_rank for worker in roster.holding(base_model))


def _after_the_end(
    body: JobCreate, roster: WorkerRoster
) -> tuple[Compression | None, EvaluationPlan | None]:
    """What is to be made of the job's last version, and what may become live."""
    compress, gate = None, None
    if body.compress is not None:
        compress = draft_compression(
            body.compress, body.model, body.validation_file, roster, "compress."
        )
    if body.promote_if is not None:
        gate = draft_gate(body.promote_if, body.validation_file)
    if gate is not None and compress is not None and compress.promote:
        raise InvalidInput(
            "With 'promote_if' only what was evaluated becomes live; leave one of the two out.",
            param="compress.promote",
        )
    return compress, gate


def _learning_rate(given: GivenOptions) -> float:
    multiplier = given.values.get("learning_rate_multiplier", 1.0)
    if not 0 < multiplier <= 1000:
        place = given.place("learning_rate_multiplier")
        raise InvalidInput(f"{place!r}: Must be above 0 and at most 1000.", param=place)
    return float(BASE_LEARNING_RATE * multiplier)


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
