"""Ours against transformers: equal on ordinary text, safer on special tokens' texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.domain.errors import InvalidInput
from scheduler.text.tokenizer import load_tokenizer

ordinary = st.text(
    st.sampled_from("abc XYZ 019 .,\n\t  üß你好🙂|[]{}_/▁'\"") | st.characters(codec="utf-8"),
    max_size=40,
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
fragments = st.sampled_from([*SPECIALS, "<", "|", ">", "<|", "|>", "<|im_", "start|>", "s>", "</"])
hostile = st.lists(fragments | ordinary, max_size=6).map("".join)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def chat(*contents: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def is_ordinary(family: Any, *texts: str) -> bool:
    return not any(special in text for text in texts for special in family.ours._specials.texts)


@quick
@given(first=ordinary, second=ordinary, third=ordinary)
def test_chats_encode_as_transformers_encodes_them(
    family: Any, first: str, second: str, third: str
) -> None:
    messages = chat(first, second, third)
    assert family.ours.encode_chat(messages) == family.oracle_chat(messages)


def rendered(tokenizer: Any, messages: Any, **how: Any) -> str:
    """What the template writes, without the mark before special tokens' texts."""
    said = tokenizer.conversation(messages)
    text: str = said.render(**{"add_generation_prompt": True} | how)
    return text.replace(said.marker, "")


def test_the_rendered_chat_is_the_one_of_transformers(family: Any) -> None:
    messages = [{"role": "system", "content": "Be <kind>."}, *chat("Hi & bye", "Ok", "x")]
    for prompt in (True, False):
        assert rendered(
            family.ours, messages, add_generation_prompt=prompt
        ) == family.oracle.apply_chat_template(
            messages, add_generation_prompt=prompt, tokenize=False
        )


def test_tools_and_tool_calls_encode_as_transformers_encodes_them(chatml: Any) -> None:
    tools = [{"type": "function", "function": {"name": "find", "description": "Grüße <b>"}}]
    arguments = {"city": "München", "n": 3}
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    messages = [
        *chat("Where?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "there"},
    ]
    expected = chatml.oracle_chat(messages, tools=tools)
    assert chatml.ours.encode_chat(messages, tools=tools) == expected
    call["function"] = {"name": "find", "arguments": json.dumps(arguments)}
    assert chatml.ours.encode_chat(messages, tools=tools) == expected


def test_template_special_tokens_that_do_not_come_first_keep_their_neighbours(llama: Any) -> None:
    messages = chat(" lead", "mid ", "  two  ")
    ids = llama.ours.encode_chat(messages)
    assert ids == llama.oracle_chat(messages)
    assert ids.count(llama.ours.bos_id) == 1


@quick
@given(texts=st.lists(hostile, min_size=1, max_size=5))
def test_only_the_template_writes_special_tokens(family: Any, texts: list[str]) -> None:
    ids = family.ours.encode_chat(chat(*texts))
    blank = family.ours.encode_chat(chat(*["a"] * len(texts)))
    specials = family.ours.special_ids - {family.ours.eos_id, family.ours._encoder.ids.get("<unk>")}
    assert [i for i in ids if i in specials] == [i for i in blank if i in specials]
    assert ids.count(family.ours.eos_id) == blank.count(family.ours.eos_id)


@quick
@given(text=hostile)
def test_hostile_content_still_says_what_it_says(chatml: Any, text: str) -> None:
    ids = chatml.ours.encode_chat(chat(text))
    expected = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert chatml.ours.decode(ids, skip_special=False) == expected


@pytest.mark.parametrize("special", SPECIALS)
def test_special_tokens_in_tools_names_and_calls_are_plain_text(chatml: Any, special: str) -> None:
    arguments = json.dumps({special: [special, {"deep": special}]})
    function = {"name": f"f{special}", "arguments": arguments}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": special}], "name": special},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]},
        {"role": "tool", "content": special, "tool_call_id": special},
    ]
    tools = [{"type": "function", "function": {"name": "g", special: special}}]
    ids = chatml.ours.encode_chat(messages, tools=tools)
    assert ids.count(chatml.ours._encoder.ids["<|im_start|>"]) == 5
    assert ids.count(chatml.ours.eos_id) == 4
    assert chatml.ours.decode(ids, skip_special=False).count(special) == 8 + {
        "<|im_start|>": 5,
        "<|im_end|>": 4,
    }.get(special, 0)


def test_two_parts_cannot_join_into_a_special_token(chatml: Any, tmp_path: Path) -> None:
    glued = "{% for message in messages %}{{ message.content }}{% endfor %}im_start|>"
    for file in chatml.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(glued)
    tokenizer = load_tokenizer(tmp_path)
    for texts in (["<|im_", "end|>"], ["x <|"], ["<|im_s", "tart|", ">"], ["<", "|", "im_end|>"]):
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode_chat(chat(*texts)))


def test_noncharacters_in_content_survive(chatml: Any) -> None:
    text = "\ufdd0<|im_end|>\ufdd1"
    ids = chatml.ours.encode_chat(chat(text))
    assert text in chatml.ours.decode(ids)
    with pytest.raises(InvalidInput, match="noncharacter"):
        chatml.ours.encode_chat(chat("".join(map(chr, range(0xFDD0, 0xFDF0)))))


@quick
@given(text=ordinary)
def test_plain_text_encodes_as_transformers_encodes_it(family: Any, text: str) -> None:
    if is_ordinary(family, text):
        assert family.ours.encode(text) == list(family.oracle(text)["input_ids"])
        bare = family.oracle(text, add_special_tokens=False)["input_ids"]
        assert family.ours.encode(text, add_bos=False) == list(bare)


@quick
@given(text=hostile)
def test_plain_text_never_becomes_a_special_token(family: Any, text: str) -> None:
    allowed = {family.ours._encoder.ids.get("<unk>")}
    ids = family.ours.encode(text, add_bos=False)
    assert not (set(ids) - allowed) & family.ours.special_ids


def test_a_special_token_in_the_models_own_vocabulary_is_spelled_out(families: Any) -> None:
    # BPE with this merge builds "</s>" out of plain text, whatever the added tokens say.
    state = json.loads(families["llama"].ours._encoder.tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["special"]]
    vocab = state["model"]["vocab"]
    merged = [("<", "/"), ("s", ">"), ("</", "s>")]
    for letter in "</s>":
        vocab.setdefault(letter, len(vocab))
    for left, right in merged:
        vocab.setdefault(left + right, len(vocab))
    state["model"]["merges"] = [list(pair) for pair in merged] + state["model"]["merges"]
    folder = families["llama"].folder.parent / "merging"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(state))
    for name in ("tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((families["llama"].folder / name).read_bytes())
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("a</s>b", add_bos=False)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "a</s>b"


def test_ordinary_text_comes_back_from_its_tokens(family: Any) -> None:
    for text in ("Hello there", "a  b\n\n c", "Grüße 你好 🙂", "x" * 50, ""):
        assert family.ours.decode(family.ours.encode(text)) == text


@quick
@given(ids=st.lists(st.integers(0, 419), max_size=30))
def test_byte_level_tokens_decode_as_in_tokenizers(chatml: Any, ids: list[int]) -> None:
    backend = chatml.oracle.backend_tokenizer
    assert chatml.ours.decode(ids) == backend.decode(ids, skip_special_tokens=True)


def test_token_texts_and_bytes_are_those_of_the_text(family: Any) -> None:
    ids = family.ours.encode("Grüße 🙂", add_bos=False)
    spelled = b"".join(map(family.ours.token_bytes, ids))
    assert spelled.decode().lstrip(" ") == "Grüße 🙂"
    partial = family.ours.token_text(ids[-1])
    assert partial == "\ufffd"
    assert family.ours.token_bytes(630) == b""


def test_the_folders_numbers_are_read(llama: Any, chatml: Any) -> None:
    assert (llama.ours.vocab_size, llama.ours.max_model_len) == (640, 256)
    assert llama.ours.bos_id == llama.oracle.bos_token_id
    assert llama.ours.eos_ids == {llama.oracle.eos_token_id}
    assert chatml.ours.bos_id is None
    assert llama.ours.encode("a")[0] == llama.ours.bos_id
    assert llama.ours.encode("<s>a").count(llama.ours.bos_id) == 1


def copied(folder: Path, target: Path, **settings: Any) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return target


def test_generation_config_adds_ends_of_answers(chatml: Any, tmp_path: Path) -> None:
    folder = copied(chatml.folder, tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert load_tokenizer(folder).eos_ids == {0, 2}


def test_a_list_of_templates_gives_the_default_one(chatml: Any, tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    tokenizer = load_tokenizer(copied(chatml.folder, tmp_path, chat_template=named))
    assert rendered(tokenizer, chat("x")) == "yes"


def test_a_template_file_wins_over_the_setting(chatml: Any, tmp_path: Path) -> None:
    folder = copied(chatml.folder, tmp_path)
    (folder / "chat_template.jinja").write_text("own file")
    assert rendered(load_tokenizer(folder), chat("x")) == "own file"


def test_a_model_without_template_says_so(chatml: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(copied(chatml.folder, tmp_path, chat_template=None))
    with pytest.raises(InvalidInput, match="no chat template"):
        tokenizer.encode_chat(chat("x"))


def test_named_tokens_count_as_special_even_if_the_file_forgot(chatml: Any, tmp_path: Path) -> None:
    folder = copied(chatml.folder, tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    for token in state["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(state))
    ids = load_tokenizer(folder).encode("a<|im_end|>b")
    assert chatml.ours.eos_id not in ids


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{", "is not JSON"),
        ("tokenizer.json", "{}", "cannot be read"),
        ("config.json", "[]", "must hold a JSON object"),
        ("chat_template.jinja", "{% if %}", "does not compile"),
        ("chat_template.jinja", "x" * 70_000, "at most 65536 bytes"),
    ],
)
def test_a_broken_folder_is_one_clear_sentence(
    chatml: Any, tmp_path: Path, name: str, content: str | None, sentence: str
) -> None:
    folder = copied(chatml.folder, tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        load_tokenizer(folder)
