"""The interleaved rounds: every phase of ours and of every peer, once each, close to each other.

A round visits each number of streams: inference alone, both under the first target, training alone,
both under the second. So each co-serving phase is directly beside its two halves. Around the load
of PEER_STREAMS come the phases that stand against peers, and the peers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.cell import CellRound, cell_figures, targets_of
from benchmarks.closed_loop import NO_TARGETS, Bench
from benchmarks.gemm_bound import GemmCosts, gemm_figures, lanes_eta, measure_gemm_costs
from benchmarks.law_error import law_figures
from benchmarks.load import Load, StopRule
from benchmarks.peer import PEFT, VLLM_LORA, Peer, round_beside
from benchmarks.peer_figures import peer_figures, product_ratio, ratios
from benchmarks.phase import PhaseResult, summary
from benchmarks.plan import ADAPTERS, PEER_STREAMS, STREAMS, TARGETS, Budget, Plan
from benchmarks.spread import spread

ORDER = sorted(STREAMS, key=lambda streams: streams == PEER_STREAMS)  # peers' load last
LEARNING = StopRule(2.0)
BESIDE = "vLLM with 4 adapters beside peft training"


class Rounds:
    """All rounds of a run."""

    def __init__(self, bench: Bench, peers: dict[str, Peer], plan: Plan) -> None:
        self.bench, self.peers, self.plan = bench, peers, plan
        self.phases: dict[str, list[PhaseResult]] = defaultdict(list)
        self.cells: dict[tuple[int, float], list[CellRound]] = defaultdict(list)
        self.peer_rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.costs: list[GemmCosts] = []
        self.lanes: dict[int, float] = {}

    def run(
        self, budget: Budget, reserved_s: float, keep: Callable[[dict[str, object]], None]
    ) -> None:
        """As many rounds as planned, or as fit: one at least; `keep` gets the figures so far."""
        self._learn()
        weights = self.bench.host.runner.decoder.weights
        self.lanes = {streams: lanes_eta(weights, streams) for streams in STREAMS}
        for place in range(self.plan.rounds):
            began_s = time.perf_counter()
            self._round()
            keep(self.figures())
            took_s = time.perf_counter() - began_s
            print(f"round {place + 1} of {self.plan.rounds}: {took_s:.0f} s", flush=True)
            if not budget.fits(took_s, reserved_s):
                break

    def figures(self) -> dict[str, object]:
        """Everything that the rounds came to."""
        return {
            "rounds": len(self.costs),
            "tandem": {name: summary(rounds) for name, rounds in self.phases.items()},
            "peers": {name: peer_figures(rounds) for name, rounds in self.peer_rounds.items()},
            "ratios": ratios(self.phases, self.peer_rounds),
            "both": {
                cell_name(*key): cell_figures(rounds) | self._cell_context(key, rounds)
                for key, rounds in sorted(self.cells.items())
            },
            "gemm": gemm_figures(self.costs, self.lanes),
            "law": self._law(),
        }

    def _learn(self) -> None:
        """Let the latency law meet every kind of step before anything is measured."""
        self.bench.run(None, 1, LEARNING)
        for streams in ORDER:
            self.bench.run(Load(streams, ADAPTERS), 1, LEARNING)

    def _round(self) -> None:
        self.costs.append(measure_gemm_costs(self.bench.host.runner.decoder.weights))
        for streams in ORDER:
            self._cells(streams)
        self._against_peers()

    def _cells(self, streams: int) -> None:
        """Both under each target, with inference alone before and training alone in between."""
        load, first, second = Load(streams, ADAPTERS), *TARGETS
        inference = self._alone(load, 0)
        both = {first: self._both(load, inference, first)}
        training = self._alone(None, 1)
        both[second] = self._both(load, inference, second)
        for factor, result in both.items():
            targets = targets_of(inference, factor)
            cell = CellRound(result, inference, training, targets)
            self.cells[streams, factor].append(cell)
        if streams == PEER_STREAMS:
            self.phases["inference, 4 adapters"].append(inference)
            self.phases["training, 1 job"].append(training)

    def _alone(self, load: Load | None, jobs: int) -> PhaseResult:
        self.bench.set_targets(NO_TARGETS)
        return self.bench.run(load, jobs, self.plan.alone)

    def _both(self, load: Load, inference: PhaseResult, factor: float) -> PhaseResult:
        self.bench.set_targets(targets_of(inference, factor))
        return self.bench.run(load, 1, self.plan.both)

    def _against_peers(self) -> None:
        self.phases["inference, no adapter"].append(self._alone(Load(PEER_STREAMS, 0), 0))
        self.phases["training, 3 jobs"].append(self._alone(None, 3))
        for name, peer in self.peers.items():
            self.peer_rounds[name].append(peer.round(self.plan.peer_seconds))
        if VLLM_LORA in self.peers:
            result = round_beside(self.peers[VLLM_LORA], self.peers[PEFT], self.plan.beside_seconds)
            self.peer_rounds[BESIDE].append(result)

    def _cell_context(self, key: tuple[int, float], rounds: list[CellRound]) -> dict[str, object]:
        """What stands beside a cell: the bound of GEMMs alone, and two programs side by side."""
        streams, factor = key
        context: dict[str, object] = {
            "gemm_bound": spread([costs.bound(streams, factor) for costs in self.costs])
        }
        if streams == PEER_STREAMS and BESIDE in self.peer_rounds:
            both = [cell.both for cell in rounds]
            context["product_over_beside"] = product_ratio(both, self.peer_rounds[BESIDE])
        return context

    def _law(self) -> dict[str, object]:
        """Error and noise by kind of phase."""
        figures: dict[str, object] = {
            name: law_figures([phase.steps for phase in phases])
            for name, phases in self.phases.items()
        }
        for key, rounds in sorted(self.cells.items()):
            figures[cell_name(*key)] = law_figures([cell.both.steps for cell in rounds])
        return figures


def cell_name(streams: int, factor: float) -> str:
    """A cell's name in the results."""
    return f"{streams} stream{'s' * (streams > 1)}, {factor:g}x"
