"""Runs the smallest pieces of training: one layer, or the loss, of one token range of a pack."""

from __future__ import annotations

from collections.abc import Callable

from scheduler.policy.pack_cursor import Direction, Unit
from workers.activations import ActivationSpec
from workers.active_job import ActiveJob
from workers.backward_unit import BackwardUnit
from workers.batch import ForwardBatch, TrainWindow
from workers.decoder import Decoder
from workers.decoder_backward import DecoderBackward
from workers.loss import window_loss


class UnitRunner:
    """Runs units of any job's pack against a decoder."""

    def __init__(self, decoder: Decoder, spec: ActivationSpec) -> None:
        self.decoder = decoder
        self.backward = DecoderBackward(decoder, spec)
        self._by_direction: dict[Direction, Callable[[ActiveJob, Unit], None]] = {
            Direction.FORWARD: self._forward,
            Direction.LOSS: self._loss,
            Direction.RECOMPUTE: self._recompute,
            Direction.BACKWARD: self._backward,
        }

    def run(self, active: ActiveJob, unit: Unit) -> None:
        """Run the next unit of a job's pack; its cursor does not move."""
        self._by_direction[unit.direction](active, unit)

    def _forward(self, active: ActiveJob, unit: Unit) -> None:
        pack = active.running_pack()
        if active.window is None or pack.hidden is None:
            active.window = self._unit_batch(active, unit)
            pack.hidden = self.decoder.embed(active.window.token_ids)
        pack.hidden = self.decoder.forward_layer(unit.layer, pack.hidden, active.window)
        if unit.layer + 1 == self.decoder.config.num_layers:
            pack.keep_hidden(unit.start, pack.hidden)
            active.window = pack.hidden = None

    def _unit_batch(self, active: ActiveJob, unit: Unit) -> ForwardBatch:
        pack = active.running_pack()
        window = TrainWindow(pack, unit.start, unit.stop, 0, pack.layers)
        shared = active.range(unit.start, unit.stop, self.decoder.config)
        cos, sin = self.decoder.rotary.at(pack.tokens.positions[unit.start : unit.stop])
        return ForwardBatch(
            token_ids=pack.tokens.token_ids[unit.start : unit.stop],
            cos=cos,
            sin=sin,
            adapters=shared.adapters,
            windows=[window],
            groups=shared.groups,
        )

    def _backward(self, active: ActiveJob, unit: Unit) -> None:
        self.backward.run(self._backward_of(active, unit))

    def _recompute(self, active: ActiveJob, unit: Unit) -> None:
        self.backward.recompute(self._backward_of(active, unit))

    def _backward_of(self, active: ActiveJob, unit: Unit) -> BackwardUnit:
        return BackwardUnit(
            active.running_pack(),
            unit.layer,
            unit.start,
            unit.stop,
            active.job.slot.columns,
            active.job.term_grads,
            active.range(unit.start, unit.stop, self.decoder.config),
        )

    def _loss(self, active: ActiveJob, unit: Unit) -> None:
        """The loss of tokens whose hidden rows are there; their gradient takes its place."""
        pack, tokens = active.running_pack(), slice(unit.start, unit.stop)
        sums, grad = window_loss(
            self.decoder,
            pack.grad_out[tokens],
            pack.tokens,
            unit.start,
            wants_grad=pack.cursor.trains,
        )
        pack.loss_sums += sums
        if pack.cursor.trains:
            pack.grad_out[tokens] = grad
