"""Transformers + peft as a server: one batch of callers after the other through `generate`.

All callers of a batch begin together and have the same lengths, which suits `generate` best: no
padding, and nobody waits for a longer neighbour.
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.peers.peft_model import named_dtype
from benchmarks.peers.prompts import prompt
from benchmarks.peers.rounds import serve_rounds

PROMPT_TOKENS, OUTPUT_TOKENS = 250, 64


class TokenClock(StoppingCriteria):
    """Stops nothing; notes when each token of the batch came."""

    def __init__(self) -> None:
        self.token_s: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """See StoppingCriteria."""
        del scores
        self.token_s.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class BatchLoop:
    """Batches, one after the other; each row has the adapter of its caller."""

    def __init__(self, model: PeftModel, names: list[str], num_streams: int) -> None:
        self.model, self.names, self.num_streams = model, names, num_streams
        self.ids = itertools.count()
        self.num_tokens = 0
        self.ttft_ms: list[float] = []
        self.tpot_ms: list[float] = []

    @torch.inference_mode()
    def step(self) -> None:
        """One batch, from its prompts to its last token."""
        indices = list(itertools.islice(self.ids, self.num_streams))
        prompts = torch.tensor([prompt(index, PROMPT_TOKENS) for index in indices])
        clock, began_s = TokenClock(), time.perf_counter()
        self.model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            adapter_names=[self.names[index % len(self.names)] for index in indices],
            do_sample=False,
            min_new_tokens=OUTPUT_TOKENS,
            max_new_tokens=OUTPUT_TOKENS,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        first_s, last_s = clock.token_s[0], clock.token_s[-1]
        self.num_tokens += OUTPUT_TOKENS * self.num_streams
        self.ttft_ms += [(first_s - began_s) * 1e3] * self.num_streams
        tpot_ms = (last_s - first_s) * 1e3 / (OUTPUT_TOKENS - 1)
        self.tpot_ms += [tpot_ms] * self.num_streams

    def begin(self, pause_s: float) -> None:
        """Start counting."""
        del pause_s
        self.num_tokens, self.ttft_ms, self.tpot_ms = 0, [], []

    def result(self, elapsed_s: float) -> dict[str, object]:
        """Rates and times of the round."""
        return {
            "output_tokens_per_s": self.num_tokens / elapsed_s,
            "tpot_ms": self.tpot_ms,
            "ttft_ms": self.ttft_ms,
        }


def main() -> None:
    """Load, warm up, measure as told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapters", nargs="+", required=True)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=named_dtype(args.dtype))
    names = [f"a{place}" for place in range(len(args.adapters))]
    model = PeftModel.from_pretrained(
        base, args.adapters[0], adapter_name=names[0], autocast_adapter_dtype=False
    )
    for name, folder in zip(names[1:], args.adapters[1:], strict=True):
        model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)
    model.eval()
    loop = BatchLoop(model, names, args.streams)
    loop.step()
    serve_rounds(loop.step, loop.begin, loop.result)


if __name__ == "__main__":
    main()
