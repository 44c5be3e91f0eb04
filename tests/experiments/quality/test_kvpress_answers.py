"""Answers of kvpress: the parts that need no kvpress, with a press that removes nothing."""

import contextlib
import json

import pytest
import torch

from scrubjay.experiments.quality.kvpress_answers import ADAKV, PRESSES, Reader, main
from scrubjay.memory import context

pytestmark = [pytest.mark.requires("transformers"), pytest.mark.requires("wonderwords")]


def press_nothing(model):
    return contextlib.nullcontext()


@torch.no_grad()
def test_an_answer_is_that_of_generate_and_leaves_the_cache(tiny_chat):
    model, _ = tiny_chat
    text, question = list(range(3, 33)), [40, 41]
    reader = Reader(model)
    reader.read(text, press_nothing)
    expected = model.generate(torch.tensor([text + question]), max_new_tokens=6, do_sample=False)
    for _ in range(2):
        assert reader.answer(question, 6, -1) == expected[0, 32:].tolist()
        assert reader.cache.get_seq_length() == 30
    reader.read(text + question, press_nothing)
    assert reader.answer([], 6, -1) == expected[0, 32:].tolist()
    assert reader.answer([], 6, int(expected[0, 33])) == expected[0, 32:33].tolist()


def test_prompts_are_exported_and_both_packages_are_compared(tiny_chat, tmp_path, capsys):
    model, tokenizer = tiny_chat
    folder, out = tmp_path / "model", tmp_path / "out"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text("The sky is blue today. The sea is green. " * 200)
    words = ["--model", str(folder), "--length", "9000", "--samples", "1", "--out", str(out)]
    main(["export", str(text), *words])
    prompts = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 12
    assert all(prompt["text"] and prompt["question"] for prompt in prompts)
    read_again, _ = context.load_model(out / "model")
    torch.testing.assert_close(read_again.state_dict(), model.state_dict())
    ours = tmp_path / "ours"
    ours.mkdir()
    keys = ("passage", "sample", "number", "kind")
    rows = [{key: prompt[key] for key in keys} for prompt in prompts]
    fields = {"method": "snapkv", "share": 0.2, "time": "later"}
    with (out / "answers.jsonl").open("w") as theirs, (ours / "answers.jsonl").open("w") as own:
        for row, prompt in zip(rows, prompts, strict=True):
            theirs.write(json.dumps(row | fields | {"text": " ".join(prompt["references"])}) + "\n")
            own.write(json.dumps(row | fields | {"score": 0.5}) + "\n")
    capsys.readouterr()
    main(["table", str(out), str(ours)])
    assert "| snapkv, 20 % |  |  | 50 | 100 |" in capsys.readouterr().out


def test_the_names_are_those_of_our_policies():
    assert {*PRESSES, ADAKV} <= {*context.list_policies()}
