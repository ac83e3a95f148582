"""Text to tokens, with special tokens only where the template wrote them.

The tokenizer runs in the mode that takes special tokens' texts for plain text. Each special token
has a stand-in beside it: an added token of the same flags whose text holds a secret drawn at start,
so nobody can write it. Putting stand-ins where the template wrote specials, encoding once and
swapping the ids back gives what the tokenizer would give, spaces and merges included.
"""

from __future__ import annotations

import json
import secrets
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from scheduler.text.spelling import Spelling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.text.specials import Specials


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A rendered prompt as tokens.

    Attributes:
        token_ids: the tokens.
        starts: where each begins in the text that was encoded.
        cuts: where the wanted cuts of the prompt lie in that text; no token crosses one.
    """

    token_ids: list[int]
    starts: list[int]
    cuts: list[int]


class PromptEncoder:
    """The encoding half of a tokenizer; never changed after its construction."""

    def __init__(self, tokenizer_json: Mapping[str, Any], specials: Specials) -> None:
        """Build the plain-text tokenizer and its stand-ins.

        Raises:
            ValueError: `tokenizers` cannot read the file.
        """
        bare = {**tokenizer_json, "post_processor": None, "truncation": None, "padding": None}
        try:
            self.tokenizer = Tokenizer.from_str(json.dumps(bare))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"tokenizer.json cannot be read: {error}.") from error
        self._specials = specials
        self.ids = self._file_specials()
        self.spelling = Spelling(self.tokenizer, tokenizer_json.get("decoder"))
        unk = tokenizer_json.get("model", {}).get("unk_token")
        unk_id = self.tokenizer.token_to_id(unk) if isinstance(unk, str) else None
        self._forbidden = frozenset(self.ids.values()) - {unk_id}
        self._add_stand_ins(secrets.token_hex(16))
        self.tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        """Plain text to tokens."""
        return self._swap_back(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, rendered: str, marker: str) -> list[int]:
        """A template's output to tokens; `marker` breaks special tokens' texts in it."""
        return self.encode(self._stand_in(rendered, marker))

    def encode_cut(self, rendered: str, marker: str, cuts: Sequence[int]) -> EncodedPrompt:
        """A template's output to tokens that end at each of `cuts`.

        Args:
            rendered: the text, with `marker` inside what tenants wrote.
            marker: the character that breaks special tokens' texts.
            cuts: ascending places in `rendered`.
        """
        edges = [0, *cuts, len(rendered)]
        segments = [self._stand_in(rendered[a:b], marker) for a, b in pairwise(edges)]
        encoding = self.tokenizer.encode("".join(segments), add_special_tokens=False)
        crossed = _crossed(_ends(segments), encoding.offsets)
        if any(crossed):
            segments = [
                segment + self._cut_text if is_crossed else segment
                for segment, is_crossed in zip(segments, [*crossed, False], strict=True)
            ]
            encoding = self.tokenizer.encode("".join(segments), add_special_tokens=False)
        ids: list[int] = []
        starts: list[int] = []
        for token_id, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            meant = self._meant(token_id) if token_id in self._changed else [token_id]
            ids += meant
            starts += [start] * len(meant)
        return EncodedPrompt(ids, starts, _ends(segments))

    def _stand_in(self, segment: str, marker: str) -> str:
        """Put stand-ins where the template wrote special tokens, then drop the markers."""
        swapped = self._specials.pattern.sub(lambda match: self._stand_ins[match[0]], segment)
        return swapped.replace(marker, "")

    def _swap_back(self, ids: list[int]) -> list[int]:
        if self._changed.isdisjoint(ids):
            return ids
        swapped: list[int] = []
        for token_id in ids:
            swapped += self._meant(token_id) if token_id in self._changed else (token_id,)
        return swapped

    def _meant(self, token_id: int) -> list[int]:
        """A stand-in's special token; for a special one that plain text produced, its letters."""
        if token_id in self._swaps:
            return self._swaps[token_id]
        return self.spelling.letters(self.spelling.token_bytes(token_id).decode())

    def _file_specials(self) -> dict[str, int]:
        """Tell the tokenizer of every special token that it has, and return their ids."""
        ids = {text: self.tokenizer.token_to_id(text) for text in self._specials.texts}
        known = {text: token_id for text, token_id in ids.items() if token_id is not None}
        added = self.tokenizer.get_added_tokens_decoder()
        for text, token_id in known.items():
            token = added.get(token_id) or AddedToken(text, normalized=False)
            if not token.special:
                token.special = True
                self.tokenizer.add_special_tokens([token])
        return known

    def _add_stand_ins(self, secret: str) -> None:
        flags = {t.content: t for t in self.tokenizer.get_added_tokens_decoder().values()}
        self._stand_ins = {text: f"{secret}{i:06d}" for i, text in enumerate(self.ids)}
        self._cut_text = f"{secret}cut"
        self.tokenizer.add_tokens(
            [
                AddedToken(
                    stand_in,
                    lstrip=flags[text].lstrip,
                    rstrip=flags[text].rstrip,
                    normalized=flags[text].normalized,
                    special=False,
                )
                for text, stand_in in self._stand_ins.items()
            ]
            + [AddedToken(self._cut_text, normalized=False, special=False)]
        )
        self._swaps = {
            self._id_of(stand_in): [self.ids[text]] for text, stand_in in self._stand_ins.items()
        }
        self._swaps[self._id_of(self._cut_text)] = []
        self._changed = self._forbidden | self._swaps.keys()

    def _id_of(self, text: str) -> int:
        token_id = self.tokenizer.token_to_id(text)
        assert token_id is not None, "a token that was just added has an id"
        return token_id


def _ends(segments: list[str]) -> list[int]:
    """Where each segment but the last one ends."""
    return list(accumulate(map(len, segments[:-1])))


def _crossed(cuts: list[int], offsets: list[tuple[int, int]]) -> list[bool]:
    """For each cut: whether a token begins before it and ends after it."""
    if not offsets:
        return [False] * len(cuts)
    starts = [start for start, _ in offsets]
    last_before = [bisect_left(starts, cut) - 1 for cut in cuts]
    return [i >= 0 and offsets[i][1] > cut for i, cut in zip(last_before, cuts, strict=True)]
