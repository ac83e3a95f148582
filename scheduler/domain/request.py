"""What a tenant asked for, and the running state of one answer."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.kv_cadence import KvCadence
from scheduler.domain.service_class import DEFAULT


class FinishReason(StrEnum):
    """Why a sequence ended; STOP and LENGTH are OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class SamplingParams(BaseModel):
    """How tokens are drawn. Stop strings are not here: the gateway matches them on text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(16, ge=0, description="Most tokens to generate.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 keeps all.")
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = Field(
        None, ge=0, le=20, description="Alternatives beside the chosen token; None: no scores."
    )
    prompt_logprobs: bool = Field(False, description="Also score the prompt's own tokens (echo).")

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are drawn with a penalty for those that came before."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


class WeightedModel(BaseModel):
    """A part of a mixture: an adapter, or the bare base, and the factor of its logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: AdapterRef | None
    weight: float = Field(allow_inf_nan=False)


NO_KV_POLICY = "none"  # asks for no compression, also where the worker has a default


class KvPolicyChoice(BaseModel):
    """How the K/V of a request's sequences are compressed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = Field(description="Name of a KV policy, or `none`.")
    options: dict[str, Any] = Field(description="Its configuration.")


class BegunAnswer(BaseModel):
    """An answer that another worker has begun: which one it is, and its tokens so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0)
    token_ids: tuple[int, ...]


class RequestBody(BaseModel):
    """One request as it travels from a gateway to an engine. Never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_id: str
    tenant_id: str
    base_model: str
    adapter: AdapterRef | None = None
    prompt_token_ids: tuple[int, ...] = Field(min_length=1)
    sampling: SamplingParams = SamplingParams()
    n: int = Field(1, ge=1, description="How many sequences to draw from the one prompt.")
    tenant_weight: float = Field(1.0, gt=0)
    service_class: str = DEFAULT
    kv_policy: KvPolicyChoice | None = None
    cache_salt: str = Field("", description="Only requests with the same one share K/V.")
    mixture: tuple[WeightedModel, ...] = Field(
        (), description="Models whose weighted logits are added up; empty: `adapter` alone."
    )
    begun: tuple[BegunAnswer, ...] = Field(
        (), description="Answers to go on with; empty: all `n` of them, from their start."
    )

    @model_validator(mode="after")
    def _names_each_model_once(self) -> RequestBody:
        digests = [part.adapter and part.adapter.digest for part in self.mixture]
        if len(set(digests)) < len(digests):
            raise ValueError("a mixture names a model twice")
        return self

    @model_validator(mode="after")
    def _goes_on_with_its_own_answers(self) -> RequestBody:
        indices = [answer.index for answer in self.begun]
        if len(set(indices)) < len(indices) or any(index >= self.n for index in indices):
            raise ValueError("an answer that was begun is named twice, or is not one of `n`")
        most = max(1, self.sampling.max_tokens)  # of 0 tokens, the end may still be missing
        if any(len(answer.token_ids) >= most for answer in self.begun):
            raise ValueError("an answer that was begun has all its tokens")
        return self

    @property
    def wanted_answers(self) -> tuple[BegunAnswer, ...]:
        """The answers to give, each with the tokens that it has already."""
        fresh = (BegunAnswer(index=index, token_ids=()) for index in range(self.n))
        return self.begun or tuple(fresh)

    @property
    def members(self) -> tuple[WeightedModel, ...]:
        """The models that compute each answer together, most often one."""
        return self.mixture or (WeightedModel(adapter=self.adapter, weight=1.0),)

    @property
    def num_sequences(self) -> int:
        """Sequences that an engine computes for it: one for each answer and member."""
        return (len(self.begun) or self.n) * len(self.members)

    @property
    def adapters(self) -> tuple[AdapterRef, ...]:
        """The adapters of all members."""
        return tuple(part.adapter for part in self.members if part.adapter is not None)


class HeadLayout(Protocol):
    """Where a compressed sequence lies: its K/V heads hold less than its tokens, each its own."""

    @property
    def num_dropped(self) -> int:
        """How many fewer slots than tokens a head holds, on average."""

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold the sequence when it has `num_tokens`."""


def unread_token(row: int) -> int:
    """Stands for a token that is drawn but not read yet: that of a row of the newest draw."""
    return -1 - row


@dataclass(slots=True, eq=False)
class Sequence:
    """Running state of one answer by one model: counters only, no phase.

    An answer by several models is a sample group: a lead and its followers, one sequence for each
    model, with K/V of its own. They start, advance and stop together, so their counters are always
    equal; one token is drawn from their weighted logits and appended to all. Who handles groups
    holds on to the lead.

    tokens      |<---- prompt ---->|<-- output -->|
    computed    |<-- num_computed_tokens -->|         K/V are in the cache
    to compute                              |<- num_uncomputed_tokens ->|

    Attributes:
        request: what was asked.
        index: which of the request's `n` answers this is.
        token_ids: prompt and output so far; the last may be an `unread_token`.
        num_computed_tokens: tokens whose K/V are in the cache.
        block_table: ids of the superblocks that hold them, in order.
        layout: where they lie in there once they are compressed; None: side by side.
        num_compressed_tokens: tokens that it had when it was compressed last; 0: never was.
        num_dropped_tokens: how many of them a KV head does not hold any more, on average.
        cadence: at which lengths its K/V are compressed; None: at none.
        block_keys: keys of its first full blocks, as far as they have been asked for.
        num_cached_tokens: prompt tokens whose K/V were there when it first ran.
        arrival_s: monotonic time at which the engine took the request in.
        most_tokens: tokens, its prompt's included, with which it ends at the latest.
        member: which of the request's members computes it; the first leads the group.
        adapter: that member's.
        weight: factor of its logits.
        followers: the other sequences of the group, in the order of members; a lead's only.
        first_token_s: monotonic time of its first output token.
    """

    request: RequestBody
    index: int
    token_ids: list[int]
    arrival_s: float
    most_tokens: int = sys.maxsize
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    layout: HeadLayout | None = None
    num_compressed_tokens: int = 0
    num_dropped_tokens: int = 0
    cadence: KvCadence | None = None
    block_keys: list[bytes] = field(default_factory=list)
    num_cached_tokens: int = 0
    first_token_s: float | None = None
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    member: int = 0
    weight: float = 1.0
    followers: list[Sequence] = field(default_factory=list)
    adapter: AdapterRef | None = field(init=False)

    def __post_init__(self) -> None:
        self.adapter = self.request.members[self.member].adapter

    @property
    def id(self) -> str:
        """Unique among all sequences of an engine."""
        name = f"{self.request.request_id}/{self.index}"
        return f"{name}/{self.member}" if self.member else name

    @property
    def group(self) -> list[Sequence]:
        """A lead and all that follow it."""
        return [self, *self.followers]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that the caller sent."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose K/V are not in the cache yet."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_next_tokens(self) -> int:
        """Uncomputed tokens that one step may run: those after a compression come after it."""
        if self.has_unread and len(self.token_ids) >= self.most_tokens:
            return 0  # it ends with the token that is to be read
        return self.held_until_compressed(len(self.token_ids)) - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether its next step is a single token, with nothing left after it."""
        return self.num_uncomputed_tokens == 1 and self.num_next_tokens == 1

    @property
    def has_unread(self) -> bool:
        """Whether its last token is drawn but not read yet."""
        return self.token_ids[-1] < 0

    @property
    def is_due(self) -> bool:
        """Whether it has just come to a length at which its K/V are compressed."""
        if self.cadence is None or self.num_compressed_tokens == self.num_computed_tokens:
            return False
        return self.cadence.is_due(self.num_computed_tokens)

    def held_until_compressed(self, num_tokens: int) -> int:
        """How many of its first `num_tokens` it computes before its K/V are compressed next."""
        end = None if self.cadence is None else self.cadence.next_after(self.num_computed_tokens)
        return num_tokens if end is None else min(num_tokens, end)

    def append_unread(self, row: int) -> None:
        """A token has been drawn for a group, in a row of the newest draw."""
        for member in self.group:
            member.token_ids.append(unread_token(row))

    def read(self, token_id: int) -> None:
        """The token that was drawn for a group is this one."""
        for member in self.group:
            member.token_ids[-1] = token_id

    def forget_unread(self) -> None:
        """Nobody will read what has been drawn for a group."""
        if self.has_unread:
            for member in self.group:
                member.token_ids.pop()

    @property
    def output_token_ids(self) -> list[int]:
        """The generated tokens."""
        return self.token_ids[self.num_prompt_tokens :]
