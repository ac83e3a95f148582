"""Errors a caller can act on.

DomainError
  InvalidInput            the caller must change the request
    UnknownPlugin         no plug-in of that name
    ContextTooLong        prompt and answer do not fit the model
    TrainingDiverged      a step gave NaN or infinite numbers; nothing of it is kept
  AuthenticationFailed    no key, or a wrong or revoked one
  PermissionDenied        the key may not do this
  NotFound                no such thing for this tenant (also when it belongs to another)
    ModelNotFound         no such base model, adapter or checkpoint
  Conflict                the thing is in another state
    InvalidTransition     a job cannot go from its state to the wanted one
    AdapterInUse          an adapter is pinned, shared or answering
    IdempotencyMismatch   the same Idempotency-Key came with another body
  PayloadTooLarge         body or file over the limit
  QuotaExceeded           the tenant's own limit
  Overloaded              ours; try again      (retryable)
  WorkerLost              the work will be rerun (retryable)
LostLease                 internal: another worker owns the job now
"""

from __future__ import annotations

from typing import ClassVar


class DomainError(Exception):
    """Base of all of them: a stable `code`, a sentence for the tenant, and facts in `details`."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.param = param
        self.details = details

    @property
    def message(self) -> str:
        """The sentence for the tenant."""
        return str(self.args[0])


class InvalidInput(DomainError):
    """The caller must change the request."""

    code = "invalid_value"


class UnknownPlugin(InvalidInput):
    """No plug-in of that name is registered."""

    code = "unknown_plugin"


class ContextTooLong(InvalidInput):
    """Prompt and answer together do not fit the model's context."""

    code = "context_length_exceeded"


class TrainingDiverged(InvalidInput):
    """A training step gave NaN or infinite numbers; nothing of it is kept."""

    code = "training_diverged"


class AuthenticationFailed(DomainError):
    """No key, or a wrong or revoked one."""

    code = "invalid_api_key"


class PermissionDenied(DomainError):
    """The key is good but may not do this."""

    code = "permission_denied"


class NotFound(DomainError):
    """No such thing for this tenant, also when it belongs to another."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No base model, adapter or checkpoint of that name for this tenant."""

    code = "model_not_found"


class Conflict(DomainError):
    """The thing is in another state than the request needs."""

    code = "conflict"


class InvalidTransition(Conflict):
    """A job cannot go from its present state to the wanted one."""

    code = "invalid_transition"


class AdapterInUse(Conflict):
    """An adapter is pinned, shared or answering, so it cannot be deleted."""

    code = "adapter_in_use"


class IdempotencyMismatch(Conflict):
    """The same Idempotency-Key came with another body."""

    code = "idempotency_mismatch"


class PayloadTooLarge(DomainError):
    """A body or a file is over the limit."""

    code = "payload_too_large"


class QuotaExceeded(DomainError):
    """The tenant's own limit; waiting may help, another tenant's load does not matter."""

    code = "rate_limit_exceeded"
    retryable = True


class Overloaded(DomainError):
    """All workers are busy or none is up; try again."""

    code = "server_overloaded"
    retryable = True


class WorkerLost(DomainError):
    """The worker died while it served this request."""

    code = "worker_lost"
    retryable = True


class LostLease(Exception):
    """Another worker owns the job now; whoever sees this stops at once and writes nothing."""
