"""`scrubjay memory add --consolidate`, `decisions` and `undo`, with a model on a server."""

import json
from pathlib import Path

import pytest

from scrubjay.memory import MemoryBank

from ...agents.kwai.chat_completions import Fails

pytestmark = pytest.mark.requires("langchain_openai", "langchain")

MODEL = ("--consolidate", "openai:small")


def changes(*arguments):
    return json.dumps({"changes": list(arguments)})


def texts(here):
    return [
        json.loads(line)["text"]
        for line in here("memory", "search", "m.db", "Vera", "--json")[1].splitlines()
    ]


def test_a_model_decides_it_is_shown_and_undone(openai, here):
    old = here("memory", "add", "m.db", "Vera lives in Lisbon")[1].strip()
    server = openai(changes({"action": "update", "record": 1, "text": "Vera lives in Porto"}))
    code, out, err = here("memory", "add", "m.db", "Vera has moved to Porto", *MODEL)
    assert (code, server.rejections) == (0, [])
    assert "Vera lives in Lisbon" in server.prompts[0][-1]["content"]
    decision = err.partition(":")[0]
    assert err == f"{decision}: update {out.strip()} for {old}\n"
    assert texts(here) == ["Vera lives in Porto"]
    listing = here("memory", "decisions", "m.db")[1]
    assert listing.endswith(f"  {err}")
    (row,) = map(json.loads, here("memory", "decisions", "m.db", "--json")[1].splitlines())
    assert (row["id"], row["considered_ids"], row["steps"][0]["ended_id"], row["undone_at"]) == (
        decision,
        [old],
        old,
        None,
    )
    assert here("memory", "undo", "m.db", decision)[1] == f"{err.rstrip()}; undone\n"
    assert texts(here) == ["Vera lives in Lisbon"]
    code, out, err = here("memory", "undo", "m.db", decision)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "was undone already" in err


def test_a_reply_that_is_none_adds_and_says_so(openai, here):
    openai("I would rather not.")
    code, out, err = here("memory", "add", "m.db", "Vera lives in Lisbon", *MODEL)
    assert code == 0
    assert "refused: the model's reply contains no JSON object with a list named changes" in err
    assert texts(here) == ["Vera lives in Lisbon"]
    assert out.strip() in here("memory", "show", "m.db")[1]


def test_a_server_that_fails_writes_nothing(openai, here):
    openai(Fails(401, "Incorrect API key provided."))
    code, out, err = here("memory", "add", "m.db", "Vera lives in Lisbon", *MODEL)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "model='openai:small' failed; nothing was written" in err
    with MemoryBank("m.db") as bank:
        assert len(bank) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "m.db", "x", "--consolidate", "nobody:none"], "nobody"),
        (
            ["add", "m.db", "x", "--consolidate", "smollm2", "--supersedes", "y"],
            "--supersedes and --consolidate cannot be combined",
        ),
        (["decisions", "m.db"], "memory bank m.db does not exist"),
        (["undo", "m.db", "x"], "memory bank m.db does not exist"),
    ],
)
def test_mistakes_are_one_line(here, words, message):
    code, out, err = here("memory", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not Path("m.db").exists()


def test_a_memory_without_decisions_has_none(here):
    here("memory", "add", "m.db", "Vera lives in Lisbon")
    assert here("memory", "decisions", "m.db") == (0, "", "")
    assert "unknown decision 'x'" in here("memory", "undo", "m.db", "x")[2]
