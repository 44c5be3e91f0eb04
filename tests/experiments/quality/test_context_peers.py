"""Peers: each is asked the same, and one that fails is tabled with what it raised, and where."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("wonderwords")

from scrubjay.experiments.longcontext.examples import string_match_all
from scrubjay.experiments.quality import context_peers
from scrubjay.experiments.quality.context_peers import PeersBench, main


class Words:
    """A tokenizer of one token a word."""

    def encode(self, text, **options):
        return text.split()

    def __call__(self, text, **options):
        return {"input_ids": text.split()}


def rows(out):
    return [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]


def test_all_answer_the_same_and_who_fails_is_told(monkeypatch, tmp_path, capsys):
    asked = {"reader": [], "guesser": []}

    def reader(model, tokenizer, example):
        asked["reader"].append(example)
        return example.context, string_match_all(example.context, example.references)

    def guesser(model, tokenizer, example):
        asked["guesser"].append(example)
        return "", 0.0

    def broken(model, tokenizer, example):
        raise RuntimeError("it  has\nrotted")

    contestants = {
        "reader": ("scrubjay", reader),
        "guesser": ("torch", guesser),
        "broken": ("no-such-package", broken),
    }
    monkeypatch.setattr(context_peers, "CONTESTANTS", contestants)
    monkeypatch.setattr(context_peers.context, "load_model", lambda name: (None, Words()))
    monkeypatch.setattr(
        context_peers, "token_counter", lambda _: lambda example: len(example.context.split()) + 60
    )
    text = tmp_path / "novel.txt"
    text.write_text("It rained all day. Nobody came. " * 60)
    main(PeersBench(text, None, length=300, depths=(10.0, 90.0)))
    found = {row[0]: row for row in rows(capsys.readouterr().out)}
    assert found["reader"][2] == "2 of 2"
    assert found["guesser"][2] == "0 of 2"
    assert asked["reader"] == asked["guesser"]
    assert len({example.context for example in asked["reader"]}) == 2
    assert "no-such-package (not installed)" in found["broken"][1]
    assert "RuntimeError: it has rotted, in " in found["broken"][-1]
    assert "test_context_peers.py:" in found["broken"][-1]


def test_what_was_raised_names_no_folder_of_the_machine():
    try:
        raise ImportError("cannot import name 'SinkCache' from 'transformers' (/home/ada/lib/x.py)")
    except ImportError as error:
        told = context_peers._told(error)
    assert told.startswith("ImportError: cannot import name 'SinkCache' from 'transformers', in ")
    assert "/home/ada" not in told
    assert told.rpartition(" in ")[2].startswith("experiments/quality/test_context_peers.py:")
