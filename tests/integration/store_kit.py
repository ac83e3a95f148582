"""Real things that several integration tests start: a database, a Redis, a tiny model folder."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import JobProgress
from scheduler.store.files import Files, file_object_key, new_file_id
from scheduler.store.jobs import Job, JobDraft, Jobs
from scheduler.store.leases import CheckpointCommit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from scheduler.domain.tenant import Tenant
    from scheduler.store.database import Database
    from scheduler.store.objects import ObjectStore

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_ROW = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
}


def chat_rows(count: int) -> bytes:
    """`count` good rows of a chat data set."""
    return b"".join(json.dumps(CHAT_ROW).encode() + b"\n" for _ in range(count))


def make_model_dir(folder: Path, max_model_len: int = 256) -> Path:
    """The text side of a base model: one token per byte, ChatML."""
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: token_id for token_id, piece in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": 258, "max_position_embeddings": max_model_len}
    (folder / "config.json").write_text(json.dumps(config))
    text = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(text))
    return folder


@asynccontextmanager
async def redis_server(folder: Path, port: int = 0) -> AsyncIterator[asyncio.subprocess.Process]:
    """A redis-server on the socket `folder/redis.sock` (and on `port`, if given), answering."""
    server = await asyncio.create_subprocess_exec(
        "redis-server", "--port", str(port), "--bind", "127.0.0.1",
        "--unixsocket", str(folder / "redis.sock"),
        "--dir", str(folder), "--save", "", "--appendonly", "no",
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await _until_it_listens(folder / "redis.sock")
        yield server
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()
        (folder / "redis.sock").unlink(missing_ok=True)


async def _until_it_listens(socket: Path) -> None:
    for _ in range(500):
        try:
            _, writer = await asyncio.open_unix_connection(str(socket))
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        await writer.wait_closed()
        return
    raise AssertionError(f"nothing listens on {socket}")


async def upload(
    db: Database, tenant: Tenant, objects: ObjectStore | None = None, content: bytes = b""
) -> str:
    """A file of the tenant; its bytes are stored when there is a store. Returns its id."""
    file_id = new_file_id()
    key = file_object_key(tenant.id, file_id)
    if objects is not None:
        await objects.put_bytes(key, content)
    await Files(db).for_tenant(tenant.id).create(
        file_id=file_id, filename="rows.jsonl", purpose="fine-tune",
        num_bytes=len(content), object_key=key,
    )  # fmt: skip
    return file_id


async def create_job(db: Database, tenant: Tenant, **spec: object) -> Job:
    """A job on model `m`, in validating_files."""
    draft = JobDraft(
        spec=FinetuneSpec(**({"base_model": "m"} | spec)),
        training_file=await upload(db, tenant),
        suffix="s",
    )
    return await Jobs(db).for_tenant(tenant.id).create(draft)


def progress(job_id: str, epoch: int, step: int, **changes: object) -> JobProgress:
    """The report of one optimizer step."""
    fields = {
        "total_steps": 100, "train_loss": 1.0 / step, "train_mean_token_accuracy": 0.5,
        "learning_rate": 1e-4, "trained_tokens": step * 10, "tokens_per_second": 100.0,
        "eta_seconds": 60.0, "grad_norm": 1.0,
    }  # fmt: skip
    return JobProgress(job_id=job_id, epoch=epoch, step=step, **(fields | changes))


def commit(step: int, **changes: object) -> CheckpointCommit:
    """A checkpoint whose files are said to be stored."""
    fields = {
        "adapter_uri": f"adapters/a/{step}", "adapter_digest": f"d{step}", "num_bytes": 5,
        "trained_tokens": step * 10, "uri": f"checkpoints/{step}",
        "manifest_sha256": f"{step:064x}", "metrics": {"train_loss": 0.5},
    }  # fmt: skip
    return CheckpointCommit(step=step, **(fields | changes))
