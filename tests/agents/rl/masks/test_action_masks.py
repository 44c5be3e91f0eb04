"""Action masks: no forbidden action is sampled, learned from or evaluated, wherever the mask stands."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch.distributions import Categorical

from scrubjay.agents import Policy, PolicyConfig, Sampler
from scrubjay.agents.rl.distributions import CategoricalHead
from scrubjay.agents.rl.masks.action_masks import ActionMasks, drop_mask, sample_action
from scrubjay.agents.rl.masks.detection import offers_masks
from scrubjay.agents.rl.observations import EnvFaultError, to_leaves
from scrubjay.agents.rl.ppo import PPO, PPOConfig
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.memory.gru import GRUConfig

ACTIONS: dict[str, Any] = {
    "discrete": spaces.Discrete(5, start=2),
    "parts": spaces.MultiDiscrete([2, 4, 3], start=[0, 1, -1]),
    "square": spaces.MultiDiscrete(np.full((2, 2), 2)),
}
PLACES = ("observation", "info", "method", "nested")


def sizes_of(space: spaces.Space) -> tuple[int, ...]:
    masks = Spaces(spaces.Discrete(2), space, action_masks=True).masks
    assert masks is not None
    return masks.sizes


class MaskedEnv(gymnasium.Env):
    """Environment that draws a mask in every step and fails on a forbidden action; reward 1 for the first."""

    def __init__(self, place: str = "info", actions: str = "discrete", length: int = 5) -> None:
        self.place, self.actions, self.length, self.action_space = place, actions, length, ACTIONS[actions]
        self.sizes = sizes_of(self.action_space)
        vector, mask = spaces.Box(-9, 9, (3,), np.float32), spaces.MultiBinary(sum(self.sizes))
        self.observation_space = {
            "observation": spaces.Dict({"observation": vector, "action_mask": mask}),
            "nested": spaces.Dict({"inner": spaces.Dict({"action_mask": mask}), "x": vector}),
        }.get(place, vector)
        if place == "method":
            self.action_masks = lambda: self.mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.offer()

    def step(self, action: Any) -> Any:
        first = np.ravel(action - np.asarray(ACTIONS[self.actions].start))
        indices = np.cumsum((0, *self.sizes))[:-1] + first
        assert self.mask[indices].all(), f"{action} is forbidden by {self.mask}"
        self.time += 1
        ends = self.time == self.length
        observation, info = self.offer()
        return observation, float(first[0] == 0), False, ends, info

    def offer(self) -> Any:
        parts = [self.np_random.integers(2, size=size) for size in self.sizes]
        for part in parts:
            part[self.np_random.integers(len(part))] = 1
        self.mask = np.concatenate(parts).astype(np.int8)
        vector = self.np_random.normal(size=3).astype(np.float32)
        observation = {
            "observation": {"observation": vector, "action_mask": self.mask},
            "nested": {"inner": {"action_mask": self.mask}, "x": vector},
        }.get(self.place, vector)
        return observation, {"action_mask": self.mask} if self.place == "info" else {}

    def get_state(self) -> Any:
        return copy.deepcopy((self.np_random, self.time, self.mask))

    def set_state(self, state: Any) -> None:
        self.np_random, self.time, self.mask = copy.deepcopy(state)


def make_envs(num_envs: int = 3, **options: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: MaskedEnv(**options)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def build(envs: Any, seed: int = 0, **options: Any) -> Policy:
    torch.manual_seed(seed)
    policy = PolicyConfig(GRUConfig(dim=8), **options).build(Spaces.from_env(envs))
    for parameter in policy.actor.parameters():
        torch.nn.init.normal_(parameter, std=0.7)  # far from uniform
    return policy


def get_masks(segment: Any) -> torch.Tensor:
    (masks,) = (leaf for key, leaf in segment.observations.items() if key.endswith("action_mask"))
    return masks > 0


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_no_forbidden_action_is_sampled(place, actions):
    """The environment fails on a forbidden action; episodes end, and the mask is that of the next episode."""
    envs = make_envs(place=place, actions=actions)
    policy = build(envs)
    segment = Sampler(envs, policy, 23, seed=1).collect()
    assert (segment.log_probs > -50).all()
    evaluation = policy.evaluate(segment)
    assert torch.allclose(evaluation.log_probs, segment.log_probs, atol=1e-5)
    evaluation.log_probs.sum().backward()
    assert all(part.grad is None or part.grad.isfinite().all() for part in policy.parameters())


@pytest.mark.parametrize("place", ["info", "method"])
def test_environments_in_other_processes_offer_masks(place):
    makers = [lambda: MaskedEnv(place)] * 2
    envs = AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    segment = Sampler(envs, build(envs), 12, seed=1).collect()
    envs.close()
    again = make_envs(2, place=place)
    assert torch.equal(segment.actions, Sampler(again, build(again), 12, seed=1).collect().actions)


def test_all_places_give_the_same_training():
    weights = []
    for place in PLACES:
        envs = make_envs(place=place)
        policy = build(envs, seed=4)
        learner, sampler = PPO(policy, PPOConfig(num_minibatches=3), 5), Sampler(envs, policy, 9, seed=2)
        for _ in range(2):
            learner.update(sampler.collect())
        weights.append(policy.state_dict())
    for other in weights[1:]:
        # One encoder is inside a dict with other leaves, but the mask is no feature in any of them.
        assert all(torch.equal(*pair) for pair in zip(weights[0].values(), other.values(), strict=True))


@pytest.mark.parametrize("actions", ["discrete", "parts"])
def test_the_masked_distribution_is_that_of_sb3_contrib(actions):
    """The reference is sb3-contrib's `MaskableCategorical`: torch's Categorical of logits with -1e8."""
    space, features = ACTIONS[actions], torch.randn(7, 8, dtype=torch.double)
    sizes = sizes_of(space)
    head = CategoricalHead(space, 8).double()
    torch.nn.init.normal_(head.linear.weight)
    torch.manual_seed(0)
    mask = torch.rand(7, sum(sizes)) < 0.5
    for start, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
        mask[:, start + torch.randint(size, ())] = True
    distribution = head(features, mask)
    indices = distribution.sample(torch.Generator().manual_seed(0))
    logits = head.linear(features).reshape(7, len(sizes), -1)
    references = []
    for part, part_mask in enumerate(mask.split(sizes, dim=-1)):
        masked = torch.where(part_mask, logits[:, part, : sizes[part]], -1e8)
        references.append((Categorical(logits=masked), Categorical(probs=masked.softmax(-1)), part_mask))
    by_part = indices.reshape(7, -1).unbind(-1)
    log_prob = sum(one.log_prob(index) for (one, _, _), index in zip(references, by_part, strict=True))
    entropy = 0
    for one, _, part_mask in references:
        entropy = entropy - torch.where(part_mask, one.logits * one.probs, 0).sum(-1)
    for ours, theirs in ((distribution.log_prob(indices), log_prob), (distribution.entropy(), entropy)):
        torch.testing.assert_close(ours, theirs)
        weights = torch.randn(7, dtype=torch.double)
        gradients = [
            torch.autograd.grad((value * weights).sum(), list(head.parameters()), retain_graph=True)
            for value in (ours, theirs)
        ]
        for pair in zip(*gradients, strict=True):
            torch.testing.assert_close(*pair)
    # A mask of ones changes nothing, and KL and barrier are those over the allowed choices.
    free = head(features)
    torch.testing.assert_close(head(features, torch.ones_like(mask)).outputs(), free.outputs())
    assert distribution.kl(distribution).abs().max() < 1e-12
    assert distribution.barrier().isfinite().all()


@pytest.mark.parametrize("actions", ["discrete", "parts"])
def test_sb3_contrib_itself_has_the_same_distribution(actions):
    contrib = pytest.importorskip("sb3_contrib.common.maskable.distributions")
    space = ACTIONS[actions]
    head = CategoricalHead(space, 8)
    torch.nn.init.normal_(head.linear.weight)
    sizes = (5,) if actions == "discrete" else (2, 4, 3)
    features, mask = torch.randn(9, 8), torch.rand(9, sum(sizes)) < 0.4
    mask[:, np.cumsum(sizes) - 1] = True
    logits = head.linear(features).reshape(9, len(sizes), -1)
    flat = torch.cat([logits[:, part, :size] for part, size in enumerate(sizes)], dim=1)
    if actions == "discrete":
        other = contrib.MaskableCategoricalDistribution(5)
    else:
        other = contrib.MaskableMultiCategoricalDistribution(list(sizes))
    other.proba_distribution(flat)
    other.apply_masking(mask.numpy())
    distribution = head(features, mask)
    indices = distribution.sample()
    parts = list(head.parameters())
    for ours, theirs in (
        (distribution.log_prob(indices), other.log_prob(indices)),
        (distribution.entropy(), other.entropy()),
    ):
        torch.testing.assert_close(ours, theirs)
        pairs = [torch.autograd.grad(value.sum(), parts, retain_graph=True) for value in (ours, theirs)]
        for pair in zip(*pairs, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
    assert torch.equal(distribution.mode().reshape(9, -1), other.mode().reshape(9, -1))


def test_the_first_gradient_step_has_the_ratio_one():
    envs = make_envs(place="info", actions="parts")
    policy = build(envs)
    segment = Sampler(envs, policy, 20, seed=3).collect()
    loss, metrics = PPO(policy, PPOConfig()).loss(segment, torch.randn(3, 20), torch.randn(3, 20))
    assert abs(metrics["losses/approx_kl"]) < 1e-6
    assert metrics["losses/clipfrac"] == 0
    masks = get_masks(segment)
    count = torch.stack([part.sum(-1) for part in masks.split((2, 4, 3), -1)]).log().sum(0)
    assert (policy.evaluate(segment).entropy <= count + 1e-5).all()
    assert loss.isfinite()


def test_a_resumed_sampler_goes_on_with_the_mask():
    envs, other = make_envs(), make_envs()
    policy = build(envs)
    sampler = Sampler(envs, policy, 7, seed=1)
    sampler.collect()
    state = copy.deepcopy(sampler.get_state())
    expected = sampler.collect()
    other_sampler = Sampler(other, policy, 7, seed=9)
    other_sampler.set_state(state)
    segment = other_sampler.collect()
    assert torch.equal(segment.actions, expected.actions)
    assert torch.equal(get_masks(segment), get_masks(expected))


@pytest.mark.slow
def test_a_masked_choice_is_learned():
    """Reward 1 for the first action, which is allowed half of the time: the best return is known."""
    envs = make_envs(16, actions="discrete", length=8)
    policy = build(envs, seed=1)
    learner = PPO(policy, PPOConfig(learning_rate=1e-2, scale_rewards=True), 0)
    sampler = Sampler(envs, policy, 16, seed=0)
    for _ in range(25):
        learner.update(sampler.collect())
    segment = sampler.collect()
    is_possible = get_masks(segment)[..., 0]
    assert (segment.rewards[is_possible] > 0).float().mean() > 0.9


def test_environments_without_masks_have_no_mask_leaf(scripted_envs):
    envs = scripted_envs(2)
    assert Spaces.from_env(envs) == Spaces(envs.single_observation_space, envs.single_action_space)
    policy = build(envs)
    assert policy.spaces.masks is None
    assert isinstance(Sampler(envs, policy, 4).collect().observations, torch.Tensor)


class Wrong(MaskedEnv):
    """Environment with an invalid mask in one step, in environment 1 only."""

    count = 0

    def __init__(self, place: str, mask: Any, when: int) -> None:
        super().__init__(place)
        self.bad, self.when, self.number = mask, when, Wrong.count
        Wrong.count += 1

    def offer(self) -> Any:
        observation, info = super().offer()
        if self.time != self.when or self.number != 2:  # environment 0 is that which is asked for masks
            return observation, info
        if self.place == "method":
            self.mask = self.bad
        elif self.place == "observation":
            observation = {**observation, "action_mask": self.bad}
        else:
            info = {} if self.bad is None else {"action_mask": self.bad}
        return observation, info


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize(
    ("place", "mask", "message"),
    [
        ("info", np.zeros(5, np.int8), "allows no action; allow at least one, or end the episode one step"),
        ("observation", np.zeros(5, np.int8), "allows no action"),
        ("method", np.zeros(5, np.int8), "allows no action"),
        (
            "method",
            np.ones(4),
            r"has the shape \(4,\); return 5 booleans, or numbers 0 and 1, in every reset",
        ),
        ("method", [[1] * 5], r"has the shape \(1, 5\)"),
        ("method", None, "is missing; return 5 booleans"),
        ("method", "abc", "is abc; return 5"),
        ("info", np.array([0, 2, 1, 0, 0], np.int8), "contains 2; return 5 booleans"),
        ("method", np.array([0, 0.5, 1, 0, 0]), "contains 0.5"),
        ("method", np.array([0, np.nan, 1, 0, 0]), "contains nan"),
        ("info", None, "is missing; return 5 booleans"),
    ],
)
def test_invalid_masks_are_refused(place, mask, message, when):
    Wrong.count = 0
    envs = SyncVectorEnv([lambda: Wrong(place, mask, when)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    Wrong.count = 1
    wrongs: list[Any] = list(envs.envs)
    for number, env in enumerate(wrongs):
        env.number = number + 1
    spaces_of_envs = Spaces(
        envs.single_observation_space, envs.single_action_space, action_masks=place != "observation"
    )
    policy = PolicyConfig(GRUConfig(dim=8)).build(spaces_of_envs)
    with pytest.raises(EnvFaultError, match=f"environment 1, step {when}: the action mask {message}"):
        Sampler(envs, policy, 8, seed=0).collect()


def test_a_mask_of_which_the_policy_knows_nothing_is_refused():
    envs = make_envs()
    policy = Policy(envs.single_observation_space, envs.single_action_space, PolicyConfig(GRUConfig(dim=8)))
    with pytest.raises(
        EnvFaultError, match=r"step 0: info has the key 'action_mask', but .* Spaces\.from_env"
    ):
        Sampler(envs, policy, 4)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (
            {"action_mask": spaces.MultiBinary(3)},
            spaces.Discrete(2),
            r"a mask of Discrete\(2\) has the shape",
        ),
        (
            {"action_mask": spaces.MultiBinary(2)},
            spaces.Box(0, 1, (2,)),
            "action masks of the action space Box",
        ),
        (
            {"action_mask": spaces.MultiBinary(2), "a": spaces.Dict({"action_mask": spaces.MultiBinary(2)})},
            spaces.Discrete(2),
            "has the masks a/action_mask, action_mask; keep one",
        ),
    ],
)
def test_spaces_without_a_meaning_for_the_mask_are_refused(observation, action, message):
    space = spaces.Dict({"x": spaces.Box(0, 1, (2,)), **observation})
    with pytest.raises(EnvFaultError, match=message):
        PolicyConfig(GRUConfig(dim=8)).build(Spaces(space, action))


def test_act_needs_the_mask_that_the_policy_was_trained_with():
    policy = build(make_envs())
    x = np.zeros(3, np.float32)
    with pytest.raises(
        ValueError, match=r"action_mask is missing; .* pass action_mask=info\['action_mask'\]"
    ):
        policy.act(x)
    with pytest.raises(EnvFaultError, match="allows no action"):
        policy.act(x, action_mask=np.zeros(5))
    for action in range(5):
        mask = np.arange(5) == action
        assert policy.act(x, action_mask=mask)[0] == 2 + action
        assert policy.act(x[None], action_mask=torch.tensor(mask)[None])[0].tolist() == [2 + action]
    observed = build(make_envs(place="observation"))
    whole = {"observation": x, "action_mask": np.eye(5)[3]}
    assert observed.act(whole)[0] == 5
    with pytest.raises(
        ValueError, match="action_mask is set, but the observation has the mask 'action_mask'"
    ):
        observed.act(whole, action_mask=np.ones(5))
    with pytest.raises(EnvFaultError, match="allows no action"):
        observed.act({**whole, "action_mask": np.zeros(5)})


def test_a_saved_policy_still_needs_its_masks(tmp_path):
    policy = build(make_envs())
    policy.save_pretrained(tmp_path)
    copy_of_policy = Policy.from_pretrained(tmp_path)
    assert copy_of_policy.action_masks
    assert copy_of_policy.spaces == policy.spaces
    mismatch = copy_of_policy.spaces.find_mismatch(Spaces(policy.observation_space, policy.action_space))
    assert mismatch == "the policy uses action masks from infos or a method, and the environment offers none"


@pytest.mark.parametrize(
    "options", [{"skip": True}, {"separate_critic": True, "normalize_observations": True}]
)
def test_no_other_part_of_the_policy_sees_the_mask(options):
    for place in PLACES:
        envs = make_envs(place=place)
        policy = build(envs, reconstruction=True, auxiliary=("next_observation", "verifier"), **options)
        segment = Sampler(envs, policy, 9, seed=0).collect()
        policy.update_statistics(segment)
        before = policy.evaluate(segment)
        for key, leaf in to_leaves(segment.observations).items():
            if key.endswith("action_mask"):
                leaf.fill_(1)
        after = policy.evaluate(segment)
        assert torch.equal(before.reconstruction_loss, after.reconstruction_loss)
        assert torch.equal(before.values, after.values)
        for name, loss in before.auxiliary_losses.items():
            assert torch.equal(loss, after.auxiliary_losses[name])


def test_the_flag_of_masks_is_stored_only_if_it_is_set():
    plain = Spaces(spaces.Box(0, 1, (2,)), spaces.Discrete(3))
    assert "action_masks" not in plain.to_dict()
    assert Spaces.from_dict(plain.to_dict()) == plain
    masked = Spaces(plain.observation, plain.action, action_masks=True)
    assert Spaces.from_dict(masked.to_dict()) == masked
    with pytest.raises(ValueError, match="action_masks=1: expected true or false"):
        Spaces.from_dict({**plain.to_dict(), "action_masks": 1})


def test_asking_for_masks_leaves_the_random_generators_alone():
    class Rolling(MaskedEnv):
        def reset(self, **options: Any) -> Any:
            np.random.rand()  # noqa: NPY002
            torch.rand(1)
            return super().reset(**options)

    states = []
    for ask in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        assert not ask or offers_masks(Rolling())
        states.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert states[0] == states[1]
    assert not offers_masks(gymnasium.make("CartPole-v1"))
    assert offers_masks(gymnasium.make("Taxi-v3"))


@pytest.mark.parametrize("actions", ACTIONS)
def test_random_actions_are_uniform_over_the_allowed_ones(actions):
    space = ACTIONS[actions]
    masks = ActionMasks.find(spaces.Discrete(2), space, outside=True)
    assert masks is not None
    mask = np.zeros(masks.num_actions, np.bool_)
    ends = np.cumsum(masks.sizes)
    mask[ends - 1] = mask[ends - 2] = True
    space.seed(0)
    samples = [sample_action(space, mask) for _ in range(400)]
    assert all(space.contains(sample) for sample in samples)
    zero_based = np.array([np.ravel(sample - np.asarray(space.start)) for sample in samples])
    np.testing.assert_array_equal(np.unique(zero_based[:, 0]), [masks.sizes[0] - 2, masks.sizes[0] - 1])
    assert (abs((zero_based == zero_based.max(axis=0)).mean(axis=0) - 0.5) < 0.1).all()


def test_the_mask_is_dropped_from_nested_spaces_only_where_it_stands():
    x = spaces.Box(0, 1, (2,))
    nested = spaces.Dict({"a": spaces.Tuple([x, spaces.Dict({"action_mask": x, "b": x})]), "c": x})
    assert drop_mask(nested) == spaces.Dict({"a": spaces.Tuple([x, spaces.Dict({"b": x})]), "c": x})
    assert drop_mask(x) is x


@pytest.mark.parametrize("place", ["observations", "infos"])
def test_a_mask_whose_name_is_a_plural_is_refused(place):
    class Plural(gymnasium.Env):
        action_space = spaces.Discrete(2)
        observation_space = spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            return 0, {"action_masks": np.array([1, 0])}

    env = Plural()
    if place == "observations":
        env.observation_space = spaces.Dict(x=spaces.Discrete(2), action_masks=spaces.MultiBinary(2))
    with pytest.raises(EnvFaultError, match=f"{place} have the entry 'action_masks'; name a mask"):
        offers_masks(env)


def test_taxi_never_takes_a_step_without_effect():
    envs = SyncVectorEnv([lambda: gymnasium.make("Taxi-v3")] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = build(envs)
    segment = Sampler(envs, policy, 40, seed=0).collect()
    masks = get_masks(segment)
    assert masks.gather(-1, segment.actions[..., None]).all()
    assert not masks.all()
    assert (segment.rewards >= -1).all()  # -10 for a forbidden pickup or drop
