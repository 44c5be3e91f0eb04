"""Autoencode: watch a shuffled pack of cards, then name the suits in reverse order."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode

from scrubjay.envs.batched_env import BatchedEnv, Rows, SingleEnv, is_integer
from scrubjay.envs.drawing import BAD, CARD, GOOD, HIGHLIGHT, INK, PALE, SUITS, draw_suit, make_frame

_NUM_CARDS = 52
_MOST_CARDS = 10_000

_BACK = (205, 212, 222)
_TILE_WIDTH, _TILE_HEIGHT, _TILES_A_LINE = 38, 48, 13


class Autoencode(SingleEnv):
    """Memory task: watch a shuffled pack, one card per step, then name the suits in reverse order.

    The pack holds N = `num_cards` cards, N/4 of each suit. `reset` shows card c[0]. Step t = 1, 2, ... first
    scores the action, then shows the next observation:

    ========== ======================= =========== ============= ==================================
    step t     correct action          reward      card shown    watch flag
    ========== ======================= =========== ============= ==================================
    1 .. N-1   any                     0           c[t]          1 (watch), but 0 with the last card
    N .. 2N-1  c[2N - 1 - t]           +-1/N       none (0)      0 (play)
    ========== ======================= =========== ============= ==================================

    c[i] is thus named 2(N - 1 - i) steps after it is shown: the last card at once, the first after 2N - 2
    steps. Observations during the playback do not contain its position.

    Observation, `MultiDiscrete([2, 4])`, int64 `[2]`:

    ===== ===== ======= ==========================================================
    index name  values  meaning
    ===== ===== ======= ==========================================================
    0     watch 0, 1    1: more cards follow, action ignored; 0: action scored
    1     suit  0 .. 3  0 clubs, 1 diamonds, 2 hearts, 3 spades; 0 without a card
    ===== ===== ======= ==========================================================

    Action, `Discrete(4)`: a suit, numbered as in the observation.

    Reward: 1/N for the right suit, -1/N for a wrong one, 0 during the watch. An episode has N questions, so
    returns lie in [-1, 1].

    End: `terminated` after 2N - 1 steps, when the first card has been named (never `truncated`). The last
    step's `info["success"]` is the fraction of right answers, in [0, 1].

    Best: a policy with memory reaches return 1 and success 1. The best policy without memory names the
    observed suit, and clubs if no card is shown. Its success is s = 1/4 + 3/(4N) and its return 2s - 1: for
    52 cards 0.2644 and -0.4712. A step counter does not improve these results. Random actions reach success
    0.25 and return -0.5.

    Units: time in steps. `num_cards` is a multiple of 4 up to 10,000; POPGym's easy, medium and hard are 52,
    104 and 156.

    Paper: Morad et al. 2023, POPGym, arXiv 2303.01859. Deviations: packs need not be whole decks; the
    observation is one MultiDiscrete, not a tuple of two Discretes.
    """

    def __init__(self, num_cards: int = _NUM_CARDS, render_mode: str | None = None) -> None:
        super().__init__(AutoencodeVector(1, num_cards, render_mode, AutoresetMode.DISABLED))


class AutoencodeVector(BatchedEnv):
    """Vector environment of `Autoencode`; observations are int64 `[num_envs, 2]`."""

    row_arrays = ("deck", "answers", "time")

    def __init__(
        self,
        num_envs: int = 1,
        num_cards: int = _NUM_CARDS,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        if not is_integer(num_cards) or not 4 <= num_cards <= _MOST_CARDS or num_cards % 4:
            raise ValueError(f"num_cards={num_cards!r}: expected a multiple of 4, from 4 to {_MOST_CARDS}")
        self.num_cards = int(num_cards)
        super().__init__(
            num_envs,
            MultiDiscrete([2, 4]),
            Discrete(4),
            {"num_cards": self.num_cards},
            render_mode,
            autoreset_mode,
        )
        self.last_step = 2 * self.num_cards - 1
        self.success_without_memory = 1 / 4 + 3 / (4 * self.num_cards)
        self.deck = np.zeros((self.num_envs, self.num_cards), dtype=np.int8)
        self.answers = np.full((self.num_envs, self.num_cards), -1, dtype=np.int8)
        self.time = np.zeros(self.num_envs, dtype=np.int64)

    def _reset_rows(self, rows: Rows) -> None:
        self.deck[rows] = self.streams.permutations(rows, self.num_cards) % 4
        self.answers[rows] = -1
        self.time[rows] = 0

    def _step_rows(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Next-step autoreset steps an ended episode once more; its time stays at the last step.
        self.time = np.minimum(self.time + 1, self.last_step)
        is_scored = self.time >= self.num_cards
        card = np.minimum(self.last_step - self.time, self.num_cards - 1)
        self.answers[self._row, card] = np.where(is_scored, actions, -1)
        right = is_scored & (self.deck[self._row, card] == actions)
        rewards = (2.0 * right - is_scored) / self.num_cards
        return rewards, self.time == self.last_step, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self, rows: Rows | slice) -> np.ndarray:
        time = self.time[rows]
        suit = self.deck[self._row[rows], np.minimum(time, self.num_cards - 1)]
        return np.stack(
            [time < self.num_cards - 1, np.where(time < self.num_cards, suit, 0)], 1, dtype=np.int64
        )

    def _final_info(self) -> dict[str, np.ndarray]:
        return {"success": (self.answers == self.deck).mean(axis=1)}

    def _caption(self, row: int) -> str:
        time = int(self.time[row])
        clock = f"step {time} of {self.last_step}"
        if time < self.num_cards - 1:
            return f"{clock}   watch: card {time + 1} of {self.num_cards}"
        right = int((self.answers[row] == self.deck[row]).sum())
        return f"{clock}   play back in reverse: right {right} of {time + 1 - self.num_cards}"

    def _render_frame(self, row: int) -> np.ndarray:
        time = int(self.time[row])
        lines = -(-self.num_cards // _TILES_A_LINE)
        # A fixed width leaves room for the caption, also with few cards.
        size = 32 + _TILES_A_LINE * (_TILE_WIDTH + 6), 56 + lines * (_TILE_HEIGHT + 10)
        image, draw, _ = make_frame(*size, self._caption(row), (16, 12))
        in_view = time if time < self.num_cards else -1
        asked_next = self.last_step - time - 1 if time >= self.num_cards - 1 else -1
        for card in range(self.num_cards):
            line, place = divmod(card, _TILES_A_LINE)
            left, top = 19 + place * (_TILE_WIDTH + 6), 50 + line * (_TILE_HEIGHT + 10)
            box = (left, top, left + _TILE_WIDTH, top + _TILE_HEIGHT)
            answer, suit = int(self.answers[row, card]), int(self.deck[row, card])
            around = (left - 3, top - 3, left + _TILE_WIDTH + 3, top + _TILE_HEIGHT + 3)
            if answer >= 0:
                draw.rounded_rectangle(around, radius=6, fill=GOOD if answer == suit else BAD)
            elif card == asked_next:
                draw.rounded_rectangle(around, radius=6, fill=HIGHLIGHT)
            elif card == in_view:
                draw.rounded_rectangle(around, radius=6, fill=INK)
            face_up = card <= time
            draw.rounded_rectangle(box, radius=5, fill=CARD if face_up else _BACK, outline=PALE)
            if face_up:
                draw_suit(draw, left + _TILE_WIDTH // 2, top + _TILE_HEIGHT // 2, suit)
        return np.asarray(image)

    def _render_text(self, row: int) -> str:
        num_shown = int(self.time[row]) + 1
        cards = "".join(SUITS[suit] for suit in self.deck[row, :num_shown])
        answers = "".join(SUITS[answer] if answer >= 0 else "." for answer in self.answers[row])
        return f"{self._caption(row)}\ncards   {cards:.<{self.num_cards}}\nanswers {answers}"
