"""CountRecall: watch cards and count how often the queried value has been shown."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode
from PIL import ImageFont

from scrubjay.envs.batched_env import BatchedEnv, Rows, SingleEnv, check_integer, is_integer
from scrubjay.envs.drawing import BAD, CARD, GOOD, HIGHLIGHT, INK, PALE, make_frame

_NUM_CARDS = 52
_MOST_CARDS = 10_000
_NUM_VALUES = 2
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_BAR = (95, 140, 200)
_BAR_HEIGHT, _BAR_TOP = 100, 66


class CountRecall(SingleEnv):
    """Memory task: each step shows a card and a query; answer how often the queried value has been shown.

    The pack c holds N = `num_cards` cards of V = `num_values` values, n = N/V cards of each value. The
    queries q are the cards of a second pack of the same cards, shuffled independently. `reset` shows c[0]
    and q[0]. Step t = 1, 2, ... first scores the action, then shows c[t] and q[t]:

    ==== =============== ========================================= ===========
    step cards shown     correct action                            reward
    ==== =============== ========================================= ===========
    t    c[0] .. c[t-1]  number of these cards with value q[t-1]   +-1/(N - 1)
    ==== =============== ========================================= ===========

    The current card is counted, and the current query is the one to answer. A memory must store V counts of
    cards; it need not store queries or the order of cards.

    Observation, `MultiDiscrete([V, V])`, int64 `[2]`: the value of the current card and the queried value.

    Action, `Discrete(n + 1)`: the count, from 0 to n.

    Reward: 1/(N - 1) for the right count, -1/(N - 1) for any other. An episode has N - 1 questions, so
    returns lie in [-1, 1].

    End: `terminated` after N - 1 steps, when the last card is shown (never `truncated`; the last query is not
    scored). The last step's `info["success"]` is the fraction of right answers, in [0, 1].

    Best: a policy with memory reaches return 1 and success 1. The best policy without memory gives any
    constant answer from 1 to n - 1; the observation does not help. Its success is
    s = (1 + (V - 1) n / (n + 1)) / (N - 1) and its return 2s - 1: for 52 cards of 2 values 0.0385 and
    -0.9230. With a step counter, but no memory of cards, a policy can name the likeliest count: success
    0.2973, return -0.4054. Only better results show memory of cards.

    Units: counts in cards, time in steps. `num_values` from 2 to 26; `num_cards` a multiple of `num_values`,
    from 2 `num_values` to 10,000. POPGym's easy, medium and hard (colors of 1 deck, suits of 2, ranks of 4)
    are `num_cards` 52, 104, 208 with `num_values` 2, 4, 13.

    Paper: Morad et al. 2023, POPGym, arXiv 2303.01859. Deviations: packs need not be whole decks; the true
    counts are not in `info`.
    """

    def __init__(
        self, num_cards: int = _NUM_CARDS, num_values: int = _NUM_VALUES, render_mode: str | None = None
    ) -> None:
        super().__init__(CountRecallVector(1, num_cards, num_values, render_mode, AutoresetMode.DISABLED))


class CountRecallVector(BatchedEnv):
    """Vector environment of `CountRecall`; observations are int64 `[num_envs, 2]`."""

    row_arrays = ("deck", "queries", "counts", "time", "answer", "right")

    def __init__(
        self,
        num_envs: int = 1,
        num_cards: int = _NUM_CARDS,
        num_values: int = _NUM_VALUES,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        self.num_values = check_integer("num_values", num_values, 2, len(_LETTERS))
        few = 2 * num_values
        if not is_integer(num_cards) or not few <= num_cards <= _MOST_CARDS or num_cards % num_values:
            raise ValueError(
                f"num_cards={num_cards!r}: expected a multiple of num_values={num_values}, "
                f"from {few} to {_MOST_CARDS}"
            )
        self.num_cards = int(num_cards)
        self.most = self.num_cards // self.num_values
        super().__init__(
            num_envs,
            MultiDiscrete([self.num_values, self.num_values]),
            Discrete(self.most + 1),
            {"num_cards": self.num_cards, "num_values": self.num_values},
            render_mode,
            autoreset_mode,
        )
        self.questions = self.num_cards - 1
        constant_answer_hits = 1 + (self.num_values - 1) * self.most / (self.most + 1)
        self.success_without_memory = constant_answer_hits / self.questions
        self.deck = np.zeros((self.num_envs, self.num_cards), dtype=np.int8)
        self.queries = np.zeros((self.num_envs, self.num_cards), dtype=np.int8)
        self.counts = np.zeros((self.num_envs, self.num_values), dtype=np.int64)
        self.answer = np.full(self.num_envs, -1, dtype=np.int64)
        self.time, self.right = np.zeros((2, self.num_envs), dtype=np.int64)

    def _reset_rows(self, rows: Rows) -> None:
        self.deck[rows] = self.streams.permutations(rows, self.num_cards) % self.num_values
        self.queries[rows] = self.streams.permutations(rows, self.num_cards) % self.num_values
        self.counts[rows] = 0
        self.counts[rows, self.deck[rows, 0]] = 1
        self.time[rows] = 0
        self.answer[rows] = -1
        self.right[rows] = 0

    def _step_rows(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        right = self.counts[self._row, self.queries[self._row, self.time]] == actions
        self.right += right
        self.answer = actions.astype(np.int64)
        # Next-step autoreset steps an ended episode once more; its time stays at the last card.
        self.time = np.minimum(self.time + 1, self.questions)
        self.counts[self._row, self.deck[self._row, self.time]] += 1
        rewards = (2.0 * right - 1.0) / self.questions
        return rewards, self.time == self.questions, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self, rows: Rows | slice) -> np.ndarray:
        row, time = self._row[rows], self.time[rows]
        return np.stack([self.deck[row, time], self.queries[row, time]], 1, dtype=np.int64)

    def _final_info(self) -> dict[str, np.ndarray]:
        return {"success": self.right / self.questions}

    def _caption(self, row: int) -> str:
        time = int(self.time[row])
        return f"step {time} of {self.questions}   right {self.right[row]} of {time}"

    def _question(self, row: int) -> str:
        query = _LETTERS[self.queries[row, self.time[row]]]
        return f"How many {query} so far?" if self.time[row] < self.questions else "The pack is dealt."

    def _verdict(self, row: int) -> tuple[str, tuple[int, int, int]]:
        """Return a line of text that rates the last answer, and the color of the line."""
        time, answer = int(self.time[row]), int(self.answer[row])
        if answer < 0:
            return "nothing answered yet", PALE
        value = int(self.queries[row, time - 1])
        count = int((self.deck[row, :time] == value).sum())
        if answer == count:
            return f"last answer {answer} for {_LETTERS[value]}: right", GOOD
        return f"last answer {answer} for {_LETTERS[value]}: wrong, it was {count}", BAD

    def _render_frame(self, row: int) -> np.ndarray:
        time = int(self.time[row])
        image, draw, small = make_frame(640, 250, self._caption(row))
        large = ImageFont.load_default(size=48)
        draw.rounded_rectangle((16, 60, 96, 172), radius=8, fill=CARD, outline=PALE, width=2)
        draw.text((56, 116), _LETTERS[self.deck[row, time]], fill=INK, font=large, anchor="mm")
        draw.text((16, 186), self._question(row), fill=INK, font=small)
        text, colour = self._verdict(row)
        draw.text((16, 214), text, fill=colour, font=small)
        # One bar per value shows its true count; the bar of the queried value is yellow.
        pitch = min(480 // self.num_values, 60)
        for value in range(self.num_values):
            left, count = 136 + value * pitch, int(self.counts[row, value])
            right, bottom = left + pitch - 5, _BAR_TOP + _BAR_HEIGHT
            is_query = value == self.queries[row, time] and time < self.questions
            draw.rectangle((left, _BAR_TOP, right, bottom), outline=(225, 225, 220))
            if count:
                top = bottom - round(_BAR_HEIGHT * count / self.most)
                draw.rectangle((left, top, right, bottom), fill=HIGHLIGHT if is_query else _BAR)
            middle = (left + right) // 2
            draw.text((middle, bottom + 10), _LETTERS[value], fill=INK, font=small, anchor="mm")
            draw.text(
                (middle, _BAR_TOP - 12), str(count), fill=INK if is_query else PALE, font=small, anchor="mm"
            )
        return np.asarray(image)

    def _render_text(self, row: int) -> str:
        cards = "".join(_LETTERS[value] for value in self.deck[row, : self.time[row] + 1])
        lines = [self._caption(row), f"seen {cards}", self._question(row), self._verdict(row)[0]]
        return "\n".join(lines)
