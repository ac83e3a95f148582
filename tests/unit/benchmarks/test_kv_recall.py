"""The examiner of KV policies: against an oracle, against chance, and against the engine itself."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.bootstrap import Resamples
from benchmarks.kv_contenders import CONTENDERS
from benchmarks.kv_examiner import WHOLE, Ask, Examiner, Marks, Way, asks, mark
from benchmarks.kv_reader import Continued, Reader
from benchmarks.kv_report import report
from benchmarks.kv_retrieval import BASE, MODEL, Answers
from benchmarks.recall_model import Course, Stage, Trainee, new_model
from benchmarks.recall_task import TASKS, VOCAB, Papers
from scheduler.domain.messages import Generate
from scheduler.domain.request import BegunAnswer, KvPolicyChoice, RequestBody, SamplingParams
from workers.engine import EngineLoop
from workers.kv_policies import KV_POLICIES
from workers.settings import EngineSettings

CONTEXT = 96  # a table of all facts fits


def papers_of(task: str, rows: int = 2) -> Papers:
    return TASKS[task](np.random.default_rng(3), rows, CONTEXT)


def marked(ask: Ask, papers: Papers, logits: torch.Tensor) -> Marks:
    sheet = Marks(ask.name, "", 1.0)
    for row in torch.from_numpy(papers.tokens_RN):
        continued = Continued(logits if len(logits) else oracle(row, ask.start), 0)
        mark(sheet, ask, row, continued, oracle(row, ask.start))
    return sheet


def oracle(tokens: torch.Tensor, start: int) -> torch.Tensor:
    """Logits of one who knows each token that follows."""
    return 20.0 * F.one_hot(tokens[start + 1 :], VOCAB)


@pytest.mark.parametrize("task", TASKS)
def test_an_oracle_is_always_right_and_a_guesser_hardly_ever(task: str) -> None:
    papers = papers_of(task, rows=40)
    torch.manual_seed(0)

    for ask in asks(papers):
        guesses = torch.randn(papers.tokens_RN.shape[1] - ask.start - 1, VOCAB)
        known, guessed = marked(ask, papers, torch.zeros(0)), marked(ask, papers, guesses)
        assert set(known.exact) == {1.0}
        assert max(known.divergence) == 0
        assert np.mean(guessed.exact) < 0.1
        assert min(guessed.divergence) > 1


def test_answers_are_asked_before_and_after_the_question_is_known() -> None:
    ways = {ask.name: ask for ask in asks(papers_of("multikey"))}

    assert ways["agnostic"].start == CONTEXT
    assert len(ways["agnostic"].answers) == 8
    assert ways["aware"].answers == (range(CONTEXT + 3, CONTEXT + 5),)  # its first token is apart
    assert len(ways["second"].answers) == 7
    assert [ask.name for ask in asks(papers_of("majority"))] == ["agnostic"]
    assert [ask.name for ask in asks(papers_of("needle"))] == ["agnostic", "aware"]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    torch.manual_seed(0)
    new_model().save_pretrained(tmp_path)
    return Reader(tmp_path, 4096, torch.float32)


def test_a_budget_of_everything_answers_as_the_whole_cache_does(reader: Reader) -> None:
    ways = {name: Way(contender, contender.grid()[0]) for name, contender in CONTENDERS.items()}
    examiner = Examiner(reader, ways, budgets=[1.1])  # 1.1: room for log-counts too

    for marks in examiner.examine(papers_of("multikey")):
        assert max(marks.divergence) < 1e-5, marks.policy
        assert marks.held == [1.0, 1.0]
    assert reader.pool.num_free == reader.pool.num_blocks


def test_bytes_held_stay_within_the_budget_log_counts_included(reader: Reader) -> None:
    ways = {name: Way(contender, contender.grid()[0]) for name, contender in CONTENDERS.items()}
    examiner = Examiner(reader, ways, budgets=[0.5])

    for marks in examiner.examine(papers_of("lookup")):
        assert marks.policy == WHOLE or 0.4 < max(marks.held) <= 0.5, marks.policy


def test_the_reader_goes_on_as_the_engine_does_with_an_answer_that_was_begun() -> None:
    rng = random.Random(0)
    context, question = ([rng.randrange(20, 1000) for _ in range(n)] for n in (300, 5))
    options = {"budget": 64, "window": 8}
    told = engine_tokens(context, question, KvPolicyChoice(type="snapkv", options=options))
    snapkv = KV_POLICIES["snapkv"]

    text = Reader(MODEL, 2048, torch.float32).open(
        [*context, *question, *told], window=8, num_queries=64
    )
    text.read_to(len(context))
    policy = snapkv(snapkv.Config.model_validate(options))
    (continued,) = text.continue_under([policy])

    assert continued.logits_NV[len(question) - 1 :].argmax(-1).tolist() == told


def engine_tokens(context: list[int], question: list[int], policy: KvPolicyChoice) -> list[int]:
    answers = Answers()
    settings = {"base_models": [f"{BASE}={MODEL}"], "prefix_caching": False, "dtype": "float32"}
    engine = EngineLoop(EngineSettings.model_validate(settings), answers)
    body = RequestBody(
        request_id="r",
        tenant_id="t",
        base_model=BASE,
        prompt_token_ids=tuple(context),
        begun=(BegunAnswer(index=0, token_ids=tuple(question)),),
        sampling=SamplingParams(max_tokens=len(question) + 4, temperature=0, ignore_eos=True),
        kv_policy=policy,
    )
    answers.orders, answers.num_open = [Generate(request=body, reply_to="t")], 1
    while answers.num_open:
        engine.turn()
    return answers.tokens["r"]


def test_training_that_was_broken_off_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    course = Course(0, (Stage(64, 2, 2, ("multikey",)), Stage(96, 2, 2, ("majority", "needle"))))
    whole, broken = (Trainee(tmp_path / name, course, seed=1) for name in ("whole", "broken"))
    whole.train()
    for _ in range(2):
        broken.learn(broken.draw()[1])
    broken.save()

    resumed = Trainee(tmp_path / "broken", course, seed=1)
    resumed.train()

    assert resumed.step == 4
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_differences_are_paired_text_by_text() -> None:
    resamples = Resamples([3, 3])
    harder = [[0.0, 0.5, 1.0], [0.1, 0.2, 0.6]]
    easier = [[texts + 0.25 for texts in model] for model in harder]

    assert resamples.difference(easier, harder) == pytest.approx((0.25, 0.25, 0.25))
    interval = resamples.interval(harder)
    assert interval.mean == pytest.approx(0.4)
    assert interval.low < 0.3 < 0.5 < interval.high


def test_a_report_keeps_models_apart_and_policies_beside_each_other() -> None:
    lines = [
        {"seed": seed, "task": "needle", "context": 64, "ask": "aware", "policy": policy,
         "budget": 1.0, "held": [1.0, 1.0], "exact": [right, right]}
        for seed, right in ((2, 0.5), (1, 1.0))
        for policy in (WHOLE, "snapkv", "random")
    ]  # fmt: skip

    cells = {cell["policy"]: cell for cell in report(lines)}

    assert cells["snapkv"]["exact by model"] == [1.0, 0.5]
    assert cells["snapkv"]["exact"].mean == 0.75
    assert cells["snapkv"]["exact over random"].mean == 0
