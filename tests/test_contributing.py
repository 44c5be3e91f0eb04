"""The examples of `docs/extending` work after their line is added."""

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
from scrubjay.experiments.commands.main import main

pytestmark = pytest.mark.requires("transformers")

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "extending").glob("*.md"))}
LIMIT = 3
"""Limit of files that a new component changes."""


@pytest.fixture(scope="module")
def snippets(tmp_path_factory):
    """Return a module with the code of all pages."""
    file = tmp_path_factory.mktemp("contributed") / "scrubjay_contributed.py"
    text = "\n".join(PAGES.values())
    file.write_text("\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)))
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
        ("experiment", "experiments/runs/kinds.py"),
        ("command", "experiments/commands/__init__.py"),
        ("tool", "agents/tools/registry.py"),
        ("kernel", "kernels/__init__.py"),
    ],
)
def test_each_page_names_few_places_and_they_exist(page, file):
    text = PAGES[page]
    lines = re.findall(r"^The line.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    paths = [path for line in lines for path in re.findall(r"`([\w/]+\.py)`", line)]
    places = [path for path in dict.fromkeys(paths) if not path.startswith("tests/")]
    assert file in places
    assert len(places) < LIMIT, f"more than {LIMIT} files with the new one: {places}"
    for path in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", text):
        assert (ROOT / path).exists(), path


def test_every_page_is_linked():
    links = re.findall(r"\]\((\w+)\.md\)", PAGES["index"])
    assert sorted([*links, "index"]) == sorted(PAGES)
    links = re.findall(r"\(docs/extending/(\w+)\.md\)", (ROOT / "CONTRIBUTING.md").read_text())
    assert sorted(links) == sorted(PAGES)


def test_the_memory(snippets, monkeypatch):
    from scrubjay.memory import registry

    monkeypatch.setitem(registry._CONFIGS, "leaky", snippets.LeakyConfig)
    assert "leaky" in scrubjay.memory.list_memories()
    assert scrubjay.memory.make("leaky", dim=8, decay=0.5).decay == 0.5
    # The page's own line tests the laws in float32 and float64.
    scrubjay.memory.check_memory(
        scrubjay.memory.make("leaky", dim=16), dtypes=(), laws=(1, 2, 4, 5, 6, 9), autocast=True
    )


@pytest.mark.slow
def test_the_context_policy(snippets, monkeypatch):
    from scrubjay.memory.context import registry

    monkeypatch.setitem(registry._POLICIES, "tail", snippets.TailPolicy)
    assert scrubjay.memory.context.make("tail", budget=9) == snippets.TailPolicy(9)
    assert scrubjay.memory.context.name_of(snippets.TailPolicy()) == "tail"
    assert snippets.scored.dropped_tokens == 28
    assert snippets.scored.nbytes() == snippets.scored.policy.nbytes(40, snippets.scored.shape()) == 6208
    keys = next(iter(snippets.cache.layers[0].memory.state.values()))
    assert keys.shape[2] <= 8
    widening = snippets.widening
    assert [layer.memory.state["keys"].shape[2] for layer in widening.layers] == [8, 16]
    assert widening.nbytes() == widening.policy.nbytes(22, widening.shape())


def test_the_environment(snippets, monkeypatch):
    module = types.ModuleType("scrubjay.envs.coin")
    module.__dict__.update(Coin=snippets.Coin, CoinVector=snippets.CoinVector)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    from scrubjay.envs import registration

    monkeypatch.setitem(registration._MODULES, "Coin", "coin")
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


def test_the_learner(snippets, monkeypatch, tmp_path):
    from scrubjay.agents import learners

    monkeypatch.setitem(learners._LEARNERS, "a2c", snippets.A2CConfig)
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


def test_the_recipe(snippets, tmp_path):
    assert "tmaze-short" in scrubjay.experiments.RECIPES
    words = ["--total-steps", "256", "--eval-episodes", "2", "--quiet", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "tmaze-short", "--memory", "none", *words]) == 0
    assert Run.load(tmp_path / "run").config.recipe == "tmaze-short"


def test_the_experiment_type(snippets, monkeypatch, tmp_path):
    from scrubjay.experiments.runs import kinds

    monkeypatch.setitem(kinds._KINDS, "parity", (snippets.ParityConfig, snippets.ParityEngine))
    memory = scrubjay.memory.make_config("gru", dim=16)
    run = train(snippets.ParityConfig(memory=memory, learning_rate=0.02), tmp_path / "parity")
    assert run.result["success"] > 0.9
    assert Run.load(run.path).config == run.config
    assert Run.load(run.path).is_finished
    with pytest.raises(TypeError, match="has no policy"):
        _ = run.policy


def test_the_command(snippets, monkeypatch, capsys):
    from scrubjay.experiments import commands

    module = types.ModuleType("scrubjay.experiments.commands.greet")
    module.__dict__["run"] = snippets.run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(commands.COMMANDS, "greet", ("greet somebody", "greet.run"))
    assert main(["greet", "--name", "Ada"]) == 0
    assert "hello, Ada" in capsys.readouterr().out
    assert main(["greet", "--name", ""]) == 2
    assert main(["--help"]) == 0
    assert "greet somebody" in capsys.readouterr().out


def test_the_tool(snippets, monkeypatch):
    from scrubjay.agents.tools import list_tools, make_tools, registry

    monkeypatch.setitem(registry._SPECS, "letters", snippets.LETTERS)
    assert "letters" in list_tools()
    assert "字母" in list_tools("zh")
    (tool,) = make_tools(["letters"])
    assert tool.invoke({"word": "jay"}) == "3 letters"
    assert "the word is empty" in tool.invoke({"word": ""})


def test_the_kernel(snippets):
    values = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: snippets.leaky_sum(v, 0.7), values)
    with pytest.raises(ValueError, match="there is no kernel"):
        snippets.leaky_sum(values, 0.7, implementation="triton")
