"""Key to Door: take a colored key, collect apples, then open the door of the key's color."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from scrubjay.envs.batched_env import BatchedEnv, Rows, SingleEnv, check_bool, check_integer
from scrubjay.envs.drawing import BACKGROUND, FLOOR, INK, WALL, make_frame

_NUM_COLOURS = 3
_EXPLORE_STEPS = 15
_DISTRACT_STEPS = 30
_USE_STEPS = 15
_APPLE_REWARD = 0.1
_SMALLEST_SIDE = 5
_LONGEST = 10_000
_POOR_SHARE = 0.1
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_UP = 0
_EXPLORE, _DISTRACT, _USE = range(3)
_PHASES = ("explore", "distract", "use")
_NOTHING = -1

_COLOURS = (
    ("red", (215, 70, 65)),
    ("green", (60, 155, 85)),
    ("blue", (60, 115, 205)),
    ("yellow", (240, 195, 60)),
    ("purple", (145, 90, 185)),
    ("orange", (240, 140, 50)),
    ("teal", (55, 170, 170)),
    ("white", (252, 252, 252)),
)
_CELL = 48
_MARGIN = 40
_AGENT, _APPLE = (70, 70, 75), (200, 40, 50)


class KeyToDoor(SingleEnv):
    """Memory task in three phases: take a colored key, eat apples, open the door of the key's color.

    ::

        explore     distract    use
        #######     #######     #G#R#B#     @ agent (starts every phase in the middle)
        #.....#     #...*.#     #.....#     b key, here blue
        #..b..#     #.....#     #.....#     * apple
        #..@..#     #..@..#     #..@..#     G R B doors, in a new order in every episode
        #.....#     #.....#     #.....#
        #.....#     #.....#     #.....#
        #######     #######     #######

    The room is W x W cells, W = max(5, `num_colours`). Explore, `explore_steps` (E) steps: a key lies on a
    random cell other than the agent's, in one of `num_colours` (C) colors with equal chance. The agent takes
    the key by walking onto it. Distract, `distract_steps` (D) steps: the room holds one apple at a time. The
    agent eats the apple by walking onto it, and the next apple appears on another cell. Use, at most 15
    steps: the upper wall has C doors, one of each color, in random order. Walking into a door ends the
    episode. With `shuffle_doors=False` the doors are always in the order of colors, so a door's color
    determines its position. Policies learn this setting much sooner.

    Memory: observations of the later phases contain neither the key's color nor whether the key was taken.
    Each phase starts with the agent in the middle, so that its position cannot encode the color.
    Credit assignment: taking the key pays nothing before the door, and the apples in between pay a random
    amount. C = 1 tests credit assignment alone; small E and D make both easier.

    Observation, float32 `[3 C + 6]`, the whole room relative to the agent:

    ============== ================= ======== ===========================================================
    index          name              values   meaning
    ============== ================= ======== ===========================================================
    0, 1, 2        phase             0, 1     one-hot: explore, distract, use
    3 + 3 c        color c present   0, 1     the key or a door of color c = 0 .. C - 1 is in the room
    4 + 3 c        color c, rows     -1 .. 1  (its row - the agent's row) / W; above is negative
    5 + 3 c        color c, columns  -1 .. 1  (its column - the agent's column) / W; left is negative
    3 C + 3 .. + 5 apple             as above present, rows, columns
    ============== ================= ======== ===========================================================

    Entries of absent objects are zero. The last two phases do not depend on the key's color.

    Action, `Discrete(4)`: 0 up, 1 down, 2 left, 3 right, by one cell; walls stop the agent.

    Reward: 1 for walking into the door of the key's color with the key. An apple pays `apple_reward` in half
    of the episodes (rich apples) and `apple_reward` / 10 in the other half. All other steps give 0.

    End: `terminated` on entering a door, and after E + D + 15 steps (the horizon belongs to the task, so
    nothing is ever `truncated`). The last step's info has `success`, 1.0 if the right door was entered with
    the key, else 0.0; `reached`, 1.0 if any door was entered; `key`, 1.0 if the key was taken; `apples`, the
    number eaten.

    Best: a policy with memory reaches success 1 and a return of 1 plus the apple rewards. On shortest paths
    with C = 3 it eats 9.0 apples in 30 steps and has a mean return of 1.49. Without memory (the action
    depends on the current observation only) the best policy takes the key, eats apples and enters any door.
    Its success is 1 / C and its return 1 / C plus the apple rewards (0.82). Random actions, C = 3: success
    0.02.

    Units: W in cells; E in steps, from 2 floor(W / 2) (the farthest key) to 10,000; D in steps, 0 to 10,000;
    C from 1 to 8; `apple_reward` as a multiple of the door's reward, finite and at least 0.

    Paper: Hung et al. 2018, arXiv 1810.06721. Their Key-to-Door task defines the phases and the key without
    reward; their visual match task defines the colors. Ni et al. 2023, arXiv 2307.03864, use both tasks
    separately. Their phases last 15, 30 to 90 and 10 to 15 steps, and a door pays as much as one rich apple
    (`apple_reward=1`). Deviations: both tasks are combined; the whole room is observed, as relative positions
    instead of pixels in a 5 x 5 view; one apple at a time instead of ten; any door ends the episode.
    """

    def __init__(
        self,
        num_colours: int = _NUM_COLOURS,
        explore_steps: int = _EXPLORE_STEPS,
        distract_steps: int = _DISTRACT_STEPS,
        apple_reward: float = _APPLE_REWARD,
        shuffle_doors: bool = True,
        render_mode: str | None = None,
    ) -> None:
        """Create the environment.

        Args:
            num_colours: Number of key colors and of doors, 1 to 8.
            explore_steps: Steps of the explore phase.
            distract_steps: Steps of the distract phase.
            apple_reward: Reward of one rich apple; a door gives 1.
            shuffle_doors: Draw a new order of doors in every episode.
            render_mode: rgb_array, ansi or None.
        """
        settings = (num_colours, explore_steps, distract_steps, apple_reward, shuffle_doors, render_mode)
        super().__init__(KeyToDoorVector(1, *settings, AutoresetMode.DISABLED))


class KeyToDoorVector(BatchedEnv):
    """Vector environment of `KeyToDoor`; observations are float32 `[num_envs, 3 num_colours + 6]`."""

    row_arrays = (
        "key_colour",
        "key_place",
        "doors",
        "rich",
        "apples",
        "place",
        "has_key",
        "apples_eaten",
        "time",
    )

    def __init__(
        self,
        num_envs: int = 1,
        num_colours: int = _NUM_COLOURS,
        explore_steps: int = _EXPLORE_STEPS,
        distract_steps: int = _DISTRACT_STEPS,
        apple_reward: float = _APPLE_REWARD,
        shuffle_doors: bool = True,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Create the vector environment.

        Args:
            num_envs: Number of sub-environments.
            num_colours: Number of key colors and of doors, 1 to 8.
            explore_steps: Steps of the explore phase.
            distract_steps: Steps of the distract phase.
            apple_reward: Reward of one rich apple; a door gives 1.
            shuffle_doors: Draw a new order of doors in every episode.
            render_mode: rgb_array, ansi or None.
            autoreset_mode: When to reset a sub-environment whose episode has ended. By default it is reset in
                the next step, as in gymnasium.
        """
        self.num_colours = check_integer("num_colours", num_colours, 1, len(_COLOURS))
        self.side = max(_SMALLEST_SIDE, self.num_colours)
        # With fewer steps some keys cannot be reached.
        farthest = 2 * (self.side // 2)
        self.explore_steps = check_integer("explore_steps", explore_steps, farthest, _LONGEST)
        self.distract_steps = check_integer("distract_steps", distract_steps, 0, _LONGEST)
        is_number = isinstance(apple_reward, Real) and not isinstance(apple_reward, bool)
        if not is_number or not 0 <= apple_reward < np.inf:
            raise ValueError(f"apple_reward={apple_reward!r}: expected a finite number of at least 0")
        self.apple_reward = float(apple_reward)
        self.shuffle_doors = check_bool("shuffle_doors", shuffle_doors)
        super().__init__(
            num_envs,
            Box(-1.0, 1.0, (3 * self.num_colours + 6,), np.float32),
            Discrete(len(_MOVES)),
            {
                "num_colours": self.num_colours,
                "explore_steps": self.explore_steps,
                "distract_steps": self.distract_steps,
                "apple_reward": self.apple_reward,
                "shuffle_doors": self.shuffle_doors,
            },
            render_mode,
            autoreset_mode,
        )
        self.success_without_memory = 1 / self.num_colours
        # Step at which each phase ends.
        self.phase_ends = np.cumsum([self.explore_steps, self.distract_steps, _USE_STEPS])
        self.horizon = int(self.phase_ends[-1])
        self._num_cells = self.side**2
        self._start = self.side // 2 * (self.side + 1)
        self._next, self._position = _build_room(self.side, self.num_colours)
        counts = np.zeros((6, self.num_envs), dtype=np.int64)
        self.key_colour, self.key_place, self.rich, self.place, self.apples_eaten, self.time = counts
        self.doors = np.tile(self._num_cells + np.arange(self.num_colours), (self.num_envs, 1))
        self.apples = np.zeros((self.num_envs, self.distract_steps + 1), dtype=np.int8)
        self.has_key = np.zeros(self.num_envs, dtype=np.bool_)

    def _reset_rows(self, rows: Rows) -> None:
        cells = self._num_cells
        self.key_colour[rows] = self.streams.integers(rows, high=self.num_colours, count=1)[:, 0]
        self.rich[rows] = self.streams.integers(rows, high=2, count=1)[:, 0]
        if self.shuffle_doors:
            self.doors[rows] = cells + self.streams.permutations(rows, self.num_colours)
        # The key, then the apples: each cell differs from the previous one, the first from the start cell.
        hops = 1 + self.streams.integers(rows, high=cells - 1, count=self.distract_steps + 2)
        self.key_place[rows] = (self._start + hops[:, 0]) % cells
        self.apples[rows] = (self._start + np.cumsum(hops[:, 1:], axis=1)) % cells
        self.place[rows] = self._start
        self.has_key[rows] = False
        self.apples_eaten[rows] = 0
        self.time[rows] = 0

    def _step_rows(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        phase = self._phase(slice(None))
        self.time += 1
        self.place = self._next[phase, self.place, actions]
        self.has_key |= (phase == _EXPLORE) & (self.place == self.key_place)
        eats = (phase == _DISTRACT) & (self.place == self.apples[self._row, self.apples_eaten])
        self.apples_eaten += eats
        apple_value = np.where(self.rich == 1, self.apple_reward, _POOR_SHARE * self.apple_reward)
        rewards = eats * apple_value + self._is_at_right_door()
        new_room = (self.time == self.phase_ends[_EXPLORE]) | (self.time == self.phase_ends[_DISTRACT])
        self.place = np.where(new_room, self._start, self.place)
        terminated = (self.place >= self._num_cells) | (self.time >= self.horizon)
        return rewards, terminated, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self, rows: Rows | slice) -> np.ndarray:
        place, phase, row = self.place[rows], self._phase(rows), self._row[rows]
        index = np.arange(len(place))
        things = np.full((len(place), self.num_colours + 1), _NOTHING)
        things[index, self.key_colour[rows]] = np.where(
            (phase == _EXPLORE) & ~self.has_key[rows], self.key_place[rows], _NOTHING
        )
        things[:, -1] = np.where(phase == _DISTRACT, self.apples[row, self.apples_eaten[rows]], _NOTHING)
        in_use = phase == _USE
        things[in_use, :-1] = self.doors[rows][in_use]
        present = things != _NOTHING
        # Triples: the phase, one per colour, the apple.
        triples = np.zeros((len(place), self.num_colours + 2, 3), dtype=np.float32)
        triples[index, 0, phase] = 1.0
        triples[:, 1:, 0] = present
        triples[:, 1:, 1:] = (self._position[things] - self._position[place, None]) * present[..., None]
        return triples.reshape(len(place), -1)

    def _final_info(self) -> dict[str, np.ndarray]:
        return {
            "success": self._is_at_right_door().astype(np.float64),
            "reached": (self.place >= self._num_cells).astype(np.float64),
            "key": self.has_key.astype(np.float64),
            "apples": self.apples_eaten.copy(),
        }

    def _phase(self, rows: Rows | slice) -> np.ndarray:
        time = self.time[rows]
        in_use = time >= self.phase_ends[_DISTRACT]
        return (time >= self.phase_ends[_EXPLORE]).astype(np.int64) + in_use

    def _is_at_right_door(self) -> np.ndarray:
        """Return the mask of rows whose agent holds the key and stands in the door of the key's color."""
        return self.has_key & (self.place == self.doors[self._row, self.key_colour])

    def _list_objects(self, row: int) -> list[tuple[int, str, int]]:
        """Return the place index, kind and color index of each object in the room."""
        phase = self._phase(slice(None))[row]
        if phase == _USE:
            return [(int(place), "door", colour) for colour, place in enumerate(self.doors[row])]
        if phase == _DISTRACT:
            return [(int(self.apples[row, self.apples_eaten[row]]), "apple", 0)]
        return [] if self.has_key[row] else [(int(self.key_place[row]), "key", int(self.key_colour[row]))]

    def _grid(self, place: int) -> tuple[int, int]:
        """Return the column and line of a place, counted from the upper left corner of the walls."""
        down, right = np.rint(self._position[place] * self.side).astype(int)
        return int(right) + 1, int(down) + 1

    def _caption(self, row: int) -> str:
        return f"step {self.time[row]} of {self.horizon}   phase: {_PHASES[self._phase(slice(None))[row]]}"

    def _outcome(self, row: int) -> str:
        name, has_key = _COLOURS[self.key_colour[row]][0], self.has_key[row]
        text = f"{name} key {'taken' if has_key else 'not taken'}   apples {self.apples_eaten[row]}"
        if self.place[row] >= self._num_cells:
            is_right = self._is_at_right_door()[row]
            verdict = "no key" if not has_key else "right door!" if is_right else "wrong door"
            return f"{text}   {verdict}"
        return f"{text}   too late" if self.time[row] >= self.horizon else text

    def _render_frame(self, row: int) -> np.ndarray:
        edge = (self.side + 2) * _CELL
        image, draw, font = make_frame(edge, edge + 2 * _MARGIN, self._caption(row), (10, 10))
        draw.text((10, edge + _MARGIN + 10), self._outcome(row), fill=INK, font=font)
        draw.rectangle((0, _MARGIN, edge - 1, _MARGIN + edge - 1), fill=WALL)

        def middle(place: int) -> tuple[int, int]:
            column, line = self._grid(place)
            return column * _CELL + _CELL // 2, line * _CELL + _CELL // 2 + _MARGIN

        for cell in range(self._num_cells):
            x, y = middle(cell)
            draw.rectangle((x - 23, y - 23, x + 23, y + 23), fill=FLOOR)
        for place, kind, colour in self._list_objects(row):
            _draw_thing(draw, *middle(place), kind, _COLOURS[colour][1])
        x, y = middle(int(self.place[row]))
        draw.ellipse((x - 12, y - 12, x + 12, y + 12), fill=_AGENT, outline=BACKGROUND, width=2)
        return np.asarray(image)

    def _render_text(self, row: int) -> str:
        wall = "#" * (self.side + 2)
        lines = [list(wall), *(list("#" + "." * self.side + "#") for _ in range(self.side)), list(wall)]
        for place, kind, colour in self._list_objects(row):
            column, line = self._grid(place)
            initial = _COLOURS[colour][0][0]
            lines[line][column] = {"door": initial.upper(), "key": initial, "apple": "*"}[kind]
        column, line = self._grid(int(self.place[row]))
        lines[line][column] = "@"
        return "\n".join([self._caption(row), *map("".join, lines), self._outcome(row)])


def _build_room(side: int, num_doors: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the table of moves and the positions of all places of a room.

    The table, `[phases, places, actions]`, holds the number of the next place. The positions, `[places, 2]`,
    are row and column divided by `side`. The numbers of places count the cells in row-major order, then the
    doors in the wall above row 0.
    """
    row, column = np.divmod(np.arange(side**2), side)
    ends = (0, side - 1) if num_doors > 1 else (side // 2, side // 2)
    door_column = np.rint(np.linspace(*ends, num_doors)).astype(np.int64)
    neighbours = [
        np.clip(row + down, 0, side - 1) * side + np.clip(column + right, 0, side - 1)
        for down, right in _MOVES
    ]
    door = side**2 + np.arange(num_doors)
    cells = np.stack(neighbours, axis=1)
    stay = np.repeat(door[:, None], len(_MOVES), axis=1)
    following = np.repeat(np.concatenate([cells, stay])[None], len(_PHASES), axis=0)
    following[_USE, door_column, _UP] = door
    position = np.stack([np.append(row, np.full(num_doors, -1)), np.append(column, door_column)], axis=1)
    return following, (position / side).astype(np.float32)


def _draw_thing(draw: Any, x: int, y: int, kind: str, colour: tuple[int, int, int]) -> None:
    if kind == "door":
        draw.rectangle((x - 18, y - 23, x + 18, y + 24), fill=colour, outline=INK, width=2)
        draw.ellipse((x + 8, y - 2, x + 13, y + 3), fill=INK)
    elif kind == "key":
        draw.ellipse((x - 19, y - 8, x - 3, y + 8), outline=colour, width=5)
        draw.line((x - 4, y, x + 18, y), fill=colour, width=5)
        for tooth in (9, 16):
            draw.line((x + tooth, y, x + tooth, y + 9), fill=colour, width=4)
    else:
        draw.ellipse((x - 11, y - 9, x + 11, y + 13), fill=_APPLE)
        draw.line((x, y - 8, x + 4, y - 16), fill=INK, width=3)
