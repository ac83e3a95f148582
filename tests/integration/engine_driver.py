"""Runs the real engine loop against a script: orders that are due once something has happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import (
    CheckpointWritten,
    Drain,
    Frames,
    FromEngine,
    Generate,
    JobProgress,
    JobStopped,
    Message,
    StartJob,
    ToEngine,
    TokenFrame,
    TokenLogprobs,
)
from scheduler.domain.request import KvPolicyChoice, RequestBody, SamplingParams, WeightedModel
from scheduler.text import dataset
from tests.unit.workers.packed_run import random_lora
from tests.unit.workers.tiny_models import VOCAB_SIZE, save_oracle
from workers.adapter_file import BaseIdentity, write_adapter
from workers.architecture import decoder_config
from workers.engine import EngineLoop
from workers.hf_config import read_hf_config
from workers.settings import EngineSettings

if TYPE_CHECKING:
    from pathlib import Path

    from workers.model_host import ModelHost

BASE = "tiny"
REPLY_TO = "gateway"
MAX_RUN_S = 60.0
MessageT = TypeVar("MessageT", bound=Message)
Condition = Callable[["Script"], bool]
Entry = tuple[Condition, list[ToEngine]]


@dataclass
class Script:
    """The agent's end: gives orders when their condition holds, and keeps all that is said.

    Attributes:
        entries: (condition, orders), given one after another; the engine is drained after the last.
    """

    entries: list[Entry]
    sent: list[FromEngine] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """The next entry's orders, once its condition holds."""
        assert time.monotonic() - self.began_s < MAX_RUN_S, "the script hangs"
        if not self.entries:
            return []
        condition, orders = self.entries[0]
        if not condition(self):
            time.sleep(min(timeout_s, 0.002))
            return []
        self.entries.pop(0)
        return orders

    def send(self, message: FromEngine) -> None:
        """Keep a report."""
        self.sent.append(message)

    def of(self, kind: type[MessageT]) -> list[MessageT]:
        """All reports of one kind."""
        return [message for message in self.sent if isinstance(message, kind)]

    def frames(self, request_id: str) -> list[TokenFrame]:
        """All frames of a request."""
        everything = [frame for message in self.of(Frames) for frame in message.frames]
        return [frame for frame in everything if frame.request_id == request_id]

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        """The answer of one sequence."""
        frames = [frame for frame in self.frames(request_id) if frame.index == index]
        return [token for frame in frames for token in frame.token_ids]

    def logprobs(self, request_id: str) -> list[TokenLogprobs]:
        """How likely each token of a request was."""
        return [line for frame in self.frames(request_id) for line in frame.logprobs or ()]

    def is_answered(self, request_id: str, n: int = 1) -> bool:
        """Whether the request's every sequence has ended."""
        return sum(f.finish_reason is not None for f in self.frames(request_id)) == n

    def has_ended(self, job_id: str) -> bool:
        """Whether the job has published, or has stopped."""
        done = any(m.job_id == job_id and m.final for m in self.of(CheckpointWritten))
        return done or any(m.job_id == job_id for m in self.of(JobStopped))

    def steps(self, job_id: str) -> list[JobProgress]:
        """Progress of one job."""
        return [message for message in self.of(JobProgress) if message.job_id == job_id]


def always(_: Script) -> bool:
    """The condition of orders that are due at once."""
    return True


def turned(count: int) -> Condition:
    """True from the count-th look on: so many turns of the loop have passed."""
    looks = iter(range(count))
    return lambda _: next(looks, None) is None


def ended(*orders: ToEngine) -> Condition:
    """The condition that every answer asked for and every job has ended."""
    requests = [order.request for order in orders if isinstance(order, Generate)]
    wanted = [(request.request_id, len(request.wanted_answers)) for request in requests]
    jobs = [order.job_id for order in orders if isinstance(order, StartJob)]
    return lambda script: (
        all(script.is_answered(name, count) for name, count in wanted)
        and all(map(script.has_ended, jobs))
    )


class TinyEngine:
    """A model folder, adapters and data sets to start engines with."""

    def __init__(self, folder: Path, family: str = "qwen3", **settings: Any) -> None:
        self.folder = folder
        model_dir = folder / "model"
        if not model_dir.exists():
            save_oracle(family, model_dir)
            (model_dir / "tokenizer.json").write_text("{}")
        self.config = decoder_config(read_hf_config(model_dir))
        plain: dict[str, Any] = {
            "dtype": "float32",
            "num_threads": 1,
            "page_tokens": 4,
            "kv_cache_tokens": 4096,
        }
        self.settings = EngineSettings(base_models=[f"{BASE}={model_dir}"], **plain | settings)

    def complete(self, *orders: ToEngine) -> Script:
        """Run orders at once, until every answer and every job has ended."""
        return self.run((always, [*orders]), (ended(*orders), []))

    def run(self, *entries: Entry) -> Script:
        """Start an engine, play the script, drain; all blocks must be free in the end."""
        script = Script([*entries])
        engine = self.start(script)
        self.finish(engine, script)
        return script

    def start(self, script: Script) -> EngineLoop:
        """An engine that has not run yet."""
        script.entries.append((always, [Drain()]))
        return EngineLoop(self.settings, script)

    def finish(self, engine: EngineLoop, script: Script) -> None:
        """Run an engine to its end."""
        script.began_s = time.monotonic()
        engine.run()
        assert not script.entries
        assert not engine.requests.live
        assert_nothing_is_held(engine.hosts[BASE])

    def adapter(self, name: str, rank: int, modules: tuple[str, ...], **how: Any) -> Path:
        """An adapter's folder; `edit` may change its parameters."""
        edit = how.pop("edit", None)
        method, params = random_lora(self.config, how.pop("seed", rank), rank, modules, **how)
        if edit is not None:
            edit(params)
        path = self.folder / "adapters" / name
        write_adapter(path, method, params, BaseIdentity(BASE, "digest"), 0, {})
        return path

    def data(self, name: str, random: Random, num_examples: int = 12) -> Path:
        """A data set of random tokens."""
        path = self.folder / f"{name}.bin"
        lengths = [random.randint(3, 30) for _ in range(num_examples)]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        count = int(offsets[-1])
        token_ids = np.array([random.randrange(VOCAB_SIZE) for _ in range(count)], np.int32)
        weights = np.ones(count, np.float32)
        weights[offsets[:-1]] = 0
        dataset.write(path, dataset.EncodedDataset(offsets, token_ids, weights))
        return path

    def job(self, job_id: str, train_path: Path, root: str = "", **how: Any) -> StartJob:
        """An order to train."""
        resume_from = how.pop("resume_from", None)
        tenant_id = how.pop("tenant_id", "tenant")
        valid_path = how.pop("valid_path", None)
        options: dict[str, Any] = {
            "n_epochs": 2,
            "batch_size": 4,
            "learning_rate": 5e-3,
            "method_config": {"rank": 4},
            "checkpoint_every_steps": 1000,
        }
        return StartJob(
            job_id=job_id,
            tenant_id=tenant_id,
            epoch=1,
            spec=FinetuneSpec(base_model=BASE, **options | how),
            train_path=str(train_path),
            valid_path=valid_path,
            checkpoint_root=str(self.folder / "checkpoints" / (root or job_id)),
            resume_from=resume_from,
        )


def prompt(seed: int, count: int) -> list[int]:
    """Random tokens, none of them special."""
    random = Random(seed)
    return [random.randrange(3, VOCAB_SIZE) for _ in range(count)]


def generate(
    request_id: str,
    token_ids: list[int],
    adapter_dir: Path | None = None,
    n: int = 1,
    base_model: str = BASE,
    tenant_id: str = "tenant",
    kv_policy: KvPolicyChoice | None = None,
    **sampling: Any,
) -> Generate:
    """An order to answer; greedy and deaf to eos unless `sampling` says otherwise."""
    plain: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    adapter = None if adapter_dir is None else adapter_ref(adapter_dir)
    body = RequestBody(
        request_id=request_id,
        tenant_id=tenant_id,
        base_model=base_model,
        adapter=adapter,
        prompt_token_ids=tuple(token_ids),
        sampling=SamplingParams(**plain | sampling),
        n=n,
        kv_policy=kv_policy,
    )
    folders = {} if adapter is None else {adapter.digest: str(adapter_dir)}
    return Generate(request=body, reply_to=REPLY_TO, adapter_dirs=folders)


def mixed(order: Generate, *parts: tuple[Path | None, float]) -> Generate:
    """The order for a mixture of the base (None) and adapters, by weight."""
    refs = {folder: adapter_ref(folder) for folder, _ in parts if folder is not None}
    mixture = tuple(
        WeightedModel(adapter=folder and refs[folder], weight=weight) for folder, weight in parts
    )
    body = order.request.model_copy(update={"mixture": mixture})
    folders = {ref.digest: str(folder) for folder, ref in refs.items()}
    return order.model_copy(update={"request": body, "adapter_dirs": folders})


def adapter_ref(folder: Path) -> AdapterRef:
    """How a request names the adapter in a folder."""
    digest = json.loads((folder / "manifest.json").read_text())["digest"]
    return AdapterRef(adapter_id=folder.name, version=1, digest=digest, uri="none")


def assert_nothing_is_held(host: ModelHost) -> None:
    """No block, no adapter and no job is left in use."""
    pool = host.scheduler.pool
    pool.check_conserved()
    assert pool.num_free == pool.num_blocks
    assert not host.trainer.active
    assert not host.scheduler.running
    assert len(host.scheduler.waiting) == 0
    slots = [host.adapters.get(key) for key in host.adapters.resident]
    assert all(slot is not None and slot.num_users == 0 for slot in slots)
