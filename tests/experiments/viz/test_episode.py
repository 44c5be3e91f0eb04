"""Trace of an episode: it matches the played episode and contains the reads of the memory."""

import base64
import io

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.experiments import EnvConfig
from scrubjay.experiments.viz.episode import format_value, trace_episode
from scrubjay.experiments.viz.trace import from_json, to_json
from scrubjay.memory import make_config

from .conftest import policy_for

MAZE = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 6})


def test_a_trace_is_of_the_episode_that_is_played():
    policy = policy_for(MAZE, "hcam", chunk_size=2, num_chunks=3, top_k=2)
    trace = trace_episode(policy, MAZE, seed=3)
    env, state, rewards, choices, over = MAZE.make(), None, [], [], False
    observation, _ = env.reset(seed=3)
    while not over:
        action, state = policy.act(observation, state)
        observation, reward, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
        rewards.append(float(reward))
        choices.append(str(action))
    assert [step.choice for step in trace.steps] == choices
    assert list(trace.tracks["reward"]) == rewards
    assert trace.about["return"] == f"{sum(rewards):g}"
    assert [step.time for step in trace.steps] == list(range(len(choices)))
    for step, chance in zip(trace.steps, trace.tracks["probability of the choice"], strict=True):
        assert sum(step.options.values()) == pytest.approx(1)
        assert step.options[step.choice] == max(step.options.values()) == pytest.approx(chance)
    assert from_json(to_json(trace)) == trace


def test_values_are_those_of_a_separate_critic_that_sees_normalized_observations():
    config = PolicyConfig(
        make_config("gru", dim=8), skip=True, separate_critic=True, normalize_observations=True
    )
    torch.manual_seed(0)
    policy = config.build(MAZE.spaces()).eval()
    assert policy.normalizer is not None
    policy.normalizer.update(torch.rand(50, 4) * 3, SingleProcess())
    trace, env = trace_episode(policy, MAZE, seed=3), MAZE.make()
    observation, state, values = env.reset(seed=3)[0], policy.initial_state(1), []
    for step in trace.steps:
        batch = torch.as_tensor(observation)[None]
        values.append(policy.value(batch, state).item())
        state = policy.step(batch, state).state
        observation, *_ = env.step(int(step.choice))
    assert list(trace.tracks["value"]) == pytest.approx(values, abs=1e-5)


def test_pictures_are_those_of_the_steps_and_each_is_kept_once():
    trace = trace_episode(policy_for(MAZE, "none"), MAZE)
    assert len(trace.pictures) == len(set(trace.pictures))
    assert {step.picture for step in trace.steps} == set(range(len(trace.pictures)))
    env = MAZE.make(render_mode="rgb_array")
    env.reset(seed=1)
    data = base64.b64decode(trace.pictures[0].partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(env.render()))


def test_what_a_memory_says_is_in_the_trace():
    hcam = trace_episode(policy_for(MAZE, "hcam", chunk_size=2, num_chunks=3, top_k=2), MAZE)
    chunks = [recall for step in hcam.steps for recall in step.recalls if recall.name == "chunks, layer 0"]
    assert [len(recall.steps) for recall in chunks[:7]] == [0, 0, 2, 2, 4, 4, 4]
    assert all(recall.weights.sum() == pytest.approx(1, abs=0.01) for recall in chunks[2:])
    titans = trace_episode(policy_for(MAZE, "titans"), MAZE)
    assert all(value is not None and value >= 0 for value in titans.tracks["surprise, layer 0"])
    assert "recall density" in hcam.about
    assert "recall density" not in titans.about


class Dark(gymnasium.Env):
    """Environment with three numbers as observation and no rendering."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([0.5, 0.25, 0.0], np.float32), {}

    def step(self, action):
        assert action in (5, 6)
        return np.zeros(3, np.float32), 1.0, False, True, {}


def test_what_draws_nothing_is_told_in_numbers():
    env = EnvConfig(f"{__name__}:Dark")
    (step,) = trace_episode(policy_for(env, "gru"), env).steps
    assert step.picture is None
    assert step.text == "[0.5  0.25 0.  ]"
    assert set(step.options) == {"5", "6"}


def test_numbers_that_are_chosen_and_observations_of_parts_are_told():
    env = EnvConfig("Pendulum-v1")
    trace = trace_episode(policy_for(env, "gru"), env, max_steps=4)
    assert not any(step.options for step in trace.steps)
    assert all(step.choice.startswith("[") for step in trace.steps)
    before = EnvConfig("scrubjay/TMaze-v0", inputs=("observation", "action", "reward"))
    assert "reward" in trace_episode(policy_for(before, "gru"), before, max_steps=3).steps[1].text
    assert format_value({"card": (2, np.arange(3)), "image": np.zeros((64, 64, 3))}) == "card 2; [0 1 2]"


def test_a_policy_is_left_as_it_was():
    policy = policy_for(MAZE, "gru").train()
    state = torch.random.get_rng_state()
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    trace_episode(policy, MAZE)
    assert policy.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_the_total_of_steps_is_unknown_while_the_episode_is_played():
    calls = []
    trace = trace_episode(policy_for(MAZE, "gru"), MAZE, on_step=lambda *call: calls.append(call))
    length = len(trace.steps)
    assert calls[:length] == [(step, None) for step in range(1, length + 1)]
    assert {total for _, total in calls[length:]} == {length}
    steps = [step for step, _ in calls[length:]]
    assert steps == sorted(steps)
    assert steps[0] > 0
    assert steps[-1] == length
    with pytest.raises(ValueError, match="max_steps=0: must be at least 1"):
        trace_episode(policy_for(MAZE, "gru"), MAZE, max_steps=0)


@pytest.mark.slow
def test_a_ballet_is_a_page_of_less_than_five_megabytes():
    from scrubjay.experiments.viz.look import render_page

    env = EnvConfig("scrubjay/Ballet-v0", {"num_dancers": 8})
    trace = trace_episode(policy_for(env, "hcam", dim=64), env, max_steps=1000)
    assert len(render_page(trace)) < 5_000_000
