"""Shared options are declared once, and a command offers only options that have an effect."""

import importlib
import typing
from collections import Counter

import pytest

from scrubjay.experiments.cli.arguments import parse, parse_known
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.commands import options
from scrubjay.experiments.commands.benchmarks import MEASUREMENTS
from scrubjay.experiments.commands.cluster import LaunchOptions, SweepOptions
from scrubjay.experiments.commands.memory import ACTIONS
from scrubjay.experiments.commands.options import EngineOptions, RaySizes
from scrubjay.experiments.commands.train import ResumeOptions, TrainOptions
from scrubjay.experiments.runs.cluster import RayOptions

MODULES = ("agent", "benchmarks", "chat", "cluster", "compare", "evaluate", "export", "inspect", "memory")
SHARED = {name: kind for name, kind in vars(options).items() if hasattr(kind, "__metadata__")}


def option_classes() -> dict[str, type]:
    """Return the options classes of all commands by their names."""
    classes = {"DecisionsOptions": ACTIONS["decisions"][1], "UndoOptions": ACTIONS["undo"][1]}
    for module in (*MODULES, "pictures", "train", "transfer"):
        members = vars(importlib.import_module(f"scrubjay.experiments.commands.{module}"))
        classes |= {name: kind for name, kind in members.items() if name.endswith("Options")}
    return classes


def test_every_shared_option_is_listed_by_several_commands():
    uses = Counter()
    for kind in option_classes().values():
        hints = typing.get_type_hints(kind, include_extras=True).values()
        uses.update(name for name, shared in SHARED.items() if shared in hints)
    assert not [name for name in SHARED if uses[name] < 2]


def test_no_command_declares_the_text_of_a_shared_option_again():
    texts = [
        text
        for kind in SHARED.values()
        for note in kind.__metadata__
        if (text := getattr(note, "help", None)) is not None
    ]
    assert len(texts) == len(set(texts)) >= 10


@pytest.mark.parametrize("kind", [TrainOptions, ResumeOptions])
def test_ray_needs_its_engine(kind):
    words = ["run"] if kind is ResumeOptions else []
    assert parse(kind, words, "scrubjay").ray() is None
    ray_options = parse(kind, [*words, "--engine", "ray", "--num-learners", "2"], "scrubjay")
    assert ray_options.ray() == RayOptions(num_learners=2)
    for flag, value in (("--num-env-runners", "1"), ("--num-learners", "1"), ("--address", "a:1")):
        with pytest.raises(UsageError, match=f"{flag} requires --engine ray"):
            parse(kind, [*words, flag, value], "scrubjay").ray()


def test_launch_and_sweep_offer_no_engine_since_it_is_always_ray():
    assert issubclass(LaunchOptions, RaySizes)
    for kind in (LaunchOptions, SweepOptions):
        assert not issubclass(kind, EngineOptions)
        assert parse_known(kind, ["--engine", "ray"])[1] == ["--engine", "ray"]


def test_speed_offers_no_seed_since_nothing_is_drawn():
    names = {name: set(typing.get_type_hints(kind)) for name, (_, kind) in MEASUREMENTS.items()}
    assert "seed" not in names["speed"]
    assert "seed" in names["haystack"]
