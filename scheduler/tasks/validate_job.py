"""Check a new job's files: from validating_files to queued, or to failed with the reason."""

from __future__ import annotations

import asyncio
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput, LostLease, ModelNotFound
from scheduler.store.checks import CHECK_LEASE_S, Check, Checks
from scheduler.store.job_record import JobError
from scheduler.store.kept_lease import kept_lease

if TYPE_CHECKING:
    from scheduler.tasks.context import TaskContext
    from scheduler.tasks.encode import EncodedSummary


async def validate_job(job_id: str, context: TaskContext) -> None:
    """Tokenise the job's files into the object store. Repeating it is harmless."""
    checks = Checks(context.db)
    check = await checks.begin(job_id)
    if check is None:
        return
    try:
        async with kept_lease(partial(checks.renew, check), CHECK_LEASE_S):
            await _encode_all(checks, check, context)
    except InvalidInput as error:
        param = error.param or "training_file"
        code = f"invalid_{param}"
        await checks.fail(check, JobError(code=code, message=error.message, param=param))
    except ModelNotFound as error:
        message = error.message
        await checks.fail(check, JobError(code=error.code, message=message, param="model"))
    except LostLease:
        return
    except asyncio.CancelledError:
        await checks.abandon(check)
        raise


async def _encode_all(checks: Checks, check: Check, context: TaskContext) -> None:
    train_key = f"datasets/{check.job_id}/train.bin"
    valid_key = f"datasets/{check.job_id}/valid.bin" if check.validation_key else None
    train = await _encode(check, check.training_key, train_key, "training_file", context)
    if check.validation_key is not None and valid_key is not None:
        await _encode(check, check.validation_key, valid_key, "validation_file", context)
    message = (
        f"Files validated: {train.num_examples} training examples, {train.num_tokens} tokens, "
        f"{train.num_trained_tokens} of them trained on; the job is queued."
    )
    await checks.succeed(check, train_key=train_key, valid_key=valid_key, message=message)


async def _encode(
    check: Check, source_key: str, target_key: str, param: str, context: TaskContext
) -> EncodedSummary:
    model_dir = context.model_dirs.get(check.base_model)
    if model_dir is None:
        raise ModelNotFound(f"The base model {check.base_model!r} is not served any more.")
    with tempfile.TemporaryDirectory(prefix="tandem-check-") as folder:
        source, target = Path(folder) / "rows.jsonl", Path(folder) / "set.bin"
        await context.objects.get_file(source_key, source)
        try:
            summary = await context.encode(model_dir, source, target, None)
        except InvalidInput as error:
            raise InvalidInput(error.message, param=param) from error
        await context.objects.put_file(target, target_key)
    return summary
