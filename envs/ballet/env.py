"""Ballet: watch dancers perform one after another, then walk to the dancer of the named dance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode

from scrubjay.envs.ballet import world
from scrubjay.envs.ballet.world import BalletScene, dancer_letter, draw_scene, format_scene
from scrubjay.envs.batched_env import BatchedEnv, Observations, Rows, SingleEnv, check_integer, is_integer
from scrubjay.envs.random_streams import restore_generator

_NUM_DANCERS = 2
_DELAY = 16

SLOTS = 8
"""Number of dancer slots in a symbolic or set observation."""
MOVE_OFFSET, SHAPE_OFFSET = 2, 11
COLOUR_OFFSET = SHAPE_OFFSET + len(world.SHAPE_NAMES)
SLOT_SIZE = COLOUR_OFFSET + len(world.COLOUR_NAMES)
"""Size of a slot; its one-hot parts start at `MOVE_OFFSET`, `SHAPE_OFFSET` and `COLOUR_OFFSET`."""
_SIZE = SLOTS * SLOT_SIZE + len(world.INSTRUCTIONS)
_DOWN, _ACROSS, _MOVE, _PREVIOUS_MOVE, _SHAPE, _COLOUR = range(6)
_FARTHEST = 8
"""Largest distance in cells from the agent to a dancer, along one axis."""
_NEAREST = 3
"""Distance in cells from the agent's start to every dancer; all are equally near."""
_NOWHERE = -99
"""Row and column of dancers that are absent from an episode."""
_TIME_TO_CHOOSE = 72
"""Steps of the original's shortest choice phase: 320 less the 248 steps of 8 dancers with a delay of 16."""


class Ballet(SingleEnv):
    """Reimplementation of DeepMind's Ballet; equal to the original in every step and pixel for equal seeds.

    A room of 9 x 9 cells holds `num_dancers` (n) dancers; the agent starts in the middle. Dance phase: each
    dancer in turn makes the 16 moves of its dance, then all stand still for `delay` (d) steps. `reset` shows
    the first move. Choice phase, from step n (15 + d): the instruction names the dance of one dancer, the
    target. Actions have no effect up to and including that step. Entering a dancer's cell ends the episode.

    The dancers of an episode have different places, dances, colors and shapes. Dances, numbered from 0 to
    12: circle_cw, circle_ccw, up_and_down, left_and_right, diagonal_uldr, diagonal_urdl, plus_cw, plus_ccw,
    times_cw, times_ccw, zee, chevron_down, chevron_up.

    Observation with `observation="rgb"`, a Dict:

    =========== ====================== ==================================================================
    key         space                  meaning
    =========== ====================== ==================================================================
    image       float32 [99, 99, 3]    rows, columns, channels (red, green, blue): 11 x 11 cells of 9 x 9
                                       pixels around the agent, from 0 to 1; the agent white, walls
                                       40/255, all else black. With `dtype="uint8"` bytes, from 0 to 255
    instruction Discrete(14)           0 watch, 1 + number of the dance; its text is in
                                       `info["instruction"]`
    =========== ====================== ==================================================================

    Observation with `observation="symbolic"`, float32 [374]: 8 slots of 45 numbers, then the instruction as
    14 one-hot numbers. Each dancer gets a random slot in each episode; unused slots are zero. A slot holds:

    ========= ============================================================================
    index     meaning
    ========= ============================================================================
    0, 1      rows and columns from the agent to the dancer, divided by 8, from -1 to 1
    2 .. 10   its move in this step, one-hot: N, NE, E, SE, S, SW, W, NW, none
    11 .. 25  shape, one-hot, in the order of `scrubjay.envs.ballet.world.SHAPE_NAMES`
    26 .. 44  color, one-hot, in the order of `scrubjay.envs.ballet.world.COLOUR_NAMES`
    ========= ============================================================================

    Observation with `observation="set"`, a Dict with the same content, for permutation-invariant encoders:

    ============ =================== ===================================================================
    key          space               meaning
    ============ =================== ===================================================================
    dancers      MultiDiscrete       for each of 8 slots 6 numbers: rows and columns from the agent to the
                 [8, 6]              dancer, plus 8; its moves in this step and in the previous one, 8
                                     for none; shape; color. Unused slots are zero
    dancers_mask MultiBinary(8)      1 for slots with a dancer
    instruction  Discrete(14)        as with "rgb"
    ============ =================== ===================================================================

    Action, `Discrete(8)`: one cell to N, NE, E, SE, S, SW, W, NW (0 .. 7; N is up). A move into the wall,
    also a diagonal one, leaves the agent where it is. Other numbers raise ValueError in every phase.

    Reward: +1 on entering the target's cell, else 0.

    End: `terminated` on entering a dancer's cell; `truncated` after `max_steps` steps. The last step's
    info has `success`, 1.0 if the target was reached, and `reached`, 1.0 if any dancer was; else 0.0.

    Best: a policy with memory reaches return and success 1, a policy without memory 1/n.

    Settings: `num_dancers` from 1 to 8; `delay` at least 1 (with 0 the original never starts the second
    dance). `max_steps=None` sets the limit of the original: 320 steps for a delay of 16, 1024 for any other
    delay. If this limit is too early to reach any dancer, the limit is 72 steps after the first step of the
    choice phase; the original does not extend its limit. The paper's levels are 2, 4 and 8 dancers with
    delays of 16 and 48. `dtype` of images: "float32", as in the original, or "uint8", the same pixels times
    255, as most libraries expect. With `min_dancers` every episode samples its number of dancers from
    `min_dancers` to `num_dancers`. `walk_steps` replaces `max_steps`: the episode is truncated `walk_steps`
    steps after the start of its choice phase.

    Units: places in cells, time in steps.

    Paper: Lampinen et al. 2021, arXiv 2105.14039. All random numbers come from `np_random`, in the order of
    the original. The original resets the environment in an extra time step; here `reset` does so.
    """

    def __init__(
        self,
        num_dancers: int = _NUM_DANCERS,
        delay: int = _DELAY,
        observation: Literal["rgb", "symbolic", "set"] = "rgb",
        max_steps: int | None = None,
        render_mode: str | None = None,
        *,
        dtype: Literal["float32", "uint8"] = "float32",
        min_dancers: int | None = None,
        walk_steps: int | None = None,
    ) -> None:
        options = {"dtype": dtype, "min_dancers": min_dancers, "walk_steps": walk_steps}
        mode = AutoresetMode.DISABLED
        super().__init__(
            BalletVector(1, num_dancers, delay, observation, max_steps, render_mode, mode, **options)
        )


class BalletVector(BatchedEnv):
    """Vector environment of `Ballet`."""

    row_arrays = ("place", "dance", "colour", "shape", "slot", "count", "target", "agent", "time")
    metadata = {**BatchedEnv.metadata, "render_fps": 8}

    def __init__(
        self,
        num_envs: int = 1,
        num_dancers: int = _NUM_DANCERS,
        delay: int = _DELAY,
        observation: Literal["rgb", "symbolic", "set"] = "rgb",
        max_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        *,
        dtype: Literal["float32", "uint8"] = "float32",
        min_dancers: int | None = None,
        walk_steps: int | None = None,
    ) -> None:
        """Create the vector environment.

        Args:
            num_envs: Number of sub-environments.
            num_dancers: Number of dancers, 1 to 8.
            delay: Steps for which all dancers stand still after each dance, at least 1.
            observation: Images (`rgb`), a flat vector (`symbolic`) or a `set` of dancers.
            max_steps: Steps after which an episode is truncated; None for the default limit (see `Ballet`).
            render_mode: rgb_array, ansi or None.
            autoreset_mode: When to reset a sub-environment whose episode has ended. By default it is reset in
                the next step, as in gymnasium.
            dtype: Dtype of images: float32 from 0 to 1, or uint8 from 0 to 255.
            min_dancers: Minimum number of dancers of an episode, 1 to `num_dancers`; None for `num_dancers`.
            walk_steps: Number of steps from the start of the choice phase until an episode is truncated;
                replaces `max_steps`.
        """
        self.num_dancers = check_integer("num_dancers", num_dancers, 1, SLOTS)
        self.delay = check_integer("delay", delay, 1)
        if observation not in _SPACES:
            raise ValueError(f"observation={observation!r}: choose from {', '.join(map(repr, _SPACES))}")
        if dtype not in ("float32", "uint8"):
            raise ValueError(f"dtype={dtype!r}: choose from 'float32', 'uint8'")
        if dtype == "uint8" and observation != "rgb":
            raise ValueError(f"dtype='uint8' needs images; observation={observation!r} has none")
        self.dtype, self.observation = dtype, observation
        self._period = world.MOVES_PER_DANCE - 1 + self.delay
        self.choice_step = self.num_dancers * self._period
        self.min_dancers = self.num_dancers
        if min_dancers is not None:
            limits = f"from 1 to num_dancers={num_dancers}"
            self.min_dancers = check_integer("min_dancers", min_dancers, 1, num_dancers, limits)
        self.walk_steps = walk_steps
        if walk_steps is not None:
            if max_steps is not None or not is_integer(walk_steps) or walk_steps < _NEAREST:
                raise ValueError(
                    f"walk_steps={walk_steps!r}, max_steps={max_steps!r}: pass only one of them; walk_steps "
                    f"must be an integer of at least {_NEAREST}, because no dancer can be reached sooner"
                )
            max_steps = self.choice_step + int(walk_steps)
        elif max_steps is None:
            max_steps = 320 if self.delay == 16 else 1024
            if max_steps < self.choice_step + _NEAREST:
                max_steps = self.choice_step + _TIME_TO_CHOOSE
        elif not is_integer(max_steps) or max_steps < self.choice_step + _NEAREST:
            raise ValueError(
                f"max_steps={max_steps!r}: expected None or an integer of at least "
                f"{self.choice_step + _NEAREST}, the fewest steps in which a dancer can be reached"
            )
        self.max_steps = int(max_steps)
        super().__init__(
            num_envs,
            _SPACES[observation](dtype),
            Discrete(8),
            {
                "num_dancers": self.num_dancers,
                "delay": self.delay,
                "observation": observation,
                "max_steps": self.max_steps,
                "dtype": dtype,
                "min_dancers": self.min_dancers,
                "walk_steps": walk_steps,
            },
            render_mode,
            autoreset_mode,
        )
        numbers = range(self.min_dancers, self.num_dancers + 1)
        self.success_without_memory = sum(1 / number for number in numbers) / len(numbers)
        self.generators = np.random.default_rng().spawn(self.num_envs)
        per_dancer = (self.num_envs, self.num_dancers)
        self.place = np.zeros((*per_dancer, 2), dtype=np.int64)
        self.dance, self.colour, self.shape, self.slot = (
            np.zeros(per_dancer, dtype=np.int64) for _ in range(4)
        )
        self.count = np.full(self.num_envs, self.num_dancers)
        self.agent = np.full((self.num_envs, 2), world.CENTRE)
        self.target, self.time = (np.zeros(self.num_envs, dtype=np.int64) for _ in range(2))
        self._still = np.zeros((self.num_envs, _SIZE), dtype=np.float32)

    def seed_row(self, row: int, generator: np.random.Generator) -> None:
        """Use `generator` for all later random choices of one sub-environment, as DeepMind's Ballet does."""
        self.generators[row] = generator

    def get_state(self) -> dict[str, Any]:
        """Return the full state, including the random generators of all sub-environments."""
        states = [generator.bit_generator.state for generator in self.generators]
        return {**super().get_state(), "generators": states}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if `state` or its random generators do not match this environment."""
        super().check_state(state)
        states = state.get("generators", ())
        if len(states) != self.num_envs:
            raise ValueError(
                f"state['generators'] has {len(states)} entries; expected {self.num_envs}, one per "
                "environment"
            )
        for generator_state in states:
            restore_generator(generator_state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state` exactly. Raises ValueError if `check_state` rejects it."""
        super().set_state(state)
        for row, generator_state in enumerate(state["generators"]):
            self._set_generator(row, generator_state)
        self._update_still(self._row)

    def _set_generator(self, row: int, state: Mapping[str, Any]) -> None:
        # Set in place if possible: `np_random` of a single environment is this generator.
        bit_generator = self.generators[row].bit_generator
        if bit_generator.state["bit_generator"] == state["bit_generator"]:
            bit_generator.state = state
        else:
            self.generators[row] = restore_generator(state)

    def _reset_rows(self, rows: Rows) -> None:
        count = self.num_dancers
        for row in rows:
            generator = self.generators[row]
            if self.min_dancers < self.num_dancers:
                self.count[row] = generator.integers(self.min_dancers, self.num_dancers + 1)
            # The original makes these calls in this order and shuffles whole lists.
            self.target[row] = generator.integers(self.count[row])
            places = generator.permutation(len(world.PLACES))[:count]
            dances = generator.permutation(len(world.DANCE_NAMES))[:count]
            colours = generator.permutation(len(world.COLOUR_NAMES))
            shapes = generator.permutation(len(world.SHAPE_NAMES))[:count]
            self.place[row] = world.PLACES[places]
            self.place[row, self.count[row] :] = _NOWHERE
            self.dance[row], self.colour[row], self.shape[row] = dances, colours[:count], shapes
            # The order of unused colours is random too. Slots use it, so that they need no extra draw.
            self.slot[row] = colours[-SLOTS:].argsort()[:count]
        self.agent[rows] = world.CENTRE
        self.time[rows] = 0
        self._update_still(rows)

    def _step_rows(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.time += 1
        choice_step = self.count * self._period
        walking = self.time > choice_step
        limit = self._limit()
        if not walking.any():
            terminated = np.zeros(self.num_envs, dtype=np.bool_)
            return np.zeros(self.num_envs), terminated, self.time >= limit
        agent = self.agent + world.MOVES[actions]
        free = walking & ((agent > 0) & (agent < world.ROOM - 1)).all(axis=1)
        self.agent = np.where(free[:, None], agent, self.agent)
        terminated = self._is_at_dancer()
        return self._is_at_target().astype(np.float64), terminated, (self.time >= limit) & ~terminated

    def _limit(self) -> np.ndarray:
        """Return the step at which each episode is truncated."""
        if self.walk_steps is None:
            return np.full(self.num_envs, self.max_steps)
        return self.count * self._period + self.walk_steps

    def _is_at_dancer(self) -> np.ndarray:
        return (self.place == self.agent[:, None]).all(axis=2).any(axis=1)

    def _is_at_target(self) -> np.ndarray:
        return (self.place[self._row, self.target] == self.agent).all(axis=1)

    def _find_dancing(self, rows: np.ndarray, ago: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return three arrays for the dancers that moved `ago` steps ago: index in `rows`, dancer, move."""
        dancer, move = np.divmod(self.time[rows] - ago, self._period)
        index = np.flatnonzero((dancer >= 0) & (dancer < self.count[rows]) & (move < world.MOVES_PER_DANCE))
        return index, dancer[index], move[index]

    def _instruction(self) -> np.ndarray:
        dance_instruction = self.dance[self._row, self.target] + 1
        return np.where(self.time >= self.count * self._period, dance_instruction, 0)

    def _present(self, rows: np.ndarray) -> np.ndarray:
        """Return the mask of dancers that take part in the episode, `[environments, dancers]`."""
        return np.arange(self.num_dancers) < self.count[rows, None]

    def _observe(self, rows: Rows | slice) -> Observations:
        rows = self._row[rows]
        instruction = self._instruction()[rows]
        if self.observation == "symbolic":
            return self._observe_symbols(rows, instruction)
        if self.observation == "set":
            return {**self._observe_set(rows), "instruction": instruction}
        return {"image": self._observe_images(rows), "instruction": instruction}

    def _update_still(self, rows: np.ndarray) -> None:
        """Precompute the symbolic observations of `rows` without any dance and without instruction."""
        if self.observation != "symbolic":
            return
        still = np.zeros((len(rows), _SIZE), dtype=np.float32)
        slots = still[:, : SLOTS * SLOT_SIZE].reshape(len(rows), SLOTS, SLOT_SIZE)
        index, slot = np.arange(len(rows))[:, None], self.slot[rows]
        slots[index, slot, :2] = (self.place[rows] - world.CENTRE) / 8
        slots[index, slot, MOVE_OFFSET + world.NO_MOVE] = 1
        slots[index, slot, SHAPE_OFFSET + self.shape[rows]] = 1
        slots[index, slot, COLOUR_OFFSET + self.colour[rows]] = 1
        slots[index, slot] *= self._present(rows)[..., None]
        self._still[rows] = still

    def _observe_symbols(self, rows: np.ndarray, instruction: np.ndarray) -> np.ndarray:
        symbols = self._still[rows]
        index, dancer, move = self._find_dancing(rows)
        if len(index):
            dance = self.dance[rows[index], dancer]
            at = self.slot[rows[index], dancer] * SLOT_SIZE
            symbols[index, at] += world.DANCE_OFFSETS[dance, move, 0] / np.float32(8)
            symbols[index, at + 1] += world.DANCE_OFFSETS[dance, move, 1] / np.float32(8)
            symbols[index, at + MOVE_OFFSET + world.NO_MOVE] = 0
            symbols[index, at + MOVE_OFFSET + world.DANCE_MOVES[dance, move]] = 1
        displacement = self.agent[rows] - world.CENTRE
        index = np.flatnonzero(displacement.any(axis=1))
        if len(index):
            at = self.slot[rows[index]] * SLOT_SIZE
            present = self._present(rows[index])
            for axis in (0, 1):
                symbols[index[:, None], at + axis] -= (displacement[index, axis] / np.float32(8))[
                    :, None
                ] * present
        symbols[np.arange(len(rows)), SLOTS * SLOT_SIZE + instruction] = 1
        return symbols

    def _observe_set(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return "dancers" and "dancers_mask" of the set observations of sub-environments `rows`."""
        each, slot = np.arange(len(rows))[:, None], self.slot[rows]
        dancers = np.zeros((len(rows), SLOTS, _COLOUR + 1), dtype=np.int64)
        dancers[each, slot, :_MOVE] = self._current_places(rows) - self.agent[rows, None] + _FARTHEST
        for ago, field in enumerate((_MOVE, _PREVIOUS_MOVE)):
            dancers[each, slot, field] = world.NO_MOVE
            index, dancer, move = self._find_dancing(rows, ago)
            moves = world.DANCE_MOVES[self.dance[rows[index], dancer], move]
            dancers[index, slot[index, dancer], field] = moves
        dancers[each, slot, _SHAPE], dancers[each, slot, _COLOUR] = self.shape[rows], self.colour[rows]
        present = np.zeros((len(rows), SLOTS), dtype=np.int8)
        present[each, slot] = self._present(rows)
        return {"dancers": dancers * present[..., None], "dancers_mask": present}

    def _current_places(self, rows: np.ndarray) -> np.ndarray:
        """Return the current places of all dancers, `[rows, dancers, 2]`."""
        places = self.place[rows]
        index, dancer, move = self._find_dancing(rows)
        places[index, dancer] += world.DANCE_OFFSETS[self.dance[rows[index], dancer], move]
        return places

    def _observe_images(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), world.ROOM, world.CELL, world.ROOM, world.CELL, 3), dtype=self.dtype)
        cells = self._current_places(rows) - self.agent[rows, None] + world.CENTRE
        visible = np.all((cells >= 0) & (cells < world.ROOM), axis=2)
        for i, row in enumerate(rows):
            images[i] = world.draw_background(*self.agent[row].tolist(), self.dtype).reshape(images.shape[1:])
            for dancer in np.flatnonzero(visible[i]):
                down, across = cells[i, dancer]
                images[i, down, :, across] = world.draw_tile(
                    self.shape[row, dancer], self.colour[row, dancer], self.dtype
                )
        return images.reshape(len(rows), world.ROOM * world.CELL, world.ROOM * world.CELL, 3)

    def _final_info(self) -> dict[str, np.ndarray]:
        return {
            "success": self._is_at_target().astype(np.float64),
            "reached": self._is_at_dancer().astype(np.float64),
        }

    def _info(self) -> dict[str, np.ndarray]:
        return {"instruction": _INSTRUCTIONS[self._instruction()]}

    def _build_scene(self, row: int) -> BalletScene:
        """Return the scene of one sub-environment for rendering."""
        chooses = self.time[row] >= self.count[row] * self._period
        reached_dancers = np.flatnonzero((self.place[row] == self.agent[row]).all(axis=1))
        _, dancer, move = self._find_dancing(np.array([row]))
        if len(reached_dancers):
            verdict = "right!" if reached_dancers[0] == self.target[row] else "wrong"
            event = f"dancer {dancer_letter(reached_dancers[0])}: {verdict}"
        elif len(dancer):
            dance = world.DANCE_NAMES[self.dance[row, dancer[0]]]
            event = f"{dancer_letter(dancer[0])} dances {dance}, move {move[0] + 1} of 16"
        else:
            event = "the agent chooses" if chooses else "a pause"
        instruction, there = _INSTRUCTIONS[self._instruction()[row]], slice(self.count[row])
        return BalletScene(
            progress=f"step {self.time[row]} of at most {self._limit()[row]}",
            event=f'"{instruction}"   {event}',
            agent=self.agent[row],
            homes=self.place[row, there],
            places=self._current_places(np.array([row]))[0, there],
            shapes=self.shape[row, there],
            colours=self.colour[row, there],
            target=int(self.target[row]) if chooses else None,
        )

    def _render_frame(self, row: int) -> np.ndarray:
        return draw_scene(self._build_scene(row))

    def _render_text(self, row: int) -> str:
        return format_scene(self._build_scene(row))


_INSTRUCTIONS = np.array(world.INSTRUCTIONS, dtype=object)


def _rgb_space(dtype: str) -> Dict:
    side = world.ROOM * world.CELL
    image = Box(0, 255 if dtype == "uint8" else 1, (side, side, 3), np.dtype(dtype).type)
    return Dict({"image": image, "instruction": Discrete(len(world.INSTRUCTIONS))})


def _symbolic_space(dtype: str) -> Box:
    low = np.zeros((SLOTS, SLOT_SIZE), dtype=np.float32)
    low[:, :2] = -1
    low = np.concatenate([low.ravel(), np.zeros(len(world.INSTRUCTIONS), dtype=np.float32)])
    return Box(low, np.ones(_SIZE, dtype=np.float32))


def _set_space(dtype: str) -> Dict:
    place, move = 2 * _FARTHEST + 1, world.NO_MOVE + 1
    one = [place, place, move, move, len(world.SHAPE_NAMES), len(world.COLOUR_NAMES)]
    return Dict(
        {
            "dancers": MultiDiscrete(np.array([one] * SLOTS)),
            "dancers_mask": MultiBinary(SLOTS),
            "instruction": Discrete(len(world.INSTRUCTIONS)),
        }
    )


_SPACES = {"rgb": _rgb_space, "symbolic": _symbolic_space, "set": _set_space}
