"""Pieces add up to the whole, and no piece breaks a character."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.text.detokenizer import Detokenizer

quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def pieces_of(tokenizer: Any, ids: list[int], **options: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*[detokenizer.push(token_id) for token_id in ids], detokenizer.flush()]


@quick
@given(ids=st.lists(st.integers(0, 639), max_size=40), skip_special=st.booleans())
def test_pieces_add_up_to_the_decoded_whole(
    family: Any, ids: list[int], skip_special: bool
) -> None:
    pieces = pieces_of(family.ours, ids, skip_special=skip_special)
    assert "".join(pieces) == family.ours.decode(ids, skip_special=skip_special)


@quick
@given(text=st.text(max_size=30))
def test_text_streams_back_whole_without_replacement_characters(family: Any, text: str) -> None:
    clean = text.replace("\ufffd", "").replace("\u2581", "")
    pieces = pieces_of(family.ours, family.ours.encode(clean))
    assert not any("\ufffd" in piece for piece in pieces)
    # A SentencePiece-like vocabulary cannot tell a text's first space from none.
    assert "".join(pieces).lstrip(" ") == clean.lstrip(" ")


@quick
@given(text=st.text(max_size=30))
def test_the_whole_is_what_tokenizers_decodes(family: Any, text: str) -> None:
    ids = family.ours.encode(text)
    expected = family.oracle.backend_tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(family.ours, ids)) == expected


@pytest.mark.parametrize("character", ["é", "你", "🙂"])
def test_a_character_of_many_tokens_comes_with_its_last_one(family: Any, character: str) -> None:
    ids = [i for byte in character.encode() for i in byte_token(family, byte)]
    assert pieces_of(family.ours, ids) == [*[""] * (len(ids) - 1), character, ""]


def byte_token(family: Any, byte: int) -> list[int]:
    named = family.oracle.convert_tokens_to_ids(f"<0x{byte:02X}>")
    if named is not None and named != family.oracle.unk_token_id:
        return [named]
    return [i for i in range(420) if family.ours.token_bytes(i) == bytes([byte])][:1]


def test_an_unfinished_character_is_marked_at_the_end(family: Any) -> None:
    ids = [i for byte in "🙂".encode()[:3] for i in byte_token(family, byte)]
    assert pieces_of(family.ours, ids) == ["", "", "", "\ufffd"]


def test_a_leading_space_goes_only_at_the_start_of_a_text(llama: Any) -> None:
    ids = llama.ours.encode("Hello there", add_bos=False)
    assert "".join(pieces_of(llama.ours, ids)) == "Hello there"
    assert "".join(pieces_of(llama.ours, ids, continues_text=True)) == " Hello there"


def test_special_tokens_show_only_when_asked_for(chatml: Any) -> None:
    ids = chatml.ours.encode_chat([{"role": "user", "content": "hi"}])
    assert "".join(pieces_of(chatml.ours, ids)) == "user\nhi\nassistant\n"
    assert "".join(pieces_of(chatml.ours, ids, skip_special=False)) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
