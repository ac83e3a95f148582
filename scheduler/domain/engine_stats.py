"""What an engine reports about itself: gauges, totals since its start, and its newest steps.

Totals grow for as long as the engine lives, so a reader that misses a report misses nothing, and
any number of readers count the same.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scheduler.domain.adapter_tier import AdapterTier
from scheduler.domain.message import Report
from scheduler.domain.request import FinishReason


class JobShare(Report):
    """What a step's plan gave to one job."""

    job_id: str
    window_tokens: int = Field(0, description="Rows of its forward in the packed batch.")
    num_units: int = Field(0, description="Units of its lane.")


class StepSample(Report):
    """One engine step: what was planned, what it should have taken, and what it took."""

    index: int = Field(0, description="Steps of the engine before this one.")
    began_at: float = Field(0.0, description="Unix seconds.")
    num_sequences: int = Field(0, description="Sequences with rows in the packed batch.")
    num_rows: int = Field(0, description="Rows of the packed batch, of inference and training.")
    decode_tokens: int = Field(description="Inference rows of sequences with one row.")
    prefill_tokens: int = Field(description="Inference rows of sequences with more.")
    train_forward_tokens: int = Field(description="Tokens whose forward began.")
    train_backward_tokens: int = Field(0, description="Tokens whose backward is through.")
    train_backward_token_layers: int = Field(description="Tokens of backward, times layers.")
    num_units: int = Field(0, description="Units of training that ran.")
    was_cut: bool = Field(False, description="Planned units did not run: somebody new arrived.")
    jobs: tuple[JobShare, ...] = ()
    step_ms: float
    predicted_ms: float | None = Field(None, description="Of the whole plan, by the latency law.")
    slack_ms: float | None = Field(
        None, description="What training might take; null: nobody with a target waited."
    )


class RequestSample(Report):
    """One finished request, for latency histograms."""

    base_model: str
    service_class: str = ""
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    queue_s: float
    ttft_s: float | None = Field(description="None: it ended without a token.")
    e2e_s: float
    num_kept_tokens: int | None = Field(
        None, description="Prompt tokens that its KV policy kept; null: it had none."
    )
    inter_token_s: tuple[float, ...] = ()
    training_active: bool = Field(False, description="A job trained while it was served.")

    @property
    def mean_tpot_s(self) -> float | None:
        """Mean time per output token after the first; None below two tokens."""
        pauses = self.inter_token_s
        return sum(pauses) / len(pauses) if pauses else None


class HistogramTotals(Report):
    """How often values fell into each bucket; the last bucket is everything over the last bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class SloTotals(Report):
    """How often one target of one class was met, and how often not."""

    service_class: str
    target: str = Field(pattern="^(ttft|tpot)$")
    training_active: bool
    num_within: int
    num_over: int


class EngineStats(Report):
    """Gauges, totals, and the steps and requests since the last report; about twice a second."""

    type: Literal["engine_stats"] = "engine_stats"
    num_running: int
    num_waiting: int
    kv_usage: float = Field(ge=0, le=1)
    num_free_blocks: int
    num_blocks: int
    num_training_blocks: int = Field(0, description="Blocks that training has borrowed.")
    num_preemptions: int
    num_recalls: int = Field(0, description="Training packs that started over to free blocks.")
    active_jobs: tuple[str, ...]
    adapter_tiers: tuple[AdapterTier, ...] = ()
    steps: tuple[StepSample, ...] = ()
    requests: tuple[RequestSample, ...] = ()
    prompt_tokens: int = Field(0, description="Total since the engine started.")
    generation_tokens: int = Field(0, description="Total since the engine started.")
    trained_tokens: int = Field(0, description="Total since the engine started.")
    prefix_queries: int = Field(0, description="Total of tokens of sequences that began to run.")
    prefix_hits: int = Field(0, description="Total of those whose K/V were there already.")
    kv_kept_tokens: int = Field(0, description="Total of prompt tokens that KV policies kept.")
    kv_dropped_tokens: int = Field(0, description="Total of those that they dropped.")
    tokens_by_kind: dict[str, int] = Field(
        default_factory=dict, description="Totals: decode, prefill, train_forward, train_backward."
    )
    histograms: dict[str, HistogramTotals] = Field(
        default_factory=dict, description="Over all steps, by what was measured."
    )
    slo: tuple[SloTotals, ...] = ()

    @property
    def training_usage(self) -> float:
        """Share of the blocks that training has borrowed, 0..1."""
        return self.num_training_blocks / self.num_blocks
