"""Tests of the questions that all policies answer: reads of a text, equal answers, resumption, refusals."""

import pytest
import torch

from scrubjay.experiments.lm.options import QuestionsOptions
from scrubjay.experiments.lm.questions.measurement import PassageReader, list_contenders, make_with_budget
from scrubjay.experiments.lm.questions.passages import make_passage
from scrubjay.experiments.lm.reading import answer
from scrubjay.memory import context

pytestmark = [pytest.mark.requires("transformers"), pytest.mark.requires("wonderwords")]
SENTENCES = ["w1 w2 w3 w4 w5 .", "w6 w7 w8 w9 w10 ."]


@pytest.fixture
def passage():
    return make_passage("facts", 160, lambda example: len(example.prompt.split()), SENTENCES, 0)


@pytest.mark.parametrize("name", ["full", "sinks", "snapkv", "kvzip", "recycled"])
def test_a_known_question_is_answered_as_in_one_prompt(name, model, passage):
    (model, tokenizer), policy = model, make_with_budget(name, 60, 160)
    rows = PassageReader(model, tokenizer, passage, 16).answer(policy, "known")
    for row, (kind, example) in zip(rows, passage.questions, strict=True):
        alone = answer(model, tokenizer, policy, example, 16)
        assert (row["kind"], row["text"], row["score"]) == (kind, alone.text, alone.score)


@pytest.mark.parametrize("time", ["known", "later", "streaming"])
def test_a_policy_that_keeps_all_answers_alike_at_all_times(time, model, passage):
    model, tokenizer = model
    reader = PassageReader(model, tokenizer, passage, 16)
    rows, once = (reader.answer(context.make("full"), each) for each in (time, "known"))
    assert [row["text"] for row in rows] == [row["text"] for row in once]


@pytest.mark.parametrize(
    ("names", "times", "texts"),
    [
        (("snapkv", "full"), ("later", "known"), 1),
        (("snapkv",), ("streaming",), 2),
        (("sinks",), ("later",), 1),
        (("sinks",), ("known",), 10),
    ],
)
def test_policies_that_read_whole_share_one_reading_of_a_text(
    names, times, texts, model, passage, monkeypatch
):
    model, tokenizer = model
    kind, lengths = type(model), []
    forward = kind.forward

    def record_length(self, input_ids, **keywords):
        if input_ids.device.type != "meta":
            lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **keywords)

    monkeypatch.setattr(kind, "forward", record_length)
    reader = PassageReader(model, tokenizer, passage, 64 if times == ("streaming",) else 160)
    for name in names:
        for time in times:
            rows = reader.answer(make_with_budget(name, 60, 160), time)
            assert len({row["cache_bytes"] for row in rows}) == 1 or time == "known"
    assert len([length for length in lengths if length >= 64]) == texts


def test_budgets_are_shares_and_refusals_are_listed(model, text):
    options = QuestionsOptions(
        text=(text,), methods=("full", "snapkv", "longheads", "duo"), length=160, shares=(0.5, 0.1)
    )
    contenders, refusals = list_contenders(options, model[0])
    sizes = {(one.method, one.share): getattr(one.policy, "budget", None) for one in contenders}
    assert sizes == {("full", 1.0): None, ("snapkv", 0.5): 80}
    assert set(refusals) == {(name, share) for name in ("longheads", "duo") for share in (0.5, 0.1)} | {
        ("snapkv", 0.1)
    }
    assert "budget=16: must be at least 36" in refusals["snapkv", 0.1]
    only = QuestionsOptions(text=(text,), methods=("longheads",), length=160)
    with pytest.raises(ValueError, match=r"longheads, share 0\.5: budget=80: must be at least 1024"):
        list_contenders(only, model[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shares": (1.5,)}, r"shares=\(1.5,\): each must be above 0 and at most 1"),
        ({"shares": ()}, "--shares is empty"),
        ({"times": ("never",)}, "choose from known, later, streaming"),
        ({"samples": 0}, "samples=0"),
    ],
)
def test_invalid_options_are_named(fields, message, text):
    with pytest.raises(ValueError, match=message):
        QuestionsOptions(text=(text,), **fields).check()


def test_all_stands_for_every_policy_once(text):
    assert QuestionsOptions(text=(text,), methods=("sinks", "all")).list_methods() == list(
        dict.fromkeys(["sinks", *context.list_policies()])
    )


def test_a_policy_that_reads_in_blocks_answers_once_for_all_times(run, rows, model, text):
    flags = ("--length", 700, "--shares", 0.3, "--samples", 1, "--perplexity", 48, "--methods", "sinks")
    answers = rows(run("questions", *flags) / "answers.jsonl")
    assert len(answers) == 3 * 12
    parts = [[row for row in answers if row["time"] == time] for time in ("known", "later", "streaming")]
    for part in parts:
        assert [row | {"time": ""} for row in part] == [row | {"time": ""} for row in parts[0]]


@pytest.mark.slow
def test_the_same_command_resumes_and_adds_methods(run, rows):
    flags = ("--length", 700, "--shares", 0.3, "--samples", 1, "--perplexity", 48, "--block", 128)
    out = run("questions", *flags, "--methods", "full", "sinks", "--times", "later")
    before = rows(out / "answers.jsonl")
    assert [(row["method"], row["share"]) for row in before[:11:10]] == [("full", 1.0), ("sinks", 0.3)]
    assert len(before) == 2 * 12
    (out / "answers.jsonl").write_text("".join((out / "answers.jsonl").read_text().splitlines(True)[:5]))
    again = rows(run("questions", *flags, "--methods", "full", "sinks", "--times", "later") / "answers.jsonl")
    names = ("passage", "method", "kind", "text", "score")
    assert [[row[name] for name in names] for row in again] == [
        [row[name] for name in names] for row in before
    ]
    more = run("questions", *flags, "--methods", "full", "sinks", "window", "--times", "later", "known")
    assert len(rows(more / "answers.jsonl")) == 3 * 2 * 12
    table = (out / "table.md").read_text()
    assert "## Policies that drop tokens" in table
    assert "| sinks, 30 % |" in table
    assert "perplexity, 48 tokens" in table


def test_an_interrupted_text_is_answered_again(run, rows):
    flags = ("--length", 700, "--shares", 0.3, "--samples", 1, "--perplexity", 48, "--methods", "full")
    out = run("questions", *flags, "--times", "later")
    lines = (out / "answers.jsonl").read_text().splitlines(True)
    (out / "answers.jsonl").write_text("".join(lines[:3]))  # killed between two rows of one text
    assert len(rows(run("questions", *flags, "--times", "later") / "answers.jsonl")) == len(lines)


def test_streams_use_the_exact_losses_of_the_full_cache(run, rows, model, text):
    flags = ("--length", 700, "--samples", 1, "--perplexity", 48, "--methods", "full", "--times", "later")
    (row,) = rows(run("questions", *flags, "--block", 16) / "perplexity.jsonl")
    tokens = QuestionsOptions(text=(text,)).excerpt(model[1], 49)
    with torch.no_grad():
        logits = model[0](tokens[None, :-1]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, tokens[1:])
    assert row["nats"] == pytest.approx(float(expected), abs=1e-4)
