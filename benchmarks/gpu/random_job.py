"""A fine-tuning job on random examples: LoRA on all linears, until it is stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.gpu.random_model import BASE, RANK
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import StartJob
from scheduler.text.dataset import EncodedDataset, write


def lora_job(job_id: str, dataset: Path, checkpoints: Path, batch_size: int = 4) -> StartJob:
    """The order to train on a data set; no checkpoint is due while a benchmark runs."""
    spec = FinetuneSpec(
        base_model=BASE,
        n_epochs=50,
        batch_size=batch_size,
        method_config={"rank": RANK, "alpha": 2 * RANK},
        checkpoint_every_steps=10_000,
        checkpoint_every_s=1e6,
    )
    return StartJob(
        job_id=job_id,
        tenant_id=job_id,
        epoch=1,
        spec=spec,
        train_path=str(dataset),
        checkpoint_root=str(checkpoints),
    )


def write_dataset(path: Path, examples: int, tokens: int, vocabulary: int) -> None:
    """Random examples of one length, every token trained."""
    random = np.random.default_rng(1)
    offsets = np.arange(0, examples * tokens + 1, tokens, dtype=np.int64)
    weights = np.ones(examples * tokens, dtype=np.float32)
    weights[offsets[:-1]] = 0
    drawn = random.integers(2, vocabulary, examples * tokens).astype(np.int32)
    write(path, EncodedDataset(offsets, drawn, weights))
