"""Memory & Planning Game: explore a small map, then use it to reach one goal after another."""

from __future__ import annotations

import colorsys

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from PIL import ImageFont

from scrubjay.envs.batched_env import BatchedEnv, Rows, SingleEnv, check_integer
from scrubjay.envs.drawing import INK, PALE, make_frame

_SIZE = 4
_LARGEST = 16
_MAX_STEPS = 100
_LONGEST = 10_000
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
_COLLECT = 4

_CELL = 52
_PANEL = 275
_GOAL, _AGENT = (40, 150, 70), (45, 95, 190)


class MemoryPlanning(SingleEnv):
    """Memory and planning task on a torus of places with symbols: walk to the place of the goal symbol.

    ::

        F  C  O  B     The agent is at K and its goal is C: up, up, left, collect.
        A  J  M  D     Up from F leads to H, left from F to B.
        N  P [K] E     The agent observes two symbols: that of its place and that of its goal.
        H  I  G  L

    The map has n = `size` * `size` places. Every episode assigns the n symbols to the places at random and
    starts at a random place, both uniformly. A goal is drawn uniformly from all places other than the
    agent's. After it is collected, the next goal is drawn in the same way and the agent continues from its
    place. Each episode thus requires learning a map within few steps and planning with it. Maps of different
    episodes are independent.

    Observation, float32 `[2 n]`, every entry 0 or 1:

    ========= ===== ===================================
    index     name  meaning
    ========= ===== ===================================
    0 .. n-1  place one-hot symbol of the agent's place
    n .. 2n-1 goal  one-hot symbol of the goal
    ========= ===== ===================================

    Action, `Discrete(5)`; moves wrap around the edges:

    ====== ======= ==============================================================
    action name    effect
    ====== ======= ==============================================================
    0      up      to the row above
    1      down    to the row below
    2      left    to the column on the left
    3      right   to the column on the right
    4      collect stay; at the goal: collect it, and the next goal appears
    ====== ======= ==============================================================

    Reward: 1 for a collected goal, else 0. The return is the number of collected goals.

    End: `terminated` after `max_steps` steps (never `truncated`; the horizon belongs to the task). The last
    step's `info["success"]` is the number of collected goals divided by the number that a player with the
    full map collects in the same episode. It lies in [0, 1] and does not depend on how near the goals are.
    The divisor is exact, since the sequence of goals is drawn at the reset and each goal costs at least its
    distance plus one collect.

    Best: the table lists mean return and success by `size` and `max_steps`. The player with memory walks
    straight to the goal if it has visited the goal's place, and to the nearest unvisited place if not (not
    proven optimal). The player without memory collects where both symbols agree and otherwise moves down or
    left with equal probability. This is the best policy that uses only whether the two symbols are
    equal. A policy without memory may also have a fixed action for each pair of symbols. At size 2 and 20
    steps such a policy is better: return 5.0, success 0.61.

    =============== ============ =========== ===========
    player          4, 100       3, 50       2, 20
    =============== ============ =========== ===========
    knows the map   31.6  1.00   19.8  1.00   8.3  1.00
    with memory     28.9  0.91   18.1  0.92   8.0  0.97
    without memory   7.2  0.23    6.0  0.31   4.5  0.54
    random actions   1.0  0.03    0.8  0.04   0.8  0.09
    =============== ============ =========== ===========

    Units: size in places, from 2 to 16; time in steps. `max_steps` is at least 2 floor(size / 2) + 1, the
    steps to the farthest place and a collect, and at most 10,000.

    Paper: Ritter et al. 2020, arXiv 2006.03662, the Memory & Planning Game. Deviations: the two symbols
    form one flat vector, and success is reported.
    """

    def __init__(
        self, size: int = _SIZE, max_steps: int = _MAX_STEPS, render_mode: str | None = None
    ) -> None:
        super().__init__(MemoryPlanningVector(1, size, max_steps, render_mode, AutoresetMode.DISABLED))


class MemoryPlanningVector(BatchedEnv):
    """Vector environment of `MemoryPlanning`; observations are float32 `[num_envs, 2 size^2]`."""

    row_arrays = ("symbols", "goals", "possible", "place", "goals_collected", "time")

    def __init__(
        self,
        num_envs: int = 1,
        size: int = _SIZE,
        max_steps: int = _MAX_STEPS,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        self.size = check_integer("size", size, 2, _LARGEST)
        # The farthest place and a collect, so that the first goal can always be collected.
        shortest = 2 * (self.size // 2) + 1
        self.max_steps = check_integer("max_steps", max_steps, shortest, _LONGEST)
        self.num_places = self.size**2
        super().__init__(
            num_envs,
            Box(0.0, 1.0, (2 * self.num_places,), np.float32),
            Discrete(len(_MOVES)),
            {"size": self.size, "max_steps": self.max_steps},
            render_mode,
            autoreset_mode,
        )
        self._next, self._distance = _build_torus(self.size)
        self.symbols = np.zeros((self.num_envs, self.num_places), dtype=np.int16)
        # A goal takes at least a move and a collect. One more goal is shown if the last step collects.
        self.goals = np.zeros((self.num_envs, self.max_steps // 2 + 1), dtype=np.int16)
        self.possible = np.ones(self.num_envs, dtype=np.int64)
        self.place, self.goals_collected, self.time = np.zeros((3, self.num_envs), dtype=np.int64)

    def _reset_rows(self, rows: Rows) -> None:
        places, num_goals = self.num_places, self.goals.shape[1]
        self.symbols[rows] = self.streams.permutations(rows, places)
        start = self.streams.integers(rows, high=places, count=1)
        hops = 1 + self.streams.integers(rows, high=places - 1, count=num_goals)
        route = np.cumsum(np.concatenate([start, hops], axis=1), axis=1) % places
        costs = np.cumsum(self._distance[route[:, :-1], route[:, 1:]] + 1, axis=1)
        self.goals[rows] = route[:, 1:]
        self.possible[rows] = (costs <= self.max_steps).sum(axis=1)
        self.place[rows] = route[:, 0]
        self.goals_collected[rows] = 0
        self.time[rows] = 0

    def _step_rows(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.time += 1
        self.place = self._next[self.place, actions]
        collects = (actions == _COLLECT) & (self.place == self.goals[self._row, self.goals_collected])
        self.goals_collected += collects
        rewards = collects.astype(np.float64)
        return rewards, self.time >= self.max_steps, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self, rows: Rows | slice) -> np.ndarray:
        row = self._row[rows]
        goal = self.goals[row, self.goals_collected[rows]]
        observations = np.zeros((len(row), 2 * self.num_places), dtype=np.float32)
        index = np.arange(len(row))
        observations[index, self.symbols[row, self.place[rows]]] = 1.0
        observations[index, self.num_places + self.symbols[row, goal]] = 1.0
        return observations

    def _final_info(self) -> dict[str, np.ndarray]:
        return {"success": self.goals_collected / self.possible}

    def _caption(self, row: int) -> str:
        goals = f"goals {self.goals_collected[row]} of at most {self.possible[row]}"
        return f"step {self.time[row]} of {self.max_steps}   {goals}"

    def _name(self, symbol: int) -> str:
        return chr(ord("A") + symbol) if self.num_places <= 26 else str(symbol)

    def _render_frame(self, row: int) -> np.ndarray:
        width = self.size * _CELL
        size = width + _PANEL, max(width, 4 * _CELL) + 72
        image, draw, font = make_frame(*size, self._caption(row))
        large = ImageFont.load_default(size=20)
        here, goal = int(self.place[row]), int(self.goals[row, self.goals_collected[row]])

        def tile(left: int, top: int, symbol: int) -> None:
            hue = colorsys.hsv_to_rgb(symbol / self.num_places, 0.3, 0.96)
            colour = (round(255 * hue[0]), round(255 * hue[1]), round(255 * hue[2]))
            box = (left + 2, top + 2, left + _CELL - 2, top + _CELL - 2)
            draw.rectangle(box, fill=colour)
            middle = (left + _CELL // 2, top + _CELL // 2)
            draw.text(middle, self._name(symbol), fill=INK, font=large, anchor="mm")

        def frame(place: int, colour: tuple[int, int, int], inset: int) -> None:
            left, top = 16 + place % self.size * _CELL + inset, 40 + place // self.size * _CELL + inset
            side = _CELL - 2 * inset
            draw.rectangle((left, top, left + side, top + side), outline=colour, width=4)

        for place in range(self.num_places):
            symbol = int(self.symbols[row, place])
            tile(16 + place % self.size * _CELL, 40 + place // self.size * _CELL, symbol)
        frame(goal, _GOAL, 1)
        frame(here, _AGENT, 6)
        left = width + 40
        for top, text, place in ((44, "agent sees", here), (112, "goal", goal)):
            draw.text((left, top + 16), text, fill=_AGENT if place == here else _GOAL, font=font)
            tile(left + 100, top, int(self.symbols[row, place]))
        draw.text((left, 184), "edges wrap around", fill=PALE, font=font)
        draw.text((left, 206), "only the two symbols are seen", fill=PALE, font=font)
        return np.asarray(image)

    def _render_text(self, row: int) -> str:
        here, goal = int(self.place[row]), int(self.goals[row, self.goals_collected[row]])
        names = [self._name(int(symbol)) for symbol in self.symbols[row]]
        marks = [f"[{name:^3}]" if place == here else f" {name:^3} " for place, name in enumerate(names)]
        lines = ["".join(marks[first : first + self.size]) for first in range(0, self.num_places, self.size)]
        return "\n".join([self._caption(row), *lines, f"goal {names[goal]}"])


def _build_torus(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the next place for each action, `[places, actions]`, and all distances, `[places, places]`."""
    row, column = np.divmod(np.arange(size**2), size)
    neighbours = [(row + down) % size * size + (column + right) % size for down, right in _MOVES]
    ring = np.minimum(np.arange(size), size - np.arange(size))
    distance = ring[np.abs(row[:, None] - row)] + ring[np.abs(column[:, None] - column)]
    return np.stack(neighbours, axis=1), distance
