from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents import GAMATRConfig, TeamPolicy, TeamPolicyConfig, TeamSegment
from scrubjay.agents.rl.observations import leaf_spaces
from scrubjay.agents.rl.trust_region import mean_kl
from scrubjay.memory import list_memories, make_config

DISCRETE = spaces.Discrete(3)
ACTIONS = [
    DISCRETE,
    spaces.MultiDiscrete([3, 2]),
    spaces.Box(-2.0, 2.0, (2,), np.float32),
    spaces.MultiBinary(2),
]


def space(agents: int, users: int = 4) -> spaces.Dict:
    return spaces.Dict(
        {
            "own": spaces.Box(-np.inf, np.inf, (3,), np.float32),
            "users": spaces.Box(-np.inf, np.inf, (users, 2), np.float32),
            "users_mask": spaces.MultiBinary(users),
            "adjacency": spaces.MultiBinary(agents),
        }
    )


def policy(
    agents: int = 3, action: spaces.Space = DISCRETE, memory: str = "gru", users: int = 4, **config: Any
) -> TeamPolicy:
    torch.manual_seed(0)
    team_policy = TeamPolicy(
        space(agents, users),
        action,
        agents,
        TeamPolicyConfig(make_config(memory, dim=8), graph_heads=2, **config),
    ).double()
    for name, parameter in team_policy.named_parameters():
        if ".heads." in name:
            # Far from indifferent, so that a wrong feature shows.
            torch.nn.init.normal_(parameter, std=0.7)
    return team_policy


def segment(
    policy: TeamPolicy,
    batch: int = 2,
    time: int = 5,
    users: int = 4,
    adjacency: Tensor | None = None,
    alive: Tensor | None = None,
    seed: int = 0,
) -> TeamSegment:
    """Return a segment of `policy.step` on random observations, with its values and log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, time, policy.num_agents)
    hears = torch.rand(*shape, policy.num_agents, generator=generator) < 0.5
    everywhere = {
        "own": torch.randn(*shape, 3, generator=generator, dtype=torch.float64),
        "users": torch.randn(*shape, users, 2, generator=generator, dtype=torch.float64),
        "users_mask": (torch.rand(*shape, users, generator=generator) < 0.5).double(),
        "adjacency": (hears if adjacency is None else adjacency.expand_as(hears)).double(),
    }
    if alive is None:
        alive = torch.rand(*shape, generator=generator) < 0.8
    starts = torch.rand(batch, time, generator=generator) < 0.3
    starts[:, 0] = torch.arange(batch) % 2 == 0
    state = first = {key: value + 0.1 for key, value in policy.initial_state(batch).items()}
    if policy.config.memory != make_config("gru", dim=8):
        state = first = policy.initial_state(batch)
    actions, log_probs, values = [], [], []
    for t in range(time):
        step = policy.step(
            {key: leaf[:, t] for key, leaf in everywhere.items()}, alive[:, t], state, starts[:, t], generator
        )
        state = step.state
        actions.append(step.action)
        log_probs.append(step.log_prob)
        values.append(step.value)
    nothing = torch.zeros(shape, dtype=torch.float64)
    return TeamSegment(
        observations=everywhere,
        alive=alive,
        actions=torch.stack(actions, 1),
        log_probs=torch.stack(log_probs, 1),
        values=torch.stack(values, 1),
        rewards=nothing,
        starts=starts,
        terminated=nothing.bool(),
        truncated=nothing[..., 0].bool(),
        bootstrap_values=nothing,
        last_values=nothing[:, 0],
        state=first,
    )


def outputs(policy: TeamPolicy, of: TeamSegment) -> Tensor:
    """Return all outputs for a segment, `[batch, time, agents, numbers]`."""
    return torch.cat([policy.distribution(of).outputs(), policy.values(of)[..., None]], dim=-1)


def replace_leaves(of: TeamSegment, **leaves: Tensor) -> TeamSegment:
    assert isinstance(of.observations, dict)
    return TeamSegment(**{**vars(of), "observations": {**of.observations, **leaves}})


def chain(agents: int) -> Tensor:
    """Return the adjacency of a chain: each agent hears the one before it."""
    return torch.eye(agents) + torch.diag(torch.ones(agents - 1), -1)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("memory", list_memories())
def test_a_segment_at_once_is_its_steps_one_by_one(memory: str, shared: bool) -> None:
    acting = policy(memory=memory, shared=shared, graph_rounds=1)
    rollout = segment(acting, time=7)
    assert not rollout.alive.all()
    torch.testing.assert_close(acting.distribution(rollout).log_prob(rollout.actions), rollout.log_probs)
    torch.testing.assert_close(acting.values(rollout), rollout.values)


@pytest.mark.parametrize("action", ACTIONS, ids=str)
@pytest.mark.parametrize("kind", ["shared", "separate", "joint"])
def test_one_agents_distribution_is_its_column_of_all(action: spaces.Space, kind: str) -> None:
    joint = kind == "joint"
    acting = policy(action=action, graph_rounds=1, shared=kind == "shared", joint=joint)
    rollout = segment(acting)
    everybody = acting.distribution(rollout)
    torch.testing.assert_close(everybody.log_prob(rollout.actions), rollout.log_probs)
    for agent in range(3):
        own = acting.distribution(rollout, agent)
        if joint:
            assert own.log_prob(rollout.actions).shape == rollout.log_probs.shape
            own = own.agent(agent)
        torch.testing.assert_close(own.outputs(), everybody.agent(agent).outputs())
    env_actions = acting.env_actions(rollout.actions[0])
    assert all(team_action in action for team_action in env_actions.reshape(-1, *(action.shape or ())))


@pytest.mark.parametrize("critic", ["attention", "pooled", "local"])
def test_a_policy_of_three_acts_for_ten(critic: Any) -> None:
    small, large = policy(3, users=2, critic=critic), policy(10, users=9, critic=critic)
    large.load_state_dict(small.state_dict())
    rollout = segment(large, users=9)
    torch.testing.assert_close(large.distribution(rollout).log_prob(rollout.actions), rollout.log_probs)


@pytest.mark.parametrize("critic", ["attention", "pooled", "local"])
def test_renaming_agents_renames_what_is_computed(critic: Any) -> None:
    acting = policy(5, critic=critic)
    rollout = segment(acting)
    assert isinstance(rollout.observations, dict)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted_rollout = replace_leaves(
        rollout, **{key: leaf[:, :, order] for key, leaf in rollout.observations.items()}
    )
    assert isinstance(permuted_rollout.observations, dict)
    permuted_rollout.observations["adjacency"] = permuted_rollout.observations["adjacency"][..., order]
    permuted_rollout.alive = rollout.alive[..., order]
    permuted_rollout.state = {key: value[:, order] for key, value in rollout.state.items()}
    torch.testing.assert_close(outputs(acting, permuted_rollout), outputs(acting, rollout)[:, :, order])


@pytest.mark.parametrize("memory", ["none", "gru", "sink"])
@pytest.mark.parametrize("critic", ["attention", "pooled", "local"])
def test_who_has_left_is_as_if_never_there(critic: Any, memory: str) -> None:
    """A team of four with one agent that is not alive and observes NaN equals a team of the other three."""
    four, three = policy(4, critic=critic, memory=memory), policy(3, critic=critic, memory=memory)
    alive = torch.ones(2, 5, 4, dtype=torch.bool)
    alive[..., 1] = False
    living = torch.tensor([0, 2, 3])
    all_four = segment(four, alive=alive)
    assert isinstance(all_four.observations, dict)
    living_leaves = {key: leaf[:, :, living] for key, leaf in all_four.observations.items()}
    living_leaves["adjacency"] = living_leaves["adjacency"][..., living]
    for leaf in ("own", "users"):
        all_four.observations[leaf][:, :, 1] = float("nan")
    only_three = TeamSegment(
        **{
            **vars(all_four),
            "observations": living_leaves,
            "alive": alive[..., living],
            "state": {key: value[:, living] for key, value in all_four.state.items()},
        }
    )
    ours, theirs = outputs(four, all_four), outputs(three, only_three)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours[:, :, living], theirs)
    gradients = [
        torch.autograd.grad(part.square().sum(), list(of.parameters()))
        for of, part in ((four, ours[:, :, living]), (three, theirs))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_teams_of_which_nobody_is_left_are_finite() -> None:
    acting = policy()
    rollout = segment(acting, alive=torch.zeros(2, 5, 3, dtype=torch.bool))
    result = outputs(acting, rollout)
    first = torch.autograd.grad(result.square().sum(), list(acting.parameters()), create_graph=True)
    second = torch.autograd.grad(
        torch.stack([part.square().sum() for part in first]).sum(),
        acting.actor_parameters(),
        allow_unused=True,
    )
    assert all(torch.isfinite(part).all() for part in (result, *first))
    assert all(torch.isfinite(part).all() for part in second if part is not None)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_nothing_is_heard_from_further_than_there_are_rounds(rounds: int, shared: bool) -> None:
    acting = policy(4, graph_rounds=rounds, shared=shared, critic="local")
    rollout = segment(acting, adjacency=chain(4), alive=torch.ones(2, 5, 4, dtype=torch.bool))
    assert isinstance(rollout.observations, dict)
    own = rollout.observations["own"].requires_grad_()
    for result in (acting.distribution(rollout).outputs(), acting.values(rollout)[..., None]):
        for listener in range(4):
            (input_gradient,) = torch.autograd.grad(
                result[:, :, listener].square().sum(), own, retain_graph=True
            )
            influence = input_gradient.abs().amax(dim=(0, 1, 3)) > 0
            assert influence.tolist() == [0 <= listener - speaker <= rounds for speaker in range(4)]


@pytest.mark.parametrize(("critic", "sees"), [("attention", True), ("pooled", True), ("local", False)])
def test_whom_the_critic_sees(critic: Any, sees: bool) -> None:
    judge = policy(3, critic=critic, graph_rounds=2)
    rollout = segment(judge, adjacency=torch.eye(3), alive=torch.ones(2, 5, 3, dtype=torch.bool))
    assert isinstance(rollout.observations, dict)
    own = rollout.observations["own"].requires_grad_()
    (input_gradient,) = torch.autograd.grad(judge.values(rollout)[:, :, 0].sum(), own)
    assert (input_gradient.abs().amax(dim=(0, 1, 3)) > 0).tolist() == [True, sees, sees]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("rounds", [0, 2])
def test_separate_actors_share_nothing(rounds: int, joint: bool) -> None:
    acting = policy(3, graph_rounds=rounds, shared=False, joint=joint)
    rollout = segment(acting)
    for agent in range(3):
        own = acting.actor_parameters(agent)
        for result in (
            acting.distribution(rollout, agent).outputs(),
            acting.distribution(rollout).agent(agent).outputs(),
        ):
            score = result.square().sum()
            mine = torch.autograd.grad(score, own, retain_graph=True, allow_unused=True)
            assert sum(part is not None and bool(part.abs().max() > 0) for part in mine) > len(own) / 2
            for other in {0, 1, 2} - {agent}:
                others = torch.autograd.grad(
                    score, acting.actor_parameters(other), retain_graph=True, allow_unused=True
                )
                assert all(part is None or not part.any() for part in others)
        others = torch.autograd.grad(
            acting.distribution(rollout, agent).outputs().sum(),
            acting.actor_parameters((agent + 1) % 3),
            allow_unused=True,
        )
        assert all(part is None for part in others)


def test_actors_and_critic_divide_the_parameters() -> None:
    for acting in (policy(), policy(shared=False), policy(shared=False, joint=True)):
        parts = [acting.critic_parameters(), acting.actor_parameters()]
        identities = [id(parameter) for part in parts for parameter in part]
        assert sorted(identities) == sorted(map(id, acting.parameters()))
        of_agents = [acting.actor_parameters(agent) for agent in range(3)]
        distinct = {id(parameter) for part in of_agents for parameter in part}
        assert distinct == {id(parameter) for parameter in acting.actor_parameters()}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("memory", list_memories())
def test_second_derivatives_agree_with_differences_under_any_memory(memory: str) -> None:
    """The Hessian-vector product of the actor by autograd against a difference of gradients."""
    acting = policy(3, memory=memory, shared=False)
    rollout = segment(acting)
    parameters = acting.actor_parameters(1)
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in parameters]

    def gradient(create_graph: bool) -> tuple[Tensor, ...]:
        outputs = acting.distribution(rollout, 1).outputs()
        return torch.autograd.grad(outputs.square().sum(), parameters, create_graph=create_graph)

    products = [(part * toward).sum() for part, toward in zip(gradient(True), direction, strict=True)]
    product = torch.autograd.grad(torch.stack(products).sum(), parameters, materialize_grads=True)
    sides, width = [], 1e-8
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, toward in zip(parameters, direction, strict=True):
                parameter += sign * width * toward
        sides.append(torch.cat([part.flatten() for part in gradient(False)]))
    slope = (sides[0] - sides[1]) / (2 * width)
    exact = torch.cat([part.flatten() for part in product])
    assert (exact - slope).norm() < 1e-5 * slope.norm()


def test_a_loop_over_arrays_acts_as_steps_do() -> None:
    acting = policy(action=spaces.Box(-2.0, 2.0, (2,), np.float32), memory="gru").float()
    generator = np.random.default_rng(0)
    spot: dict[str, Any] = {key: leaf.sample() for key, leaf in leaf_spaces(space(3)).items()}
    observations: list[dict[str, Any]] = [
        {key: np.stack([generator.permutation(leaf) for _ in range(3)]) for key, leaf in spot.items()}
        for _ in range(2)
    ]
    for observation in observations:
        observation["adjacency"] = np.eye(3, dtype=np.int8)
    alive = np.array([True, True, False])
    actions, state = acting.act(observations[0], alive)
    rows = {key: np.stack([one[key] for one in observations]) for key in observations[0]}
    many, _ = acting.act(rows, np.stack([alive, alive]))
    np.testing.assert_allclose(many[0], actions, rtol=1e-5)
    assert actions.shape == (3, 2)
    assert actions.dtype == np.float32
    following, after = acting.act(observations[1], alive, state)
    fresh, _ = acting.act(observations[1], alive, state, start=True)
    np.testing.assert_allclose(fresh, many[1], rtol=1e-5)
    assert not np.allclose(following, fresh)
    assert {key: value.shape for key, value in after.items()} == {
        "actor/hidden": (1, 3, 8),
        "critic/hidden": (1, 3, 8),
    }


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match="graph_rounds=-1"):
        TeamPolicyConfig(graph_rounds=-1)
    with pytest.raises(ValueError, match=r"critic='global'.*pooled"):
        TeamPolicyConfig(critic="global")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="shared=False"):
        TeamPolicyConfig(joint=True)
    with pytest.raises(ValueError, match="graph_heads=3"):
        TeamPolicy(space(3), DISCRETE, 3, TeamPolicyConfig(graph_heads=3))
    with pytest.raises(ValueError, match="num_agents=0"):
        TeamPolicy(space(3), DISCRETE, 0)
    acting = TeamPolicy(space(3), DISCRETE, 4)
    observation = {key: np.stack([leaf.sample()] * 4) for key, leaf in leaf_spaces(space(3)).items()}
    with pytest.raises(ValueError, match="3 bits in a team of 4"):
        acting.act(observation, np.ones(4, dtype=bool))


@pytest.mark.parametrize(
    "actors", [{"shared": True}, {"shared": False}, {"shared": False, "joint": True}], ids=str
)
def test_a_deviation_of_the_state_belongs_to_its_agent(actors):
    acting = policy(3, spaces.Box(-2.0, 2.0, (2,)), deviation="state", **actors)
    batch = segment(acting)
    team: Any = acting.distribution(batch)
    assert team.log_std.shape == (2, 5, 3, 2)
    assert team.log_std.std(dim=1).min() > 0
    for agent in range(3):
        own: Any = acting.distribution(batch, agent)
        own = own.agent(agent) if acting.config.joint else own
        torch.testing.assert_close(
            own.log_prob(batch.actions[:, :, agent]), team.log_prob(batch.actions)[..., agent]
        )
        torch.testing.assert_close(own.outputs(), team.outputs()[:, :, agent])
    with pytest.raises(ValueError, match="deviation='state' needs an action space with a Box"):
        policy(3, DISCRETE, deviation="state", **actors)


def test_nested_actions_of_a_team_are_refused():
    with pytest.raises(TypeError, match=r"action space Dict\(.*is not supported for teams"):
        policy(3, spaces.Dict({"go": DISCRETE}))


def test_the_trust_region_holds_for_deviations_of_the_state():
    acting = policy(2, spaces.Box(-2.0, 2.0, (2,)), deviation="state")
    batch = segment(acting, batch=4, time=8)
    rewards = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(0)).double()
    batch = dataclasses.replace(batch, rewards=rewards)
    before = acting.distribution(batch).detach()
    config = GAMATRConfig(minibatches=2)
    config.build(acting).update(batch)
    kl = mean_kl(before, acting.distribution(batch), batch.alive.double())
    assert (kl > 0).all()
    assert (kl < 1.001 * config.kl_limit).all()
