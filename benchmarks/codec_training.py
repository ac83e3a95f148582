"""One adapter for each task, really trained: in the engine, on the shipped model."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import EXAMPLES
from benchmarks.codec_tasks import ALL, turns
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import CheckpointWritten, FromEngine, JobStopped, StartJob, ToEngine
from scheduler.text import dataset
from scheduler.text.model_files import read_model_files
from scheduler.text.tokenizer import ChatTokenizer
from workers.engine import EngineLoop
from workers.settings import EngineSettings

MODEL = EXAMPLES / "base_model" / "tandem-tiny"
BASE = "tandem-tiny"
TRAIN, VALID, TEST = 240, 60, 100
SPEC: dict[str, Any] = {
    "base_model": BASE,
    "n_epochs": 12,
    "batch_size": 8,
    "learning_rate": 4e-3,
    "seed": 1,
    "method_config": {"rank": 16, "alpha": 32},
    "checkpoint_every_steps": 10_000,
    "checkpoint_every_s": 1e6,
}


@dataclass
class _Pipe:
    """The engine's pipe: orders at once, then silence; keeps where the adapters end up."""

    orders: list[ToEngine]
    folders: dict[str, Path] = field(default_factory=dict)

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See workers.engine.Connection."""
        del timeout_s
        orders, self.orders = self.orders, []
        return orders

    def send(self, message: FromEngine) -> None:
        """Note a finished adapter."""
        if isinstance(message, JobStopped):
            raise RuntimeError(f"{message.job_id} has stopped: {message.error}")
        if isinstance(message, CheckpointWritten) and message.final:
            self.folders[message.job_id] = Path(message.path) / "adapter"


def train(root: Path) -> dict[str, Path]:
    """Adapter folders by task."""
    pipe = _Pipe(_orders(root))
    settings = {"base_models": [f"{BASE}={MODEL}"], "num_threads": torch.get_num_threads()}
    engine = EngineLoop(EngineSettings.model_validate(settings), pipe)
    while len(pipe.folders) < len(ALL):
        engine.turn()
        if not engine.hosts[BASE].has_work:
            time.sleep(0.01)  # the last checkpoints are being written
    return pipe.folders


def _orders(root: Path) -> list[ToEngine]:
    tokenizer = ChatTokenizer(read_model_files(MODEL))
    return [
        StartJob(
            job_id=task,
            tenant_id=task,
            epoch=1,
            spec=FinetuneSpec.model_validate(SPEC),
            train_path=str(_data_set(root / f"{task}.bin", task, tokenizer)),
            checkpoint_root=str(root / task),
        )
        for task in ALL
    ]


def _data_set(path: Path, task: str, tokenizer: ChatTokenizer) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in turns(task, TRAIN, VALID, TEST)[0]
    ]
    lines = [json.dumps(row).encode() for row in rows]
    dataset.write(path, dataset.encode_file(lines, tokenizer, 512))
    return path
