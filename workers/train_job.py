"""One fine-tuning job inside the engine: a stream of packs, optimizer steps and checkpoints.

`stream` is the job's whole life as a generator. Whoever drives it runs each pack it yields to the
end and sends its sums; everything between two packs (optimizer step, validation, checkpoint)
happens inside. A stream made anew begins the current optimizer step again. The job trains a private
float32 master; its arena columns are a copy for compute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import torch

from scheduler.domain.errors import TrainingDiverged
from scheduler.domain.messages import JobProgress, StartJob
from workers.adapter_arena import are_finite
from workers.adapter_pool import AdapterSlot
from workers.flat_params import FlatParams
from workers.job_checkpoint import CheckpointData, JobState
from workers.lr_schedule import learning_rate
from workers.optimizer import Optimizer
from workers.param_shard import ParamShard
from workers.peft_method import PeftMethod, Terms
from workers.term_grads import TermGrads
from workers.train_data import TrainData, pack_examples
from workers.train_pack import LossSums, PackTokens, PackWork

MAX_INTERIM_VALID_EXAMPLES = 32  # the whole file is read at the end only


@dataclass(slots=True)
class TrainJob:
    """State of one job between packs.

    Attributes:
        shard: the method, over the whole model and over what lies here.
        term_views: the job's rows of the adapter arena.
        report: takes progress after each optimizer step.
        checkpoint: takes copies of the state to be written; the flag marks the last one.
    """

    order: StartJob
    shard: ParamShard
    optimizer: Optimizer
    slot: AdapterSlot
    term_views: Terms
    data: TrainData
    valid: TrainData | None
    params: FlatParams
    grads: FlatParams
    term_grads: TermGrads
    optimizer_state: dict[str, torch.Tensor]
    report: Callable[[JobProgress], None]
    checkpoint: Callable[[TrainJob, CheckpointData, bool], None]
    step: int = 0
    trained_tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint_due_s: float = field(init=False)
    step_began_s: float = 0.0
    step_ms_mean: float | None = None

    def __post_init__(self) -> None:
        self.checkpoint_due_s = self.shard.group.now_s() + self.order.spec.checkpoint_every_s

    @property
    def method(self) -> PeftMethod:
        """The method over what lies here."""
        return self.shard.own

    @property
    def trained(self) -> torch.Tensor:
        """The parameters that the optimizer moves: the first of all in the adapter's file."""
        return self.params.flat[: len(self.grads.flat)]

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.order.job_id

    def restore(self, data: CheckpointData) -> None:
        """Go on from a checkpoint."""
        for name, tensor in self.shard.part(data.params).items():
            self.params.views[name].copy_(tensor)
        for name, tensor in data.optimizer_state.items():
            self.optimizer_state[name].copy_(self.shard.flat_part(tensor))
        self.step = data.state.step
        self.trained_tokens = data.state.trained_tokens
        self.metrics = dict(data.state.metrics)

    def snapshot(self) -> CheckpointData:
        """Copies of everything that a resumed run needs."""
        return CheckpointData(
            self.shard.gathered(self.params.views),
            {name: self.shard.gathered_flat(t) for name, t in self.optimizer_state.items()},
            JobState(self.step, self.trained_tokens, dict(self.metrics)),
        )

    def stream(self) -> Generator[PackWork, LossSums]:
        """Every pack from the current optimizer step on, in order; takes each one's sums.

        Raises:
            TrainingDiverged: a loss, gradient or parameter is not finite.
        """
        self._lower()
        while self.step < self.data.total_steps:
            self.step_began_s = time.monotonic()
            sums = LossSums()
            self.term_grads.clear()
            yield from self._run(self.data.packs(self.step), True, sums)
            grad_norm, lr = self._optimizer_step(sums)
            yield from self._validate()
            self._report(sums, grad_norm, lr)
            self._checkpoint_if_due()
        self.checkpoint(self, self.snapshot(), True)

    def _run(
        self, packs: list[PackTokens], trains: bool, sums: LossSums
    ) -> Generator[PackWork, LossSums]:
        for tokens in packs:
            sums.add((yield PackWork(tokens, trains)))

    def _optimizer_step(self, sums: LossSums) -> tuple[float, float]:
        """Mean over target tokens, clip, update, copy into the arena: (gradient norm, rate)."""
        spec = self.order.spec
        self.method.pull_back(self.term_grads.terms, self.grads.views)
        self.shard.add_up(self.grads.views)
        grads = self.grads.flat.div_(max(sums.weight, 1e-8))
        norm = self.shard.norm(self.grads)
        if not math.isfinite(norm) or not math.isfinite(sums.loss):
            raise TrainingDiverged(
                f"Step {self.step + 1} gave loss {sums.loss / max(sums.weight, 1e-8)} and gradient "
                f"norm {norm}; a smaller learning rate may help."
            )
        grads.mul_(min(1.0, spec.max_grad_norm / (norm + 1e-6)))
        lr = learning_rate(
            spec.learning_rate,
            spec.lr_schedule,
            spec.warmup_ratio,
            self.step,
            self.data.total_steps,
        )
        self.optimizer.step(self.trained, grads, self.optimizer_state, lr, self.step + 1)
        self._lower()
        self.step += 1
        self.trained_tokens += sums.tokens
        return norm, lr

    def _lower(self) -> None:
        """Copy the parameters into the arena, where nothing infinite may stand."""
        self.method.lower(self.params.views, self.term_views)
        is_finite = bool(torch.isfinite(self.params.flat.abs().amax()))
        if not self.shard.group.all(is_finite and are_finite(self.term_views)):
            raise TrainingDiverged(
                f"After step {self.step} a weight is NaN, infinite or overflows; a smaller "
                "learning rate or alpha may help."
            )

    def _validate(self) -> Generator[PackWork, LossSums]:
        """Run validation packs when they are due; the result lands in `metrics`."""
        self.metrics.pop("valid_loss", None)
        self.metrics.pop("valid_mean_token_accuracy", None)
        is_last = self.step == self.data.total_steps
        if self.valid is None or not (is_last or self.step % self.order.spec.eval_every_steps == 0):
            return
        count = self.valid.dataset.num_examples
        if not is_last:
            count = min(count, MAX_INTERIM_VALID_EXAMPLES)
        sums = LossSums()
        packs = pack_examples(self.valid.dataset, list(range(count)), self.valid.pack_tokens)
        yield from self._run(packs, False, sums)
        weight = max(sums.weight, 1e-8)
        for prefix in ("", "full_") if count == self.valid.dataset.num_examples else ("",):
            self.metrics[f"{prefix}valid_loss"] = sums.loss / weight
            self.metrics[f"{prefix}valid_mean_token_accuracy"] = sums.correct / weight

    def _report(self, sums: LossSums, grad_norm: float, lr: float) -> None:
        step_s = time.monotonic() - self.step_began_s
        mean = self.step_ms_mean
        self.step_ms_mean = step_s * 1e3 if mean is None else 0.9 * mean + 0.1 * step_s * 1e3
        weight = max(sums.weight, 1e-8)
        self.metrics["train_loss"] = sums.loss / weight
        self.metrics["train_mean_token_accuracy"] = sums.correct / weight
        self.report(
            JobProgress(
                job_id=self.job_id,
                epoch=self.order.epoch,
                step=self.step,
                total_steps=self.data.total_steps,
                train_loss=self.metrics["train_loss"],
                train_mean_token_accuracy=self.metrics["train_mean_token_accuracy"],
                learning_rate=lr,
                trained_tokens=self.trained_tokens,
                tokens_per_second=sums.tokens / step_s,
                eta_seconds=(self.data.total_steps - self.step) * self.step_ms_mean / 1e3,
                grad_norm=grad_norm,
                valid_loss=self.metrics.get("valid_loss"),
                valid_mean_token_accuracy=self.metrics.get("valid_mean_token_accuracy"),
            )
        )

    def _checkpoint_if_due(self) -> None:
        spec = self.order.spec
        if self.step == self.data.total_steps:
            return
        if self.step % spec.checkpoint_every_steps == 0 or (
            self.shard.group.now_s() >= self.checkpoint_due_s
        ):
            self.checkpoint_due_s = self.shard.group.now_s() + spec.checkpoint_every_s
            self.checkpoint(self, self.snapshot(), False)
