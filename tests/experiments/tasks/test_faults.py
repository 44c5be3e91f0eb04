"""Faults of a user's environment are reported with its name, before training or when they occur."""

from __future__ import annotations

import re
import sys
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from scrubjay.agents.rl.observations import EnvFaultError
from scrubjay.experiments import EnvConfig, TrainConfig, train
from scrubjay.experiments.cli.failures import BrokenEnvError


class Things(gymnasium.Env):
    """Environment with set, discrete and vector observations; step number `when` has the fault `fault`."""

    observation_space = spaces.Dict(
        {
            "things": spaces.Box(-1, 1, (3, 2), np.float32),
            "things_mask": spaces.MultiBinary(3),
            "place": spaces.Discrete(4, start=1),
            "marks": spaces.MultiDiscrete([2, 3]),
        }
    )
    action_space = spaces.Discrete(2)

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, fault: str = "", when: int = 1, render_mode: str | None = None) -> None:
        self.fault, self.when, self.steps, self.render_mode = fault, when, 0, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        observation = self.observe()
        return observation if self.fault == "old reset" else (observation, {})

    def observe(self) -> dict[str, Any]:
        things = np.full((3, 2), np.nan, np.float32)  # the third slot is masked out
        things[:2] = 0.5
        mask, marks = np.array([1, 1, 0], np.int8), np.array([1, 2])
        return {"things": things, "things_mask": mask, "place": 4, "marks": marks}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)

    def step(self, action: Any) -> Any:
        self.time, self.steps = self.time + 1, self.steps + 1
        observation, reward, over = self.observe(), 1.0, self.time == 5
        fault = self.fault if self.steps == self.when else ""
        if fault == "bug":
            raise ValueError("a bug")
        if fault == "shape":
            observation["things"] = observation["things"][:2]
        if fault == "missing":
            del observation["marks"]
        if fault == "place":
            observation["place"] = 0
        if fault == "marks":
            observation["marks"] = np.array([2, 0])  # a valid index of another mark in a flat encoding
        if fault == "outside":
            observation["things"][1, 0] = 1.5
        if fault == "nan":
            observation["things"][0, 1] = np.nan
        if fault == "paid nothing":
            reward = None
        if fault == "paid twice":
            reward = np.ones(2)
        if fault == "paid inf":
            reward = np.inf
        return (
            (observation, reward, over, {}) if fault == "old step" else (observation, reward, over, False, {})
        )


FAULTS = {
    "shape": r"observation 'things' has shape \(2, 2\); expected \(3, 2\), as its space is",
    "missing": r"observation has no key 'marks', only \['place', 'things', 'things_mask'\]",
    "place": r"observation 'place' contains 0, which is not in its space, Discrete\(4, start=1\)",
    "marks": r"observation 'marks' contains 2, which is not in its space, MultiDiscrete\(\[2 3\]\)",
    "nan": "observation 'things' contains nan; observations must be finite",
    "paid nothing": "environment 0 returned the reward nan; rewards must be finite",
    "paid twice": r"step returned reward array\(\[1., 1.\]\); it must be a number",
    "paid inf": "environment 0 returned the reward inf; rewards must be finite",
    "old reset": "reset returned a dict; expected observation, info",
    "old step": "step returned a tuple of 4; expected observation, reward, terminated, truncated, info",
}
SEEN_LATER = ("place", "marks", "nan", "paid nothing", "paid inf")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_things", sys.modules[__name__])


def config(tiny, **kwargs: Any) -> TrainConfig:
    return tiny(env=EnvConfig("my_things:Things", kwargs, num_envs=4))


def test_what_is_right_is_tried_out_and_learned_from(tiny, tmp_path):
    train(config(tiny), tmp_path / "run")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_from_the_beginning_is_told_before_a_run_is_begun(fault, tiny, tmp_path):
    with pytest.raises(EnvFaultError, match=f"environment 'my_things:Things': {FAULTS[fault]}"):
        train(config(tiny, fault=fault), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", SEEN_LATER)
def test_what_goes_wrong_later_ends_the_training_before_anything_is_learned_from_it(fault, tiny, tmp_path):
    with pytest.raises(EnvFaultError, match=FAULTS[fault]):
        train(config(tiny, fault=fault, when=18), tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert not any("NaN" in row for row in rows)


@pytest.mark.parametrize("when", [1, 18])
def test_the_first_observation_outside_its_box_is_reported_once(when, tiny, tmp_path, caplog):
    train(config(tiny, fault="outside", when=when), tmp_path / "run")
    lines = [record.getMessage() for record in caplog.records if "outside its space" in record.getMessage()]
    expected = r"observation 'things' contains 1.5 at index \(1, 0\), which is outside its space, Box.*"
    assert len(lines) == 1
    assert re.match(expected, lines[0])


class Masked(Things):
    """Environment that forbids action 1 in its observations, its infos or a method, until step `until`.

    The infos have the mask from step `when` on.
    """

    def __init__(self, place: str = "info", when: int = 0, until: int = 10**6) -> None:
        super().__init__(when=0)
        self.place, self.first, self.until = place, when, until
        if place == "observation":
            self.observation_space = spaces.Dict(
                {
                    "things": Things.observation_space,
                    "nested": spaces.Dict({"action_mask": spaces.MultiBinary(2)}),
                }
            )
        if place == "method":
            self.action_masks = self.mask

    def mask(self) -> Any:
        return np.array([1, 0], np.int8) * (self.steps < self.until)

    def reset(self, **options: Any) -> Any:
        return self.wrap(super().reset(**options)[0]), self.offer()

    def step(self, action: Any) -> Any:
        assert action == 0 or self.steps < self.first
        observation, *others, _ = super().step(action)
        return self.wrap(observation), *others, self.offer()

    def wrap(self, observation: Any) -> Any:
        if self.place != "observation":
            return observation
        return {"things": observation, "nested": {"action_mask": self.mask()}}

    def offer(self) -> dict[str, Any]:
        return {"action_mask": self.mask()} if self.place == "info" and self.steps >= self.first else {}


def masked(tiny, **kwargs: Any) -> TrainConfig:
    return tiny(env=EnvConfig("my_things:Masked", kwargs, num_envs=4))


@pytest.mark.parametrize("place", ["observation", "info", "method"])
def test_invalid_masks_are_told_before_training(place, tiny, tmp_path):
    message = "environment 'my_things:Masked': environment 0, step 3: the action mask allows no action"
    with pytest.raises(EnvFaultError, match=message):
        train(masked(tiny, place=place, until=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["observation", "info", "method"])
def test_invalid_masks_end_the_training(place, tiny, tmp_path):
    with pytest.raises(
        EnvFaultError, match="environment 0, step 30: the action mask allows no action; allow"
    ):
        train(masked(tiny, place=place, until=30), tmp_path / "run")


def test_an_action_mask_that_appears_later_ends_the_training(tiny, tmp_path):
    with pytest.raises(
        EnvFaultError, match="step 30: info has the key 'action_mask', but the first info had"
    ):
        train(masked(tiny, when=30), tmp_path / "run")


def test_the_command_says_how_to_go_on(here, tiny, tmp_path, monkeypatch):
    words = ["train", "ppo", "--env", "my_things:Things", "--set", "fault=place", "--set", "when=18"]
    code, _, err = here(
        *words, "--env.num-envs", 4, "--segment-length", 8, "--total-steps", 192, "--run-dir", "r"
    )
    assert code == 1
    assert err.startswith("scrubjay: environment 'my_things:Things': observation 'place' contains 0")
    assert err.endswith("after fixing it, continue with: scrubjay resume r --env my_things:Things\n")


def test_a_bug_of_an_environment_in_training_is_named_with_how_to_go_on(here, tiny, tmp_path, monkeypatch):
    words = ["train", "ppo", "--env", "my_things:Things", "--set", "fault=bug", "--set", "when=18"]
    code, _, err = here(
        *words, "--env.num-envs", 4, "--segment-length", 8, "--total-steps", 192, "--run-dir", "r"
    )
    assert code == 1
    assert (
        "a bug; after fixing it, continue with: scrubjay resume r --env my_things:Things (traceback: " in err
    )


@pytest.mark.parametrize("verb", ["eval", "play", "look"])
def test_what_an_environment_raises_is_told_as_its_own_with_its_traceback(verb, here, tiny, tmp_path):
    train(config(tiny), tmp_path / "r")
    words = [verb, "r", "--trust", "--set", "when=3"]
    code, _, err = here(*words, "--set", "fault=bug")
    assert code == 1
    prefix = "scrubjay: environment 'my_things:Things' raised ValueError: a bug (traceback: "
    assert err.startswith(prefix)
    code, _, err = here(*words, "--set", "fault=marks")
    assert code == 2
    assert "environment 'my_things:Things': observation 'marks' contains 2, which is not in its" in err


def test_a_bug_in_its_first_steps_keeps_its_traceback(tiny, tmp_path):
    with pytest.raises(BrokenEnvError, match="environment 'my_things:Things' raised ValueError: a bug"):
        train(config(tiny, fault="bug"), tmp_path / "run")


CONSTRUCTORS = """
class LicenseError(Exception):
    pass


def make(kind):
    if kind == "license":
        raise LicenseError("no key")
    raise RuntimeError("no display") if kind == "display" else OSError("no file")
"""


@pytest.mark.parametrize("recipe", ["ppo", "team"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("license", "raised LicenseError: no key (traceback: "),
        ("display", "raised RuntimeError: no display (traceback: "),
        ("file", "no file"),
    ],
)
def test_an_environment_that_cannot_be_made_is_named(recipe, kind, message, here, tmp_path):
    name = f"constructors_{recipe}_{kind}"
    (tmp_path / f"{name}.py").write_text(CONSTRUCTORS)
    _, _, err = here("train", recipe, "--env", f"{name}:make", "--set", f"kind={kind}", "--run-dir", "r")
    assert err.startswith(f"scrubjay: environment '{name}:make'")
    assert message in err
    assert not (tmp_path / "r").exists()
