"""`check_learner`: tests that a learner learns, resumes, refuses NaN rewards and is saved and loaded.

1. Learns a bandit: the reward of an action depends on the observation alone.
2. Learns to remember: the reward of the second action depends on the first observation of two.
3. Resumes bit for bit: a learner with restored weights and state makes the same update.
4. Survives NaN rewards: weights and state stay finite, and later updates are possible. A learner that raises
   ValueError or RuntimeError leaves the weights unchanged.
5. Saved and loaded: its state consists of tensors and plain values, and its policy acts as before.
"""

from __future__ import annotations

import copy
import io
import tempfile
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents.rl.learner import Learner, LearnerConfig
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.segment import BaseSegment, Segment
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.agents.teams.segment import TeamSegment
from scrubjay.memory.gru import GRUConfig

OBSERVATION = spaces.Box(-1, 1, (2,), np.float32)
"""A sign in the first number, and 1 in the second at the last step of an episode."""
ACTION = spaces.Discrete(2)
NUM_AGENTS = 2
ROWS, TIME = 32, 8


class LearnerLawError(AssertionError):
    """A learner violates a law of `check_learner`."""


def check_learner(
    config: LearnerConfig,
    policy_config: PolicyConfig | TeamPolicyConfig | None = None,
    *,
    updates: int = 60,
    success: float = 0.9,
    seed: int = 0,
) -> None:
    """Test the laws of this module on the learner that `config` builds. Raises LearnerLawError.

    Args:
        config: Config of a learner of single agents or of teams. Teams have two agents.
        policy_config: Config of the policy to train; by default one with a GRU of 16 units.
        updates: Maximum number of updates for each task; 256 environment steps each.
        success: Mean reward of an action that must be reached. Random actions have 0.5.
        seed: Seed of the weights, the learner and the actions.
    """
    if policy_config is None:
        team = config.policy_type == "team"
        policy_config = (TeamPolicyConfig if team else PolicyConfig)(memory=GRUConfig(dim=16))
    for length, law in ((1, "1 (learns a bandit)"), (2, "2 (learns to remember)")):
        trial = _Trial(config, policy_config, length, seed)
        rewards = trial.train(updates, success)
        if not rewards[-1] >= success:
            raise LearnerLawError(
                f"law {law}: the mean reward is {rewards[-1]:.2f} after {updates} updates; expected at least "
                f"{success}"
            )
        _check_resumes(trial)
    trial = _Trial(config, policy_config, 2, seed)
    trial.train(2, 2.0)
    _check_resumes(trial)
    _check_survives_nan(trial)
    _check_saved(trial)


class _Trial:
    """A policy, its learner and episodes of a fixed length."""

    def __init__(self, config: LearnerConfig, policy_config: Any, length: int, seed: int) -> None:
        self.config, self.policy_config, self.length, self.seed = config, policy_config, length, seed
        self.agents = NUM_AGENTS if config.policy_type == "team" else None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.policy = policy_config.build(Spaces(OBSERVATION, ACTION, self.agents))
            self.learner: Learner = config.build(self.policy, seed=seed)
        self.generator = torch.Generator().manual_seed(seed + 1)

    def train(self, updates: int, success: float) -> list[float]:
        """Update until the mean reward of a segment is `success`; return the mean rewards."""
        rewards = []
        for _ in range(updates):
            segment = self.play()
            rewards.append(self.mean_reward(segment))
            if rewards[-1] >= success:
                break
            self.learner.update(segment)
        return rewards

    def mean_reward(self, segment: BaseSegment) -> float:
        return float(segment.rewards.mean()) * self.length

    def play(self) -> Segment | TeamSegment:
        """Return a segment of whole episodes, all of the same length."""
        shape = (ROWS,) if self.agents is None else (ROWS, self.agents)
        alive = () if self.agents is None else (torch.ones(shape, dtype=torch.bool),)
        state = first = self.policy.initial_state(ROWS)
        rows: dict[str, list[Tensor]] = {name: [] for name in ("observations", "rewards", "terminated")}
        steps, start = [], torch.ones(ROWS, dtype=torch.bool)
        for t in range(TIME):
            is_first, is_last = t % self.length == 0, (t + 1) % self.length == 0
            if is_first:
                sign: Tensor = torch.randint(0, 2, (ROWS,), generator=self.generator)
            cue = sign.mul(2).sub(1).float().mul(is_first)
            observation = torch.stack([cue, torch.full_like(cue, is_last)], dim=-1)
            if self.agents is not None:
                observation = observation[:, None].expand(*shape, 2).contiguous()
            step = self.policy.step(observation, *alive, state, start & is_first, self.generator)
            state = step.state
            steps.append(step)
            target = sign if self.agents is None else sign[:, None]
            rows["observations"].append(observation)
            rows["rewards"].append((step.action == target).float() * is_last)
            rows["terminated"].append(torch.full(shape, is_last))
        actions, log_probs, values = (torch.stack(part, dim=1) for part in list(zip(*steps, strict=True))[:3])
        starts = torch.zeros(ROWS, TIME, dtype=torch.bool)
        starts[:, :: self.length] = True
        fields: dict[str, Any] = {name: torch.stack(parts, dim=1) for name, parts in rows.items()} | {
            "actions": actions,
            "log_probs": log_probs,
            "values": values,
            "starts": starts,
            "truncated": torch.zeros(ROWS, TIME, dtype=torch.bool),
            "bootstrap_values": torch.zeros_like(values),
            "last_values": torch.zeros(shape),
            "state": first,
        }
        if self.agents is None:
            return Segment(**fields)
        return TeamSegment(**fields, alive=torch.ones(ROWS, TIME, self.agents, dtype=torch.bool))

    def restore(self) -> _Trial:
        """Return a trial of another seed with the saved weights and the saved state of this one."""
        file = io.BytesIO()
        try:
            torch.save([self.policy.state_dict(), self.learner.get_state()], file)
            file.seek(0)
            weights, state = torch.load(file, weights_only=True)
        except Exception as error:
            raise LearnerLawError(
                "law 5 (saved and loaded): the learner's state has other parts than tensors, numbers, "
                f"strings, lists and dicts: {error}"
            ) from error
        other = _Trial(self.config, self.policy_config, self.length, self.seed + 7)
        other.policy.load_state_dict(weights)
        other.learner.set_state(state)
        return other


def _check_resumes(trial: _Trial) -> None:
    other = trial.restore()
    for update in (1, 2):
        segment = trial.play()
        metrics = [one.learner.update(copy.deepcopy(segment)) for one in (trial, other)]
        for name, weight in trial.policy.state_dict().items():
            if not torch.equal(weight, other.policy.state_dict()[name]):
                raise LearnerLawError(
                    f"law 3 (resumes bit for bit): {name} differs in update {update} after the state was "
                    "restored; get_state must return everything that an update depends on"
                )
        if str(metrics[0]) != str(metrics[1]):
            raise LearnerLawError(
                f"law 3 (resumes bit for bit): the metrics are {metrics[1]}, not {metrics[0]}"
            )


def _check_survives_nan(trial: _Trial) -> None:
    before = copy.deepcopy(trial.policy.state_dict())
    segment = trial.play()
    segment.rewards[0, TIME // 2] = float("nan")
    is_refused = False
    try:
        trial.learner.update(segment)
    except (ValueError, RuntimeError):
        is_refused = True
    for name, weight in trial.policy.state_dict().items():
        if not weight.isfinite().all() or (is_refused and not torch.equal(weight, before[name])):
            raise LearnerLawError(
                f"law 4 (survives NaN rewards): {name} has changed; raise ValueError before the first step"
            )
    trial.learner.update(trial.play())
    if not all(weight.isfinite().all() for weight in trial.policy.state_dict().values()):
        raise LearnerLawError("law 4 (survives NaN rewards): the next update makes the weights NaN")


def _check_saved(trial: _Trial) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trial.policy.save_pretrained(folder)
        copy_of_policy = type(trial.policy).from_pretrained(folder)
    segment = trial.play()
    alive = (segment.alive[:, 0],) if isinstance(segment, TeamSegment) else ()
    assert isinstance(segment.observations, Tensor)
    arguments = segment.observations[:, 0], *alive, segment.state
    steps = [policy.step(*arguments, deterministic=True) for policy in (trial.policy, copy_of_policy)]
    if not all(torch.equal(*pair) for pair in list(zip(*steps, strict=True))[:3]):
        raise LearnerLawError("law 5 (saved and loaded): the loaded policy acts otherwise")
