"""Peers: each is asked the same, and one that fails is tabled with what it raised, and where."""

import pytest

from scrubjay.experiments.lm.needles import string_match_all
from scrubjay.experiments.quality import context_peers
from scrubjay.experiments.quality.context_peers import PeersBench, main

pytestmark = pytest.mark.requires("transformers", "wonderwords")


class Words:
    """A tokenizer of one token a word."""

    def encode(self, text, **options):
        return text.split()

    def __call__(self, text, **options):
        return {"input_ids": text.split()}


def rows(out):
    return [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]


def test_all_answer_the_same_and_who_fails_is_told(monkeypatch, tmp_path, capsys):
    examples = {"reader": [], "guesser": []}

    def reader(model, tokenizer, example):
        examples["reader"].append(example)
        return example.context, string_match_all(example.context, example.references)

    def guesser(model, tokenizer, example):
        examples["guesser"].append(example)
        return "", 0.0

    def failing(model, tokenizer, example):
        raise RuntimeError("it  has\nrotted")

    methods = {
        "reader": ("scrubjay", reader),
        "guesser": ("torch", guesser),
        "broken": ("no-such-package", failing),
    }
    monkeypatch.setattr(context_peers, "METHODS", methods)
    monkeypatch.setattr(context_peers.context, "load_model", lambda name: (None, Words()))
    monkeypatch.setattr(
        context_peers, "token_counter", lambda _: lambda example: len(example.context.split()) + 60
    )
    text = tmp_path / "novel.txt"
    text.write_text("It rained all day. Nobody came. " * 60)
    main(PeersBench(text, None, length=300, depths=(10.0, 90.0)))
    results = {row[0]: row for row in rows(capsys.readouterr().out)}
    assert results["reader"][2] == "2 of 2"
    assert results["guesser"][2] == "0 of 2"
    assert examples["reader"] == examples["guesser"]
    assert len({example.context for example in examples["reader"]}) == 2
    assert "no-such-package (not installed)" in results["broken"][1]
    assert "RuntimeError: it has rotted, in " in results["broken"][-1]
    assert "test_context_peers.py:" in results["broken"][-1]


def test_what_was_raised_names_no_folder_of_the_machine():
    try:
        raise ImportError("cannot import name 'SinkCache' from 'transformers' (/home/ada/lib/x.py)")
    except ImportError as error:
        message = context_peers._describe_error(error)
    assert message.startswith("ImportError: cannot import name 'SinkCache' from 'transformers', in ")
    assert "/home/ada" not in message
    assert message.rpartition(" in ")[2].startswith("experiments/quality/test_context_peers.py:")
