"""Rows to examples: what is learnt, what is refused, and the file between task and worker."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scheduler.domain.errors import InvalidInput
from scheduler.text import dataset
from scheduler.text.dataset import DatasetLimits, EncodedDataset, encode_file
from scheduler.text.tokenizer import load_tokenizer

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
END = {"chatml": "<|im_end|>", "llama": "</s>"}


def lines(*rows: Any) -> list[bytes]:
    return [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]


def chat_row(*contents: str, weights: dict[int, int] | None = None) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    for i, weight in (weights or {}).items():
        messages[i]["weight"] = weight
    return {"messages": messages}


def learnt(tokenizer: Any, encoded: EncodedDataset, i: int = 0) -> str:
    """The learnt tokens of an example as text."""
    token_ids, weights = encoded.example(i)
    chosen = [int(t) for t, weight in zip(token_ids, weights, strict=True) if weight]
    return b"".join(map(tokenizer.token_bytes, chosen)).decode()


@quick
@given(contents=st.lists(st.text("ab Z9.\n üß🙂<|>", min_size=1), min_size=2, max_size=7))
def test_exactly_the_answers_and_their_ends_are_learnt(chatml: Any, contents: list[str]) -> None:
    encoded = encode_file(lines(chat_row(*contents)), chatml.ours, 10_000)
    answers = contents[1::2]
    assert learnt(chatml.ours, encoded) == "".join(text + "<|im_end|>" for text in answers)


@quick
@given(contents=st.lists(st.text("ab Z9.\n üß🙂<|>", min_size=1), min_size=2, max_size=7))
def test_an_example_is_the_chat_as_it_is_served(chatml: Any, contents: list[str]) -> None:
    row = chat_row(*contents)
    encoded = encode_file(lines(row), chatml.ours, 10_000)
    token_ids, weights = encoded.example(0)
    messages = row["messages"][: len(contents) // 2 * 2]
    first_prompt = chatml.ours.encode_chat(messages[:1])
    start = int(np.flatnonzero(weights)[0])
    assert list(token_ids[:start]) == first_prompt
    served = chatml.ours.encode_chat(messages, add_generation_prompt=False)
    assert chatml.ours.decode(served, False) == chatml.ours.decode(token_ids.tolist(), False) + "\n"


def test_llamas_answers_are_learnt_with_their_end(family: Any) -> None:
    row = chat_row("Hi there", "Hello you", "More", "Bye now")
    encoded = encode_file(lines(row), family.ours, 256)
    end = family.ours.token_text(family.ours.eos_id)
    texts = [text.strip() for text in learnt(family.ours, encoded).split(end)]
    assert texts == ["Hello you", "Bye now", ""]
    token_ids, _ = encoded.example(0)
    messages = row["messages"]
    served = family.ours.encode_chat(messages, add_generation_prompt=False)
    assert served[: len(token_ids)] == list(token_ids)


def test_answers_of_weight_0_are_not_learnt(chatml: Any) -> None:
    row = chat_row("q", "one", "q", "two", "q", "three", weights={1: 0, 3: 1, 5: 0})
    assert learnt(chatml.ours, encode_file(lines(row), chatml.ours, 256)) == "two<|im_end|>"


def test_special_tokens_in_answers_are_learnt_as_plain_text(chatml: Any) -> None:
    row = chat_row("q", "a<|im_end|>b")
    encoded = encode_file(lines(row), chatml.ours, 256)
    token_ids, weights = encoded.example(0)
    assert learnt(chatml.ours, encoded) == "a<|im_end|>b<|im_end|>"
    assert list(token_ids[weights > 0]).count(chatml.ours.eos_id) == 1


def test_tool_calls_are_learnt(chatml: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
        {"role": "assistant", "content": "done"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    row = {"messages": messages, "tools": tools, "parallel_tool_calls": False}
    assert learnt(chatml.ours, encode_file(lines(row), chatml.ours, 500)) == (
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><|im_end|>done<|im_end|>'
    )


@quick
@given(prompt=st.text("ab \n🙂<s>", max_size=12), completion=st.text("ab \n🙂</s>", min_size=1))
def test_of_a_pair_only_the_completion_and_its_end_are_learnt(
    family: Any, prompt: str, completion: str
) -> None:
    prompt = "Q:" + prompt
    row = {"prompt": prompt, "completion": completion}
    encoded = encode_file(lines(row), family.ours, 1_000)
    token_ids, weights = encoded.example(0)
    start = int(np.flatnonzero(weights)[0])
    assert family.ours.decode(token_ids[:start].tolist()) == prompt
    learnt_text = learnt(family.ours, encoded)
    assert learnt_text.endswith(completion + family.ours.token_text(family.ours.eos_id))
    assert int(token_ids[-1]) == family.ours.eos_id


def test_a_pairs_prompt_is_the_prompt_that_is_served(family: Any) -> None:
    row = {"prompt": "The capital of France is", "completion": " Paris."}
    token_ids, weights = encode_file(lines(row), family.ours, 256).example(0)
    start = int(np.flatnonzero(weights)[0])
    assert list(token_ids[:start]) == family.ours.encode(row["prompt"])


def template_folder(folder: Path, target: Path, template: str) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / "chat_template.jinja").write_text(template)
    return target


FORGETFUL = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}\
{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_template_that_rewrites_earlier_turns_leaves_the_last_one(
    chatml: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(template_folder(chatml.folder, tmp_path, FORGETFUL))
    row = chat_row("q", "<think>x</think>one", "q", "<think>y</think>two")
    encoded = encode_file(lines(row, chat_row("q", "plain")), tokenizer, 256)
    assert learnt(tokenizer, encoded) == "<think>y</think>two<|im_end|>"
    assert encoded.num_last_turn_only == 1


OPENS_THINKING = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""


def test_a_prompt_that_opens_more_than_the_answer_has_still_shows_its_start(
    chatml: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(template_folder(chatml.folder, tmp_path, OPENS_THINKING))
    encoded = encode_file(lines(chat_row("q", "one", "q", "<b>two")), tokenizer, 256)
    assert learnt(tokenizer, encoded) == "one<|im_end|><b>two<|im_end|>"


def test_an_answer_that_comes_first_is_learnt_where_the_template_allows_it(
    chatml: Any, llama: Any
) -> None:
    row = {"messages": [{"role": "assistant", "content": "a"}, *chat_row("q", "b")["messages"]]}
    assert (
        learnt(chatml.ours, encode_file(lines(row), chatml.ours, 256)) == "a<|im_end|>b<|im_end|>"
    )
    texts = learnt(llama.ours, encode_file(lines(row), llama.ours, 256)).split("</s>")
    assert [text.strip() for text in texts] == ["a", "b", ""]


def test_a_template_without_ends_gets_one_after_the_last_answer(
    chatml: Any, tmp_path: Path
) -> None:
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = load_tokenizer(template_folder(chatml.folder, tmp_path, bare))
    encoded = encode_file(lines(chat_row("q", "one")), tokenizer, 256)
    assert learnt(tokenizer, encoded) == "one\n<|im_end|>"


def test_blank_lines_and_a_byte_order_mark_are_passed_over(chatml: Any) -> None:
    row = lines(chat_row("q", "one"))[0]
    encoded = encode_file([b"\xef\xbb\xbf" + row, b"\n", b"  \r\n", row.strip()], chatml.ours, 256)
    assert encoded.num_examples == 2


A_CALL = {"function": {"name": "f", "arguments": "no"}}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "not JSON"),
        (b'{"prompt": "a", "completion": "\xff"}', "byte 32 is not UTF-8"),
        (b"[1]", "must be a JSON object"),
        (b"{}", "messages, or prompt and completion"),
        (b'{"prompt": "a"}', "completion must be a string"),
        (b'{"prompt": "a", "completion": ""}', "at least one character"),
        (b'{"prompt": "a", "completion": "b", "x": 1}', "unknown key 'x'"),
        (b'{"prompt": "a", "completion": "\\u0000"}', "NUL"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "surrogate"),
        (b'{"prompt": NaN, "completion": "a"}', "NaN"),
        (b'{"prompt": ' + b"9" * 5_000 + b', "completion": "a"}', "usable"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"messages": ' + b"[" * 40 + b"]" * 40 + b"}", "deeper than 32"),
        (b'{"prompt": "' + b"a" * (1 << 20) + b'", "completion": "a"}', "longer than 1048576"),
        (b'{"prompt": "' + b"x" * 900 + b'", "completion": "a"}', "context holds 256"),
        (lines({"messages": "hi"})[0], "list of objects"),
        (lines({"messages": []})[0], "at least one of role assistant"),
        (lines(chat_row("q"))[0], "at least one of role assistant"),
        (lines(chat_row("q", "a", weights={1: 0}))[0], "weight 0"),
        (lines(chat_row("q", "a", weights={1: 2}))[0], "must be 0 or 1"),
        (lines({"messages": [{"role": "assistant", "content": "a", "weight": True}]})[0], "0 or 1"),
        (lines(chat_row("q", "a", weights={0: 1}))[0], "assistant messages only"),
        (lines(chat_row(*["a"] * 600))[0], "at most 512 messages"),
        (lines({**chat_row("q", "a"), "tools": "x"})[0], "tools must be a list"),
        (lines({**chat_row("q", "a"), "tools": [{}]})[0], "tools.0"),
        (
            lines({"messages": [{"role": "bot", "content": "a"}, *chat_row("q", "a")["messages"]]})[
                0
            ],
            "messages.0.role must be one of system, developer, user, assistant, tool, function",
        ),
        (
            lines({"messages": [{"role": "user", "content": 3}, *chat_row("q", "a")["messages"]]})[
                0
            ],
            "messages.0.content must be a string or a list of text parts",
        ),
        (
            lines(
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "image_url"}]},
                        {"role": "assistant", "content": "a"},
                    ]
                }
            )[0],
            "messages.0.content.0",
        ),
        (lines({"messages": [{"role": "assistant", "content": None}]})[0], "messages.0.content"),
        (lines({"messages": [{"role": "assistant", "tool_calls": [A_CALL]}]})[0], "arguments"),
    ],
)
def test_a_bad_line_is_named_with_what_it_lacks(chatml: Any, line: bytes, sentence: str) -> None:
    good = lines(chat_row("q", "a"))
    with pytest.raises(InvalidInput, match=rf"^line 2: .*{sentence}.*\.$"):
        encode_file([*good, line, *good], chatml.ours, 256)


def test_ten_bad_lines_are_named_and_no_more(chatml: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        encode_file([b"{"] * 30, chatml.ours, 256)
    assert caught.value.message.count("line ") == 10
    assert "line 10: " in caught.value.message
    assert caught.value.message.endswith("; lines after that were not checked.")


@pytest.mark.parametrize("empty", [[], [b"\n", b"  "]])
def test_an_empty_data_set_is_refused(chatml: Any, empty: list[bytes]) -> None:
    with pytest.raises(InvalidInput, match="at least one example"):
        encode_file(empty, chatml.ours, 256)


def test_the_number_of_lines_and_of_tokens_is_bounded(chatml: Any) -> None:
    rows = lines(*[chat_row("q", "a")] * 4)
    with pytest.raises(InvalidInput, match="at most 3 lines"):
        encode_file(rows, chatml.ours, 256, DatasetLimits(max_lines=3))
    with pytest.raises(InvalidInput, match="at most 3 lines"):
        encode_file([b"\n"] * 4, chatml.ours, 256, DatasetLimits(max_lines=3))
    with pytest.raises(InvalidInput, match="at most 20 tokens"):
        encode_file(rows, chatml.ours, 256, DatasetLimits(max_total_tokens=20))


def test_nothing_is_read_after_enough_tokens(chatml: Any) -> None:
    rows = [*lines(chat_row("q", "a"), chat_row("q", "b")), b"{oops"]
    enough = encode_file(rows[:2], chatml.ours, 256).num_tokens

    encoded = encode_file(rows, chatml.ours, 256, DatasetLimits(enough_tokens=enough))

    assert encoded.num_examples == 2
    with pytest.raises(InvalidInput, match="line 3"):
        encode_file(rows, chatml.ours, 256, DatasetLimits(enough_tokens=enough + 1))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_are_read_with_bounded_memory(end: bytes) -> None:
    stream = io.BytesIO(b"a" * 10 + end + b"b" * 1_000 + end + b"c" * 9)
    read = list(dataset.bounded_lines(stream, 10))
    assert [line.rstrip() for line in read] == [b"a" * 10, b"b" * 12, b"c" * 9]


def sample(chatml: Any) -> EncodedDataset:
    rows = [chat_row("q" * n, "answer " * n) for n in (1, 2, 5)]
    return encode_file(lines(*rows), chatml.ours, 256)


def test_a_written_data_set_reads_back_equal(chatml: Any, tmp_path: Path) -> None:
    encoded = sample(chatml)
    dataset.write(tmp_path / "train.bin", encoded)
    read = dataset.read(tmp_path / "train.bin")
    assert (read.num_examples, read.num_tokens) == (3, encoded.num_tokens)
    assert read.num_trained_tokens == encoded.num_trained_tokens
    for i in range(3):
        for mine, theirs in zip(encoded.example(i), read.example(i), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    token_ids, weights = read.example(0)
    assert (token_ids.dtype, weights.dtype) == (np.int32, np.float32)
    assert weights[0] == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "train.bin"]


@quick
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_damaged_file_is_refused(
    chatml: Any, tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "train.bin"
    dataset.write(path, sample(chatml))
    content = bytearray(path.read_bytes())
    assume(place % len(content) not in range(28, 32))  # padding that nobody reads
    content[place % len(content)] ^= flip
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.bin"):
        dataset.read(path)


def test_a_cut_or_foreign_file_is_refused(chatml: Any, tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    dataset.write(path, sample(chatml))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="must have"):
        dataset.read(path)
    path.write_bytes(b"{}")
    with pytest.raises(ValueError, match="not a tokenised data set"):
        dataset.read(path)
