"""Environment with nested or half-bounded actions, as a user would write it."""

import gymnasium
import numpy as np
from gymnasium import spaces

NESTED = spaces.Dict(
    {
        "move": spaces.Discrete(3, start=-1),
        "arm": spaces.Tuple([spaces.Box(0, np.inf, (2,)), spaces.MultiBinary(2)]),
    }
)
HALF = spaces.Box(np.array([2, -np.inf, -1], np.float32), np.array([np.inf, -3, 1], np.float32))
FAR = spaces.Box(50, np.inf, (1,))


class Robot(gymnasium.Env):
    """Robot with a reward for the sum of all numbers of its action, or for one action of each space."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, kind="nested", render_mode=None):
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = {"nested": NESTED, "half": HALF, "goal": NESTED, "far": FAR}[kind]
        self.kind = kind
        self.render_mode = render_mode
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action):
        if not self.action_space.contains(action):
            raise RuntimeError(f"{action!r} is not in {self.action_space}")
        self.time += 1
        return self._observe(), self._reward(action), self.time == 5, False, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)

    def get_state(self):
        return {"time": self.time}

    def set_state(self, state):
        self.time = state["time"]

    def _reward(self, action):
        if self.kind == "far":
            return float(np.exp(-abs(action[0] - 53)))
        if self.kind == "goal":
            (force, switches) = action["arm"]
            distance = abs(force - np.array([2, 1])).sum() + abs(switches - np.array([1, 0])).sum()
            return float(np.exp(-0.5 * distance)) * (action["move"] == 1)
        numbers = np.asarray(spaces.flatten(self.action_space, action))
        return float(np.tanh(numbers.sum()))

    def _observe(self):
        return np.array([self.time / 5, 1], np.float32)
