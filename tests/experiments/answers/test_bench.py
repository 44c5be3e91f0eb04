"""Tests of the answer benchmark: shown turns, readers, saved answers, and resumption."""

import json

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from scrubjay.experiments.answers.bench import Bench, Settings, read_texts
from scrubjay.experiments.answers.facts import make_rows
from scrubjay.experiments.answers.scores import table
from scrubjay.experiments.answers.views import LABELS
from scrubjay.experiments.cli.failures import FailedError, UsageError

from .test_dialogues import corrupt

ARMS = tuple(LABELS)


class ScriptedModel(GenericFakeChatModel):
    """Model with scripted replies that records its prompts."""

    prompts: list[str] = []

    def _generate(self, messages, *args, **kwargs):
        self.prompts.append(messages[-1].text)
        return super()._generate(messages, *args, **kwargs)


def make_model(*replies):
    return ScriptedModel(messages=iter([AIMessage(reply) for reply in replies]), prompts=[])


@pytest.fixture
def facts(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in make_rows(3, 120, 12)))
    return path


def means(rows, measure, **fields):
    some = [row[measure] for row in rows if all(row[name] == value for name, value in fields.items())]
    assert some
    return sum(some) / len(some)


def test_facts_are_answered_without_a_model_and_being_told_what_replaces_what_wins(facts, tmp_path):
    texts = read_texts([facts], None, None)
    bench = Bench(Settings(), tmp_path / "out")
    assert bench.run(texts, ARMS) == 0
    rows = bench.rows(texts, ARMS)
    assert len(rows) == 2 * 12 * (2 + 2 + 2 + 2 + 1)
    accuracy = means(rows, "exact", arm="supersedes", reader="first")
    assert accuracy > max(means(rows, "exact", arm=arm, reader="first") for arm in ("bank", "files"))
    assert means(rows, "stale", arm="supersedes") == 0 < means(rows, "stale", arm="bank")
    assert accuracy >= means(rows, "exact", arm="consolidated", reader="first") > 0.9
    # 120 facts fit as a whole: who reads all of them cannot miss.
    assert means(rows, "exact", arm="full") == 1
    assert not any(row["cut"] for row in rows)
    report = table(rows)
    assert "| bank with annotated replacements, first fact | factconsolidation_mh | 12 |" in report
    assert len(report.splitlines()) == 2 + 3 * 9


def test_a_row_lists_the_turns_shown_for_its_question(facts, tmp_path):
    texts = read_texts([facts], None, None)
    bench = Bench(Settings(k=3), tmp_path / "out")
    bench.run(texts, ("bank", "full"))
    assert [row["places"] for row in bench.rows(texts, ("full",))] == [None] * 24
    conversations = {text.digest: text.conversation for text in texts}
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    for row in rows[:12]:
        question = conversations[row["text"]].questions[row["question"]]
        assert len(set(row["places"])) == len(row["places"]) == 3
        assert row["recall"] == len(question.answers.intersection(row["places"])) / len(question.answers)


def test_what_is_answered_is_not_asked_again_and_other_settings_are_refused(facts, tmp_path):
    texts = read_texts([facts], None, 2)
    out = tmp_path / "out"
    settings = Settings(model="scripted")
    model = make_model("one", "two", "three")
    with pytest.raises(FailedError, match=r"model='scripted' failed: .*run the same command to resume"):
        Bench(settings, out, model).run(texts, ("bank",))  # it has no fourth reply
    first_lines = (out / "answers.jsonl").read_text()
    assert [json.loads(line)["answer"] for line in first_lines.splitlines()] == ["one", "two", "three"]
    bench = Bench(settings, out, make_model("four"))
    assert bench.run(texts, ("bank",)) == 0
    assert (out / "answers.jsonl").read_text().startswith(first_lines)
    assert [row["answer"] for row in bench.rows(texts, ("bank",))] == ["one", "two", "three", "four"]
    more = read_texts([facts], None, 3)
    assert len(bench.rows(more, ("bank",))) == 4  # the first questions of a text are the same, however many
    with pytest.raises(ValueError, match=r"k=10, now 3\); choose another --out"):
        Bench(Settings(k=3, model="scripted"), out, model)


def test_a_text_that_is_given_twice_is_read_once_and_an_empty_one_never(facts, tmp_path):
    texts = read_texts([facts, facts], None, 1)
    assert len(texts) == 2
    bench = Bench(Settings(), tmp_path / "out")
    bench.run(texts, ("files", "files"))
    assert len(bench.rows(texts, ("files",))) == 2 * 2
    talk = {
        "sample_id": "conv-1",
        "conversation": {},
        "qa": [{"question": "Who?", "answer": "Ada", "category": 4}],
    }
    empty = tmp_path / "locomo10.json"
    empty.write_text(json.dumps([talk]))
    with pytest.raises(UsageError, match=r"no questions in .*locomo10"):
        read_texts([empty], None, None)


def test_a_line_that_a_kill_cut_off_is_asked_again(facts, tmp_path):
    texts = read_texts([facts], None, 2)
    Bench(Settings(), tmp_path / "out").run(texts, ("files",))
    path = tmp_path / "out" / "answers.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    bench = Bench(Settings(), tmp_path / "out")
    bench.run(texts, ("files",))
    assert path.read_text() == whole
    path.write_text(whole.replace('"tokens": ', '"tokens": "many', 1).replace(', "cut"', '", "cut"', 1))
    with pytest.raises(ValueError, match=r"line 1 of .*answers\.jsonl, which is damaged: tokens"):
        Bench(Settings(), tmp_path / "out")


def test_a_model_is_shown_what_is_recalled_in_the_order_of_time(facts, tmp_path):
    (text, _) = read_texts([facts], None, 1)
    question = text.conversation.questions[0]
    model = make_model(question.references[0].upper())
    bench = Bench(Settings(model="scripted"), tmp_path / "out", model)
    bench.run([text], ("supersedes",))
    (row,) = bench.rows([text], ("supersedes",))
    assert (row["exact"], row["recall"], row["stale"]) == (1, 1, 0)
    (prompt,) = model.prompts
    assert prompt.rstrip().endswith(f"Question: {question.text}")
    lines = [line for line in prompt.splitlines() if line.startswith("[2025-01-01")]
    assert 5 < len(lines) <= 10
    assert lines == sorted(lines, key=lambda line: int(line.split("] ")[1].split(".")[0]))


def test_a_judge_is_asked_of_each_answer_and_only_a_yes_counts(facts, tmp_path):
    texts = read_texts([facts], None, 2)
    settings, judging = Settings(model="scripted", judge="judge"), make_model("Yes.", "no", "Yesterday", "")
    bench = Bench(settings, tmp_path / "out", make_model(*"abcd"), judging)
    bench.run(texts, ("bank",))
    rows = bench.rows(texts, ("bank",))
    assert [row["judged"] for row in rows] == [1, 0, 0, 0]
    question = texts[0].conversation.questions[0]
    data = json.loads(judging.prompts[0].partition("\n\n")[2].rpartition("\n\n")[0])
    assert data == {"question": question.text, "right": list(question.references), "answer": "a"}
    assert "| ROUGE-L | judged right |" in table(rows)
    with pytest.raises(UsageError, match="give --model too"):
        Settings(judge="judge").check()


def test_the_whole_context_is_cut_to_the_window_from_its_beginning(facts, tmp_path):
    texts = read_texts([facts], None, 3)
    model = make_model(*"abcdef")
    bench = Bench(Settings(window=500, model="scripted"), tmp_path / "out", model)
    bench.run(texts, ("full",))
    rows = bench.rows(texts, ("full",))
    assert all(row["cut"] and 300 < row["tokens"] < 500 for row in rows)
    last = texts[0].conversation.turns[-1].text
    assert all(last in prompt and "] 0. " not in prompt for prompt in model.prompts)
    assert "full context, cut for 3 of 3" in table(rows)


KNOWN = {
    "context": "Facts:\n0. Ada lives in Bath.\n1. Ada lives in Rome.\n2. Rome lies in Italy.\n",
    "questions": ["In which country does Ada live?"],
    "answers": [["Italy"]],
    "metadata": {
        "facts": [["Ada", "city", "Bath"], ["Ada", "city", "Rome"], ["Rome", "country", "Italy"]],
        "hops": [["Ada", "city", "country"]],
        "asked": {"city": "Where does {} live?", "country": "Where does {} lie?"},
    },
}


@pytest.mark.slow
def test_what_a_stranger_knows_is_answered_or_refused_in_one_line(tmp_path):
    path, results, errors = tmp_path / "known.json", [], []
    for number, value in enumerate([[KNOWN], *corrupt([KNOWN])]):
        path.write_text(json.dumps(value))
        try:
            texts = read_texts([path], "agentbench", None)
        except UsageError as error:
            errors.append(str(error))
            continue
        bench = Bench(Settings(), tmp_path / str(number))
        assert bench.run(texts, ARMS) == 0
        results.append(bench.rows(texts, ARMS))
        assert table(results[-1])
    assert {row["answer"] for row in results[0] if row["arm"] == "supersedes"} == {"Italy"}
    assert len(results) > 10
    assert len(errors) > 100
    assert not [line for line in errors if "\n" in line]


@pytest.mark.parametrize("sizes", [{"k": 0}, {"window": 0}, {"max_tokens": -1}])
def test_sizes_that_cannot_be_are_refused(tmp_path, sizes):
    (name,) = sizes
    with pytest.raises(UsageError, match=f"{name}="):
        Bench(Settings(**sizes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
