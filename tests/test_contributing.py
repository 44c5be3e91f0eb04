"""What pages on extending tell to write, and the line to add: done here, the thing is there, and works."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import scrubjay
from scrubjay.experiments import Run, train
from scrubjay.experiments.cli import main

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "extending").glob("*.md"))}
LIMIT = 3
"""Places that a new thing may touch."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the module that all pages' snippets make together."""
    file = tmp_path_factory.mktemp("contributed") / "scrubjay_contributed.py"
    shown = "\n".join(PAGES.values())
    file.write_text("\n".join(re.findall(r"^```python\n(.*?)^```", shown, re.MULTILINE | re.DOTALL)))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    before = dict(scrubjay.experiments.RECIPES)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[module.__name__]
    for name in set(scrubjay.experiments.RECIPES) - set(before):
        del scrubjay.experiments.RECIPES[name]


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("memory", "memory/registry.py"),
        ("policy", "memory/context/registry.py"),
        ("environment", "envs/registration.py"),
        ("learner", "agents/learners.py"),
        ("experiment", "experiments/kinds/__init__.py"),
        ("command", "experiments/commands/__init__.py"),
        ("tool", "agents/tools/registry.py"),
        ("kernel", "kernels/__init__.py"),
    ],
)
def test_each_page_names_few_places_and_they_exist(page, file):
    said = PAGES[page]
    lines = re.findall(r"^The line.*?(?=\n\n|\Z)", said, re.MULTILINE | re.DOTALL)
    named = [path for line in lines for path in re.findall(r"`([\w/]+\.py)`", line)]
    places = [path for path in dict.fromkeys(named) if not path.startswith("tests/")]
    assert file in places
    assert len(places) < LIMIT, f"with the new file itself more than {LIMIT}: {places}"
    for path in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", said):
        assert (ROOT / path).exists(), path


def test_every_page_is_listed_and_led_to():
    listed = re.findall(r"\]\((\w+)\.md\)", PAGES["index"])
    assert sorted([*listed, "index"]) == sorted(PAGES)
    led_to = re.findall(r"\(docs/extending/(\w+)\.md\)", (ROOT / "CONTRIBUTING.md").read_text())
    assert sorted(led_to) == sorted(PAGES)


def test_the_memory(written, monkeypatch):
    from scrubjay.memory import registry

    monkeypatch.setitem(registry._CONFIGS, "leaky", written.LeakyConfig)
    assert "leaky" in scrubjay.memory.list_memories()
    assert scrubjay.memory.make("leaky", dim=8, decay=0.5).decay == 0.5


def test_the_context_policy(written, monkeypatch):
    from scrubjay.memory.context import registry

    monkeypatch.setitem(registry._POLICIES, "tail", written.TailPolicy)
    assert scrubjay.memory.context.make("tail", budget=9) == written.TailPolicy(9)
    assert scrubjay.memory.context.name_of(written.TailPolicy()) == "tail"
    held = next(iter(written.cache.layers[0].memory.state.values()))
    assert held.shape[2] <= 8
    widening = written.widening
    assert [layer.memory.state["keys"].shape[2] for layer in widening.layers] == [8, 16]
    assert widening.nbytes() == widening.policy.nbytes(22, widening.shape())


def test_the_environment(written, monkeypatch):
    module = types.ModuleType("scrubjay.envs.coin")
    module.__dict__.update(Coin=written.Coin, CoinVector=written.CoinVector)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    from scrubjay.envs import registration

    monkeypatch.setitem(registration._HOMES, "Coin", "coin")
    registration.register()
    try:
        from gymnasium.utils.env_checker import check_env

        check_env(gymnasium.make("scrubjay/Coin-v0", render_mode="rgb_array").unwrapped)
        vector = gymnasium.make_vec("scrubjay/Coin-v0", 64, vectorization_mode="vector_entry_point", delay=1)
        sides, _ = vector.reset(seed=0)
        assert set(sides) == {0, 1}
        assert np.all(vector.step(sides)[1] == 1.0)
        assert "scrubjay/Coin-v0" in scrubjay.envs.list_environments()
    finally:
        del gymnasium.registry["scrubjay/Coin-v0"]


def test_the_learner(written, monkeypatch, tmp_path):
    from scrubjay.agents import learners

    monkeypatch.setitem(learners._LEARNERS, "a2c", written.A2CConfig)
    assert "a2c" in scrubjay.agents.list_learners("agent")
    words = [
        "train", "repeat-previous", "--set", "k=1", "--learner", "a2c", "--learner.learning-rate", "0.01",
        "--learner.gamma", "0", "--memory.dim", "16", "--env.num-envs", "16", "--segment-length", "16",
        "--total-steps", "16384", "--eval-episodes", "20", "--quiet",
    ]  # fmt: skip
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    run = Run.load(tmp_path / "run")
    assert run.result["success"] > 0.9
    assert run.config.label == "a2c-gru"


def test_the_recipe(written, tmp_path):
    assert "tmaze-short" in scrubjay.experiments.RECIPES
    words = ["--total-steps", "256", "--eval-episodes", "2", "--quiet", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "tmaze-short", "--memory", "none", *words]) == 0
    assert Run.load(tmp_path / "run").config.recipe == "tmaze-short"


def test_the_kind_of_experiment(written, monkeypatch, tmp_path):
    from scrubjay.experiments import kinds

    monkeypatch.setitem(kinds._KINDS, "parity", (written.ParityConfig, written.ParityEngine))
    memory = scrubjay.memory.make_config("gru", dim=16)
    run = train(written.ParityConfig(memory=memory, learning_rate=0.02), tmp_path / "parity")
    assert run.result["success"] > 0.9
    assert Run.load(run.path).config == run.config
    assert Run.load(run.path).finished
    with pytest.raises(TypeError, match="has no policy"):
        _ = run.policy


def test_the_command(written, monkeypatch, capsys):
    from scrubjay.experiments import commands

    module = types.ModuleType("scrubjay.experiments.commands.greet")
    module.__dict__["run"] = written.run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(commands.COMMANDS, "greet", ("greet somebody", "greet.run"))
    assert main(["greet", "--name", "Ada"]) == 0
    assert "hello, Ada" in capsys.readouterr().out
    assert main(["greet", "--name", ""]) == 2
    assert main(["--help"]) == 0
    assert "greet somebody" in capsys.readouterr().out


def test_the_tool(written, monkeypatch):
    from scrubjay.agents.tools import list_tools, make_tools, registry

    monkeypatch.setitem(registry._SPECS, "letters", written.LETTERS)
    assert "letters" in list_tools()
    assert "字母" in list_tools("zh")
    (tool,) = make_tools(["letters"])
    assert tool.invoke({"word": "jay"}) == "3 letters"
    assert "the word is empty" in tool.invoke({"word": ""})


def test_the_kernel(written):
    values = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: written.leaky_sum(v, 0.7), values)
    with pytest.raises(ValueError, match="there is no kernel"):
        written.leaky_sum(values, 0.7, implementation="triton")
