"""T-Maze: observe a cue, walk a corridor without position information, turn as the cue indicates."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from scrubjay.envs.batched_env import BatchedEnv, Rows, SingleEnv, check_bool, check_integer
from scrubjay.envs.drawing import FLOOR, INK, WALL, make_frame

_CORRIDOR_LENGTH = 10
_LONGEST = 1_000_000
_MOVE_X = np.array([1, 0, -1, 0])
_MOVE_Y = np.array([0, 1, 0, -1])

_CELL = 40
_CELLS_SHOWN = 13
_ORACLE = (245, 200, 70)
_RIGHT_GOAL, _WRONG_GOAL, _AGENT = (90, 170, 100), (205, 95, 85), (45, 95, 190)


class TMaze(SingleEnv):
    """Memory task: a corridor with a cue at one end and a fork at the other.

    ::

                                 up goal
        oracle - corridor ... - junction
                                 down goal

    Passive (`active=False`): the agent starts on the oracle, `corridor_length` (L) cells left of the
    junction. Active: the oracle lies one cell left of the start, so the agent must visit it first. The cue,
    up or down with equal probability, indicates the right goal. Observations contain no position and do not
    depend on L, so a policy trained in a short corridor can be tested in a longer one.

    Observation, float32 `[4]`; all zero inside a goal (which ends the episode):

    ===== =========== ======== =================================================================
    index name        values   meaning
    ===== =========== ======== =================================================================
    0     at oracle   0, 1     the agent stands on the oracle
    1     in corridor 0, 1     it stands between oracle and junction (active: also at the start)
    2     at junction 0, 1     it stands on the junction
    3     cue         -1, 0, 1 on the oracle: 1 for up, -1 for down; elsewhere always 0
    ===== =========== ======== =================================================================

    Action, `Discrete(4)`; a move into a wall leaves the agent where it is:

    ====== ===== =========================
    action name  effect
    ====== ===== =========================
    0      right one cell to the right
    1      up    at the junction: up goal
    2      left  one cell to the left
    3      down  at the junction: down goal
    ====== ===== =========================

    Reward: entering the right goal gives 1, entering the wrong goal 0. Any other step except the last one
    gives -1/L if the agent is late, and 0 if not. It is late if after step t it stands less than t cells
    (active: t - 2 cells) to the right of the start. Returns lie in [-1, 1].

    End: `terminated` on entering a goal, and after L + 1 steps (active: L + 3), the fewest in which the
    right goal can always be reached; the horizon belongs to the task, so episodes are never `truncated`. The
    last step's info has `success`, 1.0 if the right goal was entered, and `reached`, 1.0 if any goal was.

    Best: a policy with memory reaches return 1 and success 1. Without memory (actions depend on the current
    observation only) success and return are at most 0.5: walk right, then choose a goal at random.

    Units: positions and L in cells, time in steps; L from 1 to 1,000,000.

    Paper: Ni et al. 2023, arXiv 2307.03864, section 4 (after Bakker 2001). Deviations: entering a goal ends
    the episode, which matters only to an active agent that skips the oracle; the cue stays visible while the
    agent stands on the oracle; the oracle and the corridor have separate flags.
    """

    def __init__(
        self, corridor_length: int = _CORRIDOR_LENGTH, active: bool = False, render_mode: str | None = None
    ) -> None:
        super().__init__(TMazeVector(1, corridor_length, active, render_mode, AutoresetMode.DISABLED))


class TMazeVector(BatchedEnv):
    """Vector environment of `TMaze`; observations are float32 `[num_envs, 4]`."""

    row_arrays = ("cue", "position", "arm", "time")
    success_without_memory = 0.5

    def __init__(
        self,
        num_envs: int = 1,
        corridor_length: int = _CORRIDOR_LENGTH,
        active: bool = False,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        limits = f"from 1 to {_LONGEST:,}"
        self.corridor_length = check_integer("corridor_length", corridor_length, 1, _LONGEST, limits)
        self.active = check_bool("active", active)
        super().__init__(
            num_envs,
            Box(np.array([0, 0, 0, -1], np.float32), np.ones(4, np.float32)),
            Discrete(4),
            {"corridor_length": self.corridor_length, "active": self.active},
            render_mode,
            autoreset_mode,
        )
        self._detour = 2 if self.active else 0
        self._oracle = -1 if self.active else 0
        self.horizon = self.corridor_length + self._detour + 1
        self.cue, self.position, self.arm, self.time = np.zeros((4, self.num_envs), dtype=np.int64)

    def _reset_rows(self, rows: Rows) -> None:
        self.cue[rows] = 2 * self.streams.integers(rows, high=2, count=1)[:, 0] - 1
        self.position[rows] = 0
        self.arm[rows] = 0
        self.time[rows] = 0

    def _step_rows(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        length = self.corridor_length
        self.time += 1
        self.arm = np.where(self.position == length, _MOVE_Y[actions], 0)
        # np.clip takes five times as long on small arrays.
        self.position = np.minimum(np.maximum(self.position + _MOVE_X[actions], self._oracle), length)
        at_goal = self.arm != 0
        terminated = at_goal | (self.time >= self.horizon)
        lagging = ~terminated & (self.position < self.time - self._detour)
        rewards = np.where(lagging, -1.0 / length, 0.0)
        rewards[self.arm == self.cue] = 1.0
        return rewards, terminated, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self, rows: Rows | slice) -> np.ndarray:
        position = self.position[rows]
        at_oracle = position == self._oracle
        at_end = position == self.corridor_length
        observations = np.zeros((len(position), 4), dtype=np.float32)
        observations[:, 0] = at_oracle
        observations[:, 1] = ~(at_oracle | at_end)
        observations[:, 2] = at_end & (self.arm[rows] == 0)
        observations[:, 3] = self.cue[rows] * at_oracle
        return observations

    def _final_info(self) -> dict[str, np.ndarray]:
        return {
            "success": (self.arm == self.cue).astype(np.float64),
            "reached": (self.arm != 0).astype(np.float64),
        }

    def _list_visible_cells(self, row: int, max_cells: int) -> range:
        """Return the range of cells to draw: the whole maze, but at most `max_cells` around the agent."""
        last = self.corridor_length
        first = int(
            np.clip(
                self.position[row] - max_cells // 2, self._oracle, max(last - max_cells + 1, self._oracle)
            )
        )
        return range(first, min(first + max_cells, last + 1))

    def _caption(self, row: int) -> str:
        position, cue = int(self.position[row]), "up" if self.cue[row] > 0 else "down"
        caption = (
            f"step {self.time[row]} of {self.horizon}   cell {position} of {self.corridor_length}   "
            f"cue: {cue}"
        )
        if self.arm[row]:
            caption += "   right!" if self.arm[row] == self.cue[row] else "   wrong"
        elif self.time[row] >= self.horizon:
            caption += "   too late"
        return caption

    def _render_frame(self, row: int) -> np.ndarray:
        window = self._list_visible_cells(row, _CELLS_SHOWN)
        cue, here = int(self.cue[row]), (int(self.position[row]), int(self.arm[row]))
        size = (_CELLS_SHOWN + 1) * _CELL, 5 * _CELL
        image, draw, font = make_frame(*size, self._caption(row), (_CELL // 2, 10))

        def corner(x: int, y: int) -> tuple[int, int]:
            return (x - window.start) * _CELL + _CELL // 2, (1 - y) * _CELL + _CELL

        def cell(x: int, y: int, colour: tuple[int, int, int]) -> None:
            left, top = corner(x, y)
            draw.rectangle((left, top, left + _CELL, top + _CELL), fill=colour, outline=WALL, width=2)

        for x in window:
            cell(x, 0, _ORACLE if x == self._oracle else FLOOR)
        if self.corridor_length in window:
            for y in (1, -1):
                cell(self.corridor_length, y, _RIGHT_GOAL if y == cue else _WRONG_GOAL)
        for cut, x in (
            (window.start > self._oracle, 3),
            (window.stop <= self.corridor_length, image.width - _CELL // 2 + 3),
        ):
            if cut:
                draw.text((x, 2 * _CELL + 8), "...", fill=INK, font=font)
        left, top = corner(*here)
        draw.ellipse((left + 9, top + 9, left + _CELL - 9, top + _CELL - 9), fill=_AGENT)
        if self._oracle in window:
            left, top = corner(self._oracle, 0)
            _draw_arrow(draw, left + _CELL // 2, top + _CELL // 2, cue)
        draw.text(
            (_CELL // 2, 4 * _CELL + 10),
            "yellow: oracle   green: right goal   blue: agent",
            fill=WALL,
            font=font,
        )
        return np.asarray(image)

    def _render_text(self, row: int) -> str:
        window = self._list_visible_cells(row, max_cells=60)
        cue, here = int(self.cue[row]), (int(self.position[row]), int(self.arm[row]))
        lines = []
        for y in (1, 0, -1):
            cells: list[str] = []
            for x in window:
                if (x, y) == here:
                    cells.append("@")
                elif y == 0:
                    cells.append("?" if x == self._oracle else ".")
                else:
                    cells.append(("+" if y == cue else "-") if x == self.corridor_length else " ")
            lines.append("".join(cells))
        return "\n".join([self._caption(row), *lines])


def _draw_arrow(draw: Any, x: int, y: int, direction: int) -> None:
    tip, tail = y - 13 * direction, y + 13 * direction
    draw.line((x, tip, x, tail), fill=INK, width=3)
    draw.polygon([(x, tip), (x - 5, tip + 8 * direction), (x + 5, tip + 8 * direction)], fill=INK)
