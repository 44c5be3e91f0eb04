"""MiniGrid with the unmodified command, with its mission encoded or dropped."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest

from scrubjay.envs import TextObservation
from scrubjay.experiments import EnvConfig, Run
from scrubjay.experiments.tasks import environments as names

from .conftest import SIZES

pytestmark = pytest.mark.requires("minigrid")

NAME = "minigrid:MiniGrid-Fetch-5x5-N2-v0"


@pytest.mark.parametrize("text", ["encode", "drop"])
def test_a_policy_trains_resumes_and_acts(text, train_resume_and_evaluate, tmp_path):
    train_resume_and_evaluate(NAME, "--env.text", text)
    policy = Run.load(tmp_path / "run").policy
    env = TextObservation(gymnasium.make(NAME), text)
    observation, _ = env.reset(seed=0)
    assert ("mission" in observation) == (text == "encode")
    for _ in range(3):
        action, _ = policy.act(observation)
        observation, *_ = env.step(action)
    env.close()


def test_the_mission_reaches_the_policy(here, tmp_path):
    words = ["train", "ppo", "--env", NAME, "--run-dir", "run", *SIZES, "--total-steps", 32]
    assert here(*words, "--eval-episodes", 0, "--quiet")[0] == 0
    policy = Run.load(tmp_path / "run").policy
    env = EnvConfig(NAME).make()
    observation, _ = env.reset(seed=0)
    other = next(
        o for o, _ in (env.reset(seed=seed) for seed in range(1, 50)) if not same_mission(o, observation)
    )
    variant = {**observation, "mission": other["mission"]}
    states = [policy.act(version)[1] for version in (observation, variant)]
    assert any(not (states[0][key] == states[1][key]).all() for key in states[0])
    env.close()


def same_mission(one, other):
    return np.array_equal(one["mission"]["words"], other["mission"]["words"])


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(
    ("wrappers", "layer"),
    [
        (["minigrid.wrappers:ImgObsWrapper"], "cells.embed.weight"),
        (["minigrid.wrappers:ImgObsWrapper", "FrameStackObservation(stack_size=3)"], "cells.embed.weight"),
        (["minigrid.wrappers:OneHotPartialObsWrapper"], "cells.embed.weight"),
        (["minigrid.wrappers:RGBImgPartialObsWrapper"], "convolutions.0.weight"),
        (["minigrid.wrappers:FlatObsWrapper"], "linear.weight"),
    ],
)
def test_images_stacks_and_flat_vectors(wrappers, layer, here, tmp_path):
    options = [word for wrapper in wrappers for word in ("--wrap", wrapper)]
    words = ["train", "ppo", "--env", NAME, *options, "--run-dir", "run", *SIZES, "--total-steps", 32]
    code, _, err = here(*words, "--eval-episodes", 1, "--quiet")
    assert code == 0, err
    policy = Run.load(tmp_path / "run").policy
    assert any(name.endswith(layer) for name, _ in policy.encoder.named_parameters())


def test_previous_actions_are_added_to_a_mission(here):
    words = [
        "train",
        "ppo",
        "--env",
        NAME,
        "--env.inputs",
        "observation",
        "action",
        "--run-dir",
        "run",
        *SIZES,
    ]
    code, _, err = here(*words, "--total-steps", 32, "--eval-episodes", 2, "--quiet")
    assert code == 0, err


def test_a_run_from_elsewhere_may_name_it_but_no_setting_with_a_text(here, tmp_path, monkeypatch):
    words = ["train", "ppo", "--env", NAME, "--run-dir", "run", *SIZES, "--total-steps", 32]
    assert here(*words, "--eval-episodes", 0, "--quiet")[0] == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    for id_, kwargs, is_refused in (
        (NAME, {}, False),
        (NAME, {"size": 6}, False),
        (NAME, {"wfc_config": "/etc/passwd"}, True),
        (NAME, {"render_mode": "human"}, True),
        ("minigrid:CartPole-v1", {}, True),
        ("minigrid.envs:FetchEnv", {}, True),
    ):
        monkeypatch.setattr(names, "_USER_NAMES", set())
        path = tmp_path / "moved" / "config.json"
        fields = json.loads(path.read_text())
        fields["env"] |= {"id": id_, "kwargs": kwargs}
        path.write_text(json.dumps(fields))
        code, _, err = here("eval", "moved", "--episodes", 1)
        assert ("add --trust" in err) == is_refused, (id_, kwargs, err)
        assert code == (2 if is_refused else 0), err
