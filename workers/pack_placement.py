"""Where a pack of examples finds memory, and how much of its forward pass it then keeps."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.policy.pack_cursor import PackCursor
from workers.activations import ActivationSpec, SaveLevel
from workers.decoder import Decoder
from workers.pack_layout import PackLayout
from workers.train_pack import PackWork, TrainPack
from workers.training_memory import TrainingMemory

MIN_LOSS_TOKENS = 16  # below, reading the vocabulary's weights costs more than their products
LEVELS = (SaveLevel.FULL, SaveLevel.INPUTS, SaveLevel.WINDOW_OUTER)


@dataclass(frozen=True, slots=True)
class TrainerLimits:
    """Shapes and bounds of training.

    Attributes:
        pack_tokens: most tokens of a pack of several examples.
        window_tokens: rows of a forward window that runs apart from inference.
        range_tokens: rows of a backward unit.
    """

    max_jobs: int
    pack_tokens: int = 512
    window_tokens: int = 256
    range_tokens: int = 256


class PackPlacement:
    """Borrows memory for packs."""

    def __init__(
        self, decoder: Decoder, spec: ActivationSpec, limits: TrainerLimits, memory: TrainingMemory
    ) -> None:
        self.decoder = decoder
        self.spec = spec
        self.limits = limits
        self.memory = memory

    def fits(self, num_tokens: int) -> bool:
        """Whether a pack of so many tokens fits into all of training's memory at all."""
        smallest = self._layout(SaveLevel.WINDOW_OUTER, num_tokens, trains=True)
        return self.memory.blocks_for(smallest.num_bytes) <= self.memory.max_blocks

    def try_place(
        self, work: PackWork, room_blocks: int, share_blocks: int, *, is_fixed: bool
    ) -> TrainPack | None:
        """The pack in borrowed memory, at the fullest level that its share holds.

        Args:
            work: the pack.
            room_blocks: blocks that may be borrowed now.
            share_blocks: how many of them are the pack's fair share.
            is_fixed: it waits for that level's memory rather than keep less.
        """
        choices = self.choices(work, share_blocks)
        return self._borrow(work, choices[:1] if is_fixed else choices, room_blocks)

    def try_raise(self, work: PackWork, pack: TrainPack, room_blocks: int) -> TrainPack | None:
        """The same work at a fuller level in more of the memory; None where there is no room."""
        place = LEVELS.index(pack.level)
        choices = self.choices(work, room_blocks)
        fuller = [layout for layout in choices if LEVELS.index(layout.level) < place]
        return self._borrow(work, fuller, room_blocks)

    def choices(self, work: PackWork, share_blocks: int) -> list[PackLayout]:
        """Layouts within a share, fullest first; the smallest one if none is."""
        layouts = [
            self._layout(level, work.tokens.num_tokens, trains=work.trains) for level in LEVELS
        ]
        within = [
            layout for layout in layouts if self.memory.blocks_for(layout.num_bytes) <= share_blocks
        ]
        return within or layouts[-1:]

    def _borrow(
        self, work: PackWork, layouts: list[PackLayout], room_blocks: int
    ) -> TrainPack | None:
        """A pack in the first of the layouts that memory is found for."""
        for layout in layouts:
            num_blocks = self.memory.blocks_for(layout.num_bytes)
            loan = self.memory.try_borrow(num_blocks) if num_blocks <= room_blocks else None
            if loan is not None:
                cursor = self._cursor(work, layout.level)
                return TrainPack.within(loan, layout, work.tokens, cursor)
        return None

    def _layout(self, level: SaveLevel, num_tokens: int, *, trains: bool) -> PackLayout:
        return PackLayout(self.spec, level, num_tokens, self.decoder.config.num_layers, trains)

    def _cursor(self, work: PackWork, level: SaveLevel) -> PackCursor:
        return PackCursor.begin(
            work.tokens.num_tokens,
            self.decoder.config.num_layers,
            trains=work.trains,
            window_tokens=self.limits.window_tokens,
            range_tokens=self.limits.range_tokens,
            loss_tokens=self._loss_tokens(),
            is_window_outer=level is SaveLevel.WINDOW_OUTER,
            bounds=work.tokens.bounds,
        )

    def _loss_tokens(self) -> int:
        """Tokens whose loss costs about what a window costs in one layer."""
        config, window = self.decoder.config, self.limits.window_tokens
        layer = sum(
            linear.in_features * linear.out_features for linear in self.decoder.arena.linears
        )
        vocabulary = 2 * config.vocab_size * config.hidden_size  # forward and back
        return max(1, min(window, max(MIN_LOSS_TOKENS, window * layer // vocabulary)))
