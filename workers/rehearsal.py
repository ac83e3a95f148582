"""What a card's first callers and jobs would wait for, done before there are any.

Triton compiles a kernel when it is first launched, and a step is captured when it first runs. So
each base model serves prompts of zeros, and trains one pack of a job that nobody asked for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import structlog

from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import StartJob
from scheduler.domain.plan import LaneUnits, Span
from scheduler.domain.request import RequestBody, SamplingParams, Sequence
from scheduler.text.dataset import EncodedDataset, write
from workers.adapter_arena import AdapterColumns
from workers.batch_builder import InferenceRow
from workers.model import MODULE_PATHS
from workers.model_host import ModelHost
from workers.step_graphs import StepGraphs
from workers.trainer import Trainer

NAME = "rehearsal"
RANK = 16
SHORT_PROMPT = 32
LEAST_TOKENS = 2  # one to read, one to predict
MANY_UNITS = 1 << 20

log = structlog.get_logger()


def rehearse(host: ModelHost, graphs: StepGraphs) -> None:
    """Compile and capture what is usual; nothing of it is left behind."""
    began_s = time.perf_counter()
    graphs.prepare(host.scheduler.limits.max_num_sequences, host.adapters.max_rank)
    rank = min(RANK, host.adapters.max_rank)
    for columns in (None, AdapterColumns(0, rank, frozenset(MODULE_PATHS))):
        for count in (SHORT_PROMPT, host.scheduler.limits.max_batched_tokens):
            _serve(host, min(count, host.most_tokens(1)), columns)
    if host.trainer.limits.max_jobs:
        _train(host, rank)
    log.info(NAME, base_model=host.info.id, seconds=round(time.perf_counter() - began_s, 1))


def _serve(host: ModelHost, num_tokens: int, columns: AdapterColumns | None) -> None:
    """One prompt, in one span, in blocks that are free again afterwards."""
    body = RequestBody(
        request_id=NAME,
        tenant_id=NAME,
        base_model=host.info.id,
        prompt_token_ids=(0,) * num_tokens,
        sampling=SamplingParams(),
    )
    sequence = Sequence(body, 0, list(body.prompt_token_ids), 0.0)
    pool = host.scheduler.pool
    sequence.block_table = pool.allocate(NAME, pool.blocks_for(num_tokens))
    host.runner.cache.clear(list(pool.take_fresh()))
    row = InferenceRow(Span(sequence.id, 0, num_tokens), sequence, columns)
    drawn = host.runner.run([row], []).drawn
    assert drawn is not None
    drawn.read()
    pool.free(NAME, sequence.block_table)


def _train(host: ModelHost, rank: int) -> None:
    """The first pack of a job, forward and back; the job is dropped before its first step."""
    trainer, num_tokens = host.trainer, _longest(host.trainer)
    if num_tokens < LEAST_TOKENS:
        return  # there is no memory to train in
    with tempfile.TemporaryDirectory() as folder, _job(trainer, Path(folder), rank, num_tokens):
        if trainer.demands(host.scheduler.pool.num_free):
            with trainer.side.device.turn():
                for _ in trainer.run_units(LaneUnits(NAME, MANY_UNITS), lambda: True):
                    pass


def _longest(trainer: Trainer) -> int:
    """Tokens of an example: a pack, or what memory and the model hold of it."""
    num_tokens = min(trainer.limits.pack_tokens, trainer.decoder.config.max_model_len)
    while not trainer.placement.fits(num_tokens):
        num_tokens //= 2
    return num_tokens


@contextmanager
def _job(trainer: Trainer, folder: Path, rank: int, num_tokens: int) -> Iterator[None]:
    """A job on one example of zeros."""
    offsets, weights = np.array([0, num_tokens]), np.ones(num_tokens, np.float32)
    weights[0] = 0
    write(folder / "data", EncodedDataset(offsets, np.zeros(num_tokens, np.int32), weights))
    spec = FinetuneSpec(base_model=trainer.base.model, method_config={"rank": rank})
    trainer.start(
        StartJob(
            job_id=NAME,
            tenant_id=NAME,
            epoch=0,
            spec=spec,
            train_path=str(folder / "data"),
            checkpoint_root=str(folder),
        )
    )
    try:
        yield
    finally:
        trainer.drop(NAME)
