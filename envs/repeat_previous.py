"""RepeatPrevious: watch cards and name the suit of the k-th last card in every step."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode

from scrubjay.envs.batched_env import BatchedEnv, Rows, SingleEnv, check_integer
from scrubjay.envs.drawing import BAD, CARD, GOOD, HIGHLIGHT, INK, PALE, SUITS, draw_suit, make_frame

_K = 4
_NUM_DECKS = 1
_MOST_DECKS = 1_000
_CARDS_PER_DECK = 52

_CARD_WIDTH, _CARD_HEIGHT, _CARDS_SHOWN = 56, 78, 8


class RepeatPrevious(SingleEnv):
    """Memory task: each step shows a card; name the suit of the k-th last card, counting the current one.

    The shuffled pack holds N = 52 x `num_decks` cards, 13 x `num_decks` of each suit. `reset` shows card
    c[0]. Step t = 1, 2, ... first scores the action, then shows c[t]:

    ==== =============== =========================== =============== ==================
    step cards shown     correct action              example, k = 4  reward
    ==== =============== =========================== =============== ==================
    t    c[0] .. c[t-1]  c[t-k] (any if t < k)       t = 4: c[0]     +-1/(N - k), or 0
    ==== =============== =========================== =============== ==================

    The queried card is thus followed by k - 1 others when the action is chosen, and the reward of step t
    depends on the card of step t - k. k = 1 queries the current card and needs no memory.

    Observation, `Discrete(4)`: the suit of the current card, 0 clubs, 1 diamonds, 2 hearts, 3 spades.

    Action, `Discrete(4)`: a suit, numbered as in the observation. The first k - 1 actions are ignored.

    Reward: 1/(N - k) for the right suit, -1/(N - k) for a wrong one, 0 in the first k - 1 steps. An
    episode has N - k questions, so returns lie in [-1, 1].

    End: `terminated` after N - 1 steps, when the last card is shown (never `truncated`; the end of the pack
    belongs to the task). The last step's `info["success"]` is the fraction of right answers, in [0, 1].

    Best: a policy with memory reaches return 1 and success 1. The best policy without memory (k > 1) names
    any suit but the current one. Its success is s = 13 x `num_decks` / (N - 1) and its return 2s - 1: for one
    deck 0.2549 and -0.4902. Random actions: success 0.25, return -0.5.

    Units: time and k in steps. k from 1 to N - 1; `num_decks` from 1 to 1,000. POPGym's easy, medium and
    hard are k = 4, 32, 64 with 1, 2, 3 decks.

    Paper: Morad et al. 2023, POPGym, arXiv 2303.01859.
    """

    _batch: RepeatPreviousVector

    def __init__(self, k: int = _K, num_decks: int = _NUM_DECKS, render_mode: str | None = None) -> None:
        super().__init__(RepeatPreviousVector(1, k, num_decks, render_mode, AutoresetMode.DISABLED))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step once with the same result as the vector environment, but faster for a single environment."""
        batch = self._batch
        dones = batch._dones
        # The vector environment handles errors and other action types.
        if type(action) not in (int, np.int64) or not 0 <= action < 4 or dones is None or dones.item(0):
            return super().step(action)
        time = batch.time.item(0) + 1
        batch.time[0], batch.answer[0] = time, action
        reward = 0.0
        if time >= batch.k:
            right = batch.deck.item(time - batch.k) == action
            reward = (1.0 if right else -1.0) / batch.questions
            if right:
                batch.right[0] += 1
        done = time == batch.num_cards - 1
        if done:
            dones[0] = True
        info = {"success": batch.right.item(0) / batch.questions} if done else {}
        return np.int64(batch.deck.item(time)), reward, done, False, info


class RepeatPreviousVector(BatchedEnv):
    """Vector environment of `RepeatPrevious`; observations are int64 `[num_envs]`."""

    row_arrays = ("deck", "time", "answer", "right")

    def __init__(
        self,
        num_envs: int = 1,
        k: int = _K,
        num_decks: int = _NUM_DECKS,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        num_decks = check_integer("num_decks", num_decks, 1, _MOST_DECKS)
        self.num_cards = _CARDS_PER_DECK * num_decks
        last = self.num_cards - 1
        self.k = check_integer("k", k, 1, last, f"from 1 to {last} (number of cards minus one)")
        super().__init__(
            num_envs,
            Discrete(4),
            Discrete(4),
            {"k": self.k, "num_decks": num_decks},
            render_mode,
            autoreset_mode,
        )
        self.questions = self.num_cards - self.k
        if self.k > 1:  # name any suit but the current one
            self.success_without_memory = self.num_cards / 4 / (self.num_cards - 1)
        self.deck = np.zeros((self.num_envs, self.num_cards), dtype=np.int8)
        self.answer = np.full(self.num_envs, -1, dtype=np.int64)
        self.time, self.right = np.zeros((2, self.num_envs), dtype=np.int64)

    def _reset_rows(self, rows: Rows) -> None:
        self.deck[rows] = self.streams.permutations(rows, self.num_cards) % 4
        self.time[rows] = 0
        self.answer[rows] = -1
        self.right[rows] = 0

    def _step_rows(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Next-step autoreset steps an ended episode once more; its time stays at the last card.
        self.time = np.minimum(self.time + 1, self.num_cards - 1)
        self.answer = actions.astype(np.int64)
        is_scored = self.time >= self.k
        right = is_scored & (self.deck[self._row, np.maximum(self.time - self.k, 0)] == actions)
        self.right += right
        rewards = (2.0 * right - is_scored) / self.questions
        return rewards, self.time == self.num_cards - 1, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self, rows: Rows | slice) -> np.ndarray:
        return self.deck[self._row[rows], self.time[rows]].astype(np.int64)

    def _final_info(self) -> dict[str, np.ndarray]:
        return {"success": self.right / self.questions}

    def _verdict(self, row: int) -> tuple[str, tuple[int, int, int]]:
        time, answer = int(self.time[row]), int(self.answer[row])
        if time < self.k:
            return f"nothing asked before step {self.k}", PALE
        target = int(self.deck[row, time - self.k])
        verdict = "right" if answer == target else "wrong"
        return f"asked card {time - self.k}: {verdict}", GOOD if answer == target else BAD

    def _caption(self, row: int) -> str:
        time = int(self.time[row])
        num_scored = max(time - self.k + 1, 0)
        return f"step {time} of {self.num_cards - 1}   k = {self.k}   right {self.right[row]} of {num_scored}"

    def _render_frame(self, row: int) -> np.ndarray:
        time = int(self.time[row])
        image, draw, font = make_frame(640, 220, self._caption(row))
        target_card = time - self.k
        # The card of the last question, then the newest cards; with a gap between them if k is large.
        newest = list(range(max(time - _CARDS_SHOWN + 1, 0), time + 1))
        visible_cards = newest if target_card < 0 or target_card in newest else [target_card, *newest[1:]]
        for place, card in enumerate(visible_cards):
            gap = 40 if place and target_card >= 0 and target_card not in newest else 0
            left, top = 16 + gap + place * (_CARD_WIDTH + 12), 48
            if gap and place == 1:
                draw.text((left - 36, top + _CARD_HEIGHT // 2 - 12), "...", fill=PALE, font=font)
            if card == target_card:
                draw.rectangle(
                    (left - 5, top - 5, left + _CARD_WIDTH + 5, top + _CARD_HEIGHT + 5), fill=HIGHLIGHT
                )
            _draw_card(draw, left, top, int(self.deck[row, card]))
            draw.text(
                (left + 18, top + _CARD_HEIGHT + 6),
                str(card),
                fill=INK if card == time else PALE,
                font=font,
            )
        text, colour = self._verdict(row)
        draw.text((16, 180), text, fill=colour, font=font)
        if self.answer[row] >= 0:
            draw.text((330, 180), "last answer", fill=INK, font=font)
            draw_suit(draw, 440, 190, int(self.answer[row]))
        return np.asarray(image)

    def _render_text(self, row: int) -> str:
        time = int(self.time[row])
        cards = "".join(SUITS[suit] for suit in self.deck[row, : time + 1])
        answer = SUITS[int(self.answer[row])] if self.answer[row] >= 0 else "none"
        return f"{self._caption(row)}\nseen {cards}\nlast answer {answer}; {self._verdict(row)[0]}"


def _draw_card(draw: Any, left: int, top: int, suit: int) -> None:
    box = (left, top, left + _CARD_WIDTH, top + _CARD_HEIGHT)
    draw.rounded_rectangle(box, radius=6, fill=CARD, outline=PALE, width=2)
    draw_suit(draw, left + _CARD_WIDTH // 2, top + _CARD_HEIGHT // 2, suit)
