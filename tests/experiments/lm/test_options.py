"""Tests of the measurement options: checks before a model is loaded, and fields that may change."""

import dataclasses

import pytest

from scrubjay.experiments.commands.benchmarks import MEASUREMENTS
from scrubjay.experiments.lm.options import (
    RECOMPUTE,
    AgreementOptions,
    HaystackOptions,
    PerplexityOptions,
    SpeedOptions,
)

WITH_TEXT = [name for name in MEASUREMENTS if name != "cost"]
"""Measurements that read a text."""


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("It was a dark and stormy night.")
    return (file,)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_the_defaults_of_every_measurement_can_work(name, text):
    MEASUREMENTS[name][1](text=text).check()  # pyright: ignore[reportCallIssue]  (each has its own `out`)


@pytest.mark.parametrize("name", WITH_TEXT)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ()}, r"text=\(\): pass a .txt file"),
        ({"methods": ()}, "--methods is empty"),
        ({"methods": ("sink",)}, "did you mean 'sinks'"),
        ({"dtype": "int8"}, "'int8'"),
        ({"block": 0}, "block=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_no_measurement_can_do_is_named(name, fields, message, text):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MEASUREMENTS[name][1](text=text), **fields).check()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("blank.txt", " \n", "the text is empty"), ("page.md", "It was dark.", "give a .txt file")],
)
def test_what_is_no_text_is_named_before_a_model_is_loaded(name, content, message, tmp_path):
    file = tmp_path / name
    file.write_text(content)
    for measurement in WITH_TEXT:
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            MEASUREMENTS[measurement][1](text=(file,)).check()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        (AgreementOptions, {"prompts": 0}, "prompts=0"),
        (HaystackOptions, {"tasks": ("singel_1",)}, "singel_1.*single_1"),
        (HaystackOptions, {"depths": (101.0,)}, "depth=101"),
        (HaystackOptions, {"methods": ("infiniretri",), "budget": 1}, "budget=1"),
        (PerplexityOptions, {"recompute": 20_000}, "recompute=20000.*budget=256"),
        (SpeedOptions, {"contexts": (1024, 1030)}, "must differ by more than 40 tokens"),
        (SpeedOptions, {"contexts": (128,)}, "budget=256"),
    ],
)
def test_what_one_measurement_cannot_do_is_named(options, fields, message, text):
    with pytest.raises(ValueError, match=message):
        options(text=text, **fields).check()


def test_results_depend_on_the_text_and_not_on_how_many_are_wanted(text):
    few, many = (SpeedOptions(text=text, contexts=contexts) for contexts in ((1024,), (1024, 4096)))
    assert few.settings() == many.settings()
    assert few.settings() != dataclasses.replace(few, budget=128).settings()


def test_the_full_cache_is_timed_only_as_far_as_it_fits(text):
    options = SpeedOptions(text=text, full_until=2048)
    assert options.list_methods(2048) == [RECOMPUTE, "full", "sinks"]
    assert options.list_methods(2049) == [RECOMPUTE, "sinks"]
