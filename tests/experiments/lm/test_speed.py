"""Tests of the timing per token: methods, order and number of tokens."""

import pytest

pytestmark = pytest.mark.requires("transformers")


def test_turns_are_timed_once_for_each(run, rows):
    flags = ("--methods", "full", "sinks", "--budget", 16, "--steps", 2, "--repeats", 2, "--full-until", 64)
    out = run("speed", *flags, "--contexts", 32, 128)
    before = rows(out / "turns.jsonl")
    turns = [(row["context"], row["method"]) for row in before]
    # By turns, and full only as far as it was asked to hold all.
    assert (
        turns
        == [(32, "recompute"), (32, "full"), (32, "sinks")] * 2 + [(128, "recompute"), (128, "sinks")] * 2
    )
    assert all(row["cpu"] > 0 for row in before)
    after = rows(run("speed", *flags, "--contexts", 32, 64, 128) / "turns.jsonl")
    assert after[: len(before)] == before
    assert {row["context"] for row in after[len(before) :]} == {64}
    assert (out / "speed.png").stat().st_size > 1000


def test_timed_tokens_come_one_by_one(run, model, monkeypatch):
    kind, lengths = type(model[0]), []
    forward = kind.forward

    def record_length(self, input_ids, **keywords):
        if input_ids.device.type != "meta":  # whether a policy serves the model is asked without weights
            lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **keywords)

    monkeypatch.setattr(kind, "forward", record_length)
    run("speed", "--methods", "snapkv", "--budget", 40, "--steps", 3, "--repeats", 1, "--contexts", 48)
    assert lengths == [48, 40, 1, 1, 1]  # the prompt, recompute, and the steps
