"""What a worker announces, as tests need it."""

from __future__ import annotations

from scheduler.domain.messages import BaseModelInfo, EngineStats, WorkerCapabilities, WorkerInfo

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"rank": {"type": "integer", "minimum": 1}},
}


def worker(name: str, boot: str = "1", base: str = "b", busy: int = 0) -> WorkerInfo:
    """A worker that holds one base model."""
    info = BaseModelInfo(
        id=base, digest="d", max_model_len=8, vocab_size=4, num_parameters=1, dtype="float32"
    )
    capabilities = WorkerCapabilities(
        base_models=(info,),
        peft_methods={"lora": SCHEMA},
        optimizers={},
        objectives={},
        max_rank=8,
        max_num_sequences=4,
    )
    stats = EngineStats(
        num_running=busy,
        num_waiting=0,
        kv_usage=0.5,
        num_free_blocks=1,
        num_blocks=2,
        num_preemptions=0,
        active_jobs=(),
    )
    return WorkerInfo(worker_id=name, boot_id=boot, capabilities=capabilities, stats=stats)
