"""The service as `tandem up` starts it: upload, train, chat with what was trained, over HTTP.

While the chats run another job trains. On a card the base has the shape of a 1B Llama, random
weights and the tokenizer of the shipped model; at toy sizes it is the shipped model.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.coserving import quantiles
from benchmarks.gpu.peer_model import peer_model
from benchmarks.gpu.service_client import Answer, Tenant
from benchmarks.gpu.service_process import ServiceProcess, missing_package, running_service
from benchmarks.gpu.setting import Figures, Setting

SHIPPED = Path(__file__).parents[2] / "examples" / "base_model" / "tandem-tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
VOCABULARY, EOS = 1195, 3  # of that tokenizer
STREAMS, CHATS_EACH = 8, 3
OUTPUT_TOKENS = 64
JOB_PATIENCE_S = 60.0


def measure(setting: Setting) -> Iterator[Figures]:
    """Rates and times as callers see them; or which package the machine lacks."""
    missing = missing_package()
    if missing is not None:
        yield {"missing": missing}
        return
    with tempfile.TemporaryDirectory(prefix="tandem-gpu-") as folder:
        base = SHIPPED if setting.is_tiny else random_base(setting, Path(folder), "1b")
        device = "0" if setting.device.type == "cuda" else "cpu"
        with running_service(Path(folder) / "data", base, device) as service:
            yield {"model": base.name, "seconds_to_ready": service.seconds_to_ready}
            yield asyncio.run(used(service, setting))


def random_base(setting: Setting, parent: Path, shape: str) -> Path:
    """A folder of random weights in a shape, with the shipped tokenizer and its vocabulary."""
    folder = parent / f"random-{shape}"
    peer_model(setting, shape, vocab_size=VOCABULARY, eos_token_id=EOS).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(SHIPPED / name, folder)
    return folder


async def used(service: ServiceProcess, setting: Setting) -> Figures:
    """A tenant's way: a file, a job, chats with its adapter while the next job trains."""
    tenant = Tenant(service.url, service.tenant_key())
    base = (await tenant.models())[0]
    file_id = await tenant.upload(examples(24 if setting.is_tiny else 512, 400))
    began_s = time.perf_counter()
    job_id = await tenant.train(base, file_id, n_epochs=1)
    job = await tenant.finished(job_id, JOB_PATIENCE_S)
    took_s = time.perf_counter() - began_s
    rates = [told["tokens_per_second"] for told in await tenant.metrics(job_id)]
    figures: Figures = {
        "job": job["status"],
        "job_seconds": took_s,
        "training_alone_tokens_per_s": max(rates),
    }
    return figures | await chats_beside_training(tenant, base, job["fine_tuned_model"], file_id)


async def chats_beside_training(tenant: Tenant, base: str, adapter: str, file_id: str) -> Figures:
    """Streams of chats with an adapter, while a job trains from before them until after."""
    job_id = await tenant.train(base, file_id, n_epochs=50)
    while not (before := await tenant.metrics(job_id)):
        await asyncio.sleep(0.1)
    answers = await asyncio.gather(*(chats(tenant, adapter, stream) for stream in range(STREAMS)))
    after = await tenant.metrics(job_id)
    await tenant.cancel(job_id)
    flat = [answer for stream in answers for answer in stream]
    rates = [told["tokens_per_second"] for told in after[len(before) :]]
    return {
        "streams": STREAMS,
        "chats": len(flat),
        "ttft_ms": quantiles([answer.ttft_ms for answer in flat]),
        "tpot_ms": quantiles([answer.tpot_ms for answer in flat]),
        "training_beside_tokens_per_s": sum(rates) / len(rates) if rates else None,
    }


async def chats(tenant: Tenant, model: str, stream: int) -> list[Answer]:
    """One caller's chats, one after the other."""
    return [
        await tenant.chat(model, f"question {stream} {number}", OUTPUT_TOKENS)
        for number in range(CHATS_EACH)
    ]


def examples(count: int, words: int) -> list[str]:
    """Chats whose answers are of so many words, as lines of JSON."""
    return [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"question {number}"},
                    {
                        "role": "assistant",
                        "content": " ".join(["send tiles to oslo"] * (words // 4)),
                    },
                ]
            }
        )
        for number in range(count)
    ]
