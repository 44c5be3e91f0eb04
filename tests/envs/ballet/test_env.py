"""Ballet against recordings of DeepMind's original, and against its rules written sprite by sprite."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scrubjay.envs.ballet import world
from scrubjay.envs.ballet.env import COLOUR_AT, MOVE_AT, SHAPE_AT, SLOT_SIZE, SLOTS, Ballet, BalletVector

from .looks import digest

STEPS = {0: (-1, 0), 1: (-1, 1), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (1, -1), 6: (0, -1), 7: (-1, -1)}


class SlowBallet:
    """The original's rules: lists are shuffled, sprites are updated one by one, a countdown starts dances."""

    def __init__(self, num_dancers, delay, max_steps, rng):
        self.n, self.delay, self.max_steps, self.rng = num_dancers, delay, max_steps, rng

    def reset(self):
        target = self.rng.integers(self.n)
        lists = [
            [(2, 2), (2, 5), (2, 8), (5, 2), (5, 8), (8, 2), (8, 5), (8, 8)],
            list(world.DANCE_NAMES),
            list(world.COLOUR_NAMES),
            list(world.SHAPE_NAMES),
        ]
        for items in lists:
            self.rng.shuffle(items)
        self.dancers = [
            {
                "at": at,
                "dance": dance,
                "moves": world.DANCE_MOVES[world.DANCE_NAMES.index(dance)].tolist(),
                "colour": colour,
                "shape": shape,
                "pays": float(index == target),
                "dances": False,
            }
            for index, (at, dance, colour, shape) in enumerate(zip(*lists, strict=False))
            if index < self.n
        ]
        self.waiting = list(self.dancers)
        self.agent, self.countdown, self.frame, self.told = (5, 5), 1, 0, "watch"
        self.update(None)
        return self.observe()

    def step(self, action):
        self.frame += 1
        reward, over = self.update(action)
        return self.observe(), reward, over, self.frame >= self.max_steps and not over

    def update(self, action):
        choosing, reward, over = self.told != "watch", 0.0, False
        if choosing:
            self.agent = self.moved(self.agent, action)
        elif self.countdown > 0:
            self.countdown -= 1
            if self.countdown == 0 and self.waiting:
                self.waiting.pop(0)["dances"] = True
            elif self.countdown == 0:
                self.told = next(dancer["dance"] for dancer in self.dancers if dancer["pays"])
        for dancer in self.dancers:
            if dancer["dances"]:
                dancer["at"] = self.moved(dancer["at"], dancer["moves"].pop(0))
                if not dancer["moves"]:
                    dancer["dances"], self.countdown = False, self.delay
            elif dancer["at"] == self.agent:
                reward, over = dancer["pays"], True
        return reward, over

    @staticmethod
    def moved(at, move):
        row, column = at[0] + STEPS[move][0], at[1] + STEPS[move][1]
        return (row, column) if 0 < row < 10 and 0 < column < 10 else at

    def observe(self):
        image = np.zeros((99, 99, 3), dtype=np.float32)
        looks = {self.agent: np.full((9, 9, 3), 255)}
        for dancer in self.dancers:
            bits = [f"{int(row, 16):09b}" for row in world._SHAPES[dancer["shape"]].split()]
            mask = np.array([[int(bit) for bit in row] for row in bits])
            looks[dancer["at"]] = mask[:, :, None] * np.array(world.COLOURS[dancer["colour"]])
        for i in range(11):
            for j in range(11):
                row, column = i + self.agent[0] - 5, j + self.agent[1] - 5
                cell = looks.get((row, column))
                if cell is None and 0 <= row < 11 and 0 <= column < 11 and {row, column} & {0, 10}:
                    cell = np.full((9, 9, 3), 40)
                if cell is not None:
                    image[i * 9 : i * 9 + 9, j * 9 : j * 9 + 9] = cell
        image /= 255.0
        return image, self.told


@pytest.mark.parametrize(
    ("num_dancers", "first", "target", "at_reset", "steps", "reward", "all_frames"),
    [
        (
            2,
            "up_and_down plus orange",
            "zee vertical_stripes yellow",
            "fa011c2a8142",
            81,
            1.0,
            "6c9182837a77",
        ),
        (4, "up_and_down plus orange", "plus_cw tee light_green", "97fc18cb3c35", 131, 0.0, "32e7d2140389"),
    ],
)
def test_recordings_of_the_original_pixel_by_pixel(
    num_dancers, first, target, at_reset, steps, reward, all_frames
):
    env = Ballet(num_dancers, 16)
    images = [env.reset(seed=0)[0]["image"]]
    batch: Any = env._batch

    def looks(dancer):
        names = (world.DANCE_NAMES, batch.dance), (world.SHAPE_NAMES, batch.shape)
        names = (*names, (world.COLOUR_NAMES, batch.colour))
        return " ".join(table[values[0, dancer]] for table, values in names)

    assert looks(0) == first
    assert looks(batch.target[0]) == target
    assert digest(images) == at_reset
    actions = np.random.default_rng(1000)
    ended, paid = False, 0.0
    while not ended:
        observation, paid, terminated, truncated, _ = env.step(int(actions.integers(8)))
        images.append(observation["image"])
        ended = terminated or truncated
    assert (len(images) - 1, paid, digest(images)) == (steps, reward, all_frames)


@settings(max_examples=15, deadline=None)
@given(
    num_dancers=st.integers(1, 8),
    delay=st.integers(1, 20),
    cut=st.integers(3, 60),
    seed=st.integers(0, 2**40),
)
def test_equals_the_rules_written_sprite_by_sprite(num_dancers, delay, cut, seed):
    max_steps = num_dancers * (15 + delay) + cut
    env = Ballet(num_dancers, delay, max_steps=max_steps)
    slow = SlowBallet(num_dancers, delay, max_steps, np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    observation, info = env.reset(seed=seed)
    for _ in range(2):  # the second episode shows that the draws of the first left the generator alike
        image, told = slow.reset()
        ended = False
        while not ended:
            np.testing.assert_array_equal(observation["image"], image)
            assert info["instruction"] == told == world.INSTRUCTIONS[observation["instruction"]]
            action = int(rng.integers(8))
            observation, reward, terminated, truncated, info = env.step(action)
            (image, told), *theirs = slow.step(action)
            assert [reward, terminated, truncated] == theirs
            ended = terminated or truncated
        np.testing.assert_array_equal(observation["image"], image)
        assert (info["success"], info["reached"]) == (reward, terminated)
        observation, info = env.reset()


def test_bytes_show_the_same_in_the_form_that_libraries_take_as_a_picture():
    floats, of_bytes = Ballet(4, 2), Ballet(4, 2, dtype="uint8")
    space: Any = of_bytes.observation_space
    # By this rule stable-baselines3 knows a picture and which of its axes are the channels.
    assert space["image"] == spaces.Box(0, 255, (99, 99, 3), np.uint8)
    assert np.argmin(space["image"].shape) == 2
    seen, as_bytes = floats.reset(seed=3)[0], of_bytes.reset(seed=3)[0]
    rng, shades, ended = np.random.default_rng(0), set(), False
    while not ended:
        assert as_bytes["image"].dtype == np.uint8
        np.testing.assert_array_equal(as_bytes["image"] / np.float32(255), seen["image"])
        assert as_bytes["instruction"] == seen["instruction"]
        shades |= set(np.unique(as_bytes["image"]).tolist())
        action = int(rng.integers(8))
        (seen, *result), (as_bytes, *others) = floats.step(action), of_bytes.step(action)
        assert result == others
        ended = result[1] or result[2]
    assert {0, 40, 255} <= shades


def test_a_state_without_dtype_is_of_floats():
    floats, of_bytes = BalletVector(2, 1, 2), BalletVector(2, 1, 2, dtype="uint8")
    for env in (floats, of_bytes):
        env.reset(seed=0)
    assert "dtype" not in floats.get_state()["settings"]
    with pytest.raises(ValueError, match="'dtype': 'uint8'"):
        of_bytes.set_state(floats.get_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype='float64': choose from 'float32', 'uint8'"),
        ({"min_dancers": 3}, "min_dancers=3: expected an integer from 1 to num_dancers=2"),
        ({"min_dancers": 0}, "min_dancers=0: expected an integer"),
        ({"walk_steps": 2}, "walk_steps=2, max_steps=None: .* at least 3 steps to walk"),
        ({"walk_steps": 9, "max_steps": 400}, "walk_steps=9, max_steps=400: expected one of them alone"),
        ({"dtype": "uint8", "observation": "symbolic"}, "observation='symbolic' has none"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ballet(**options)


@settings(max_examples=15, deadline=None)
@given(num_dancers=st.integers(1, 8), delay=st.integers(1, 20), seed=st.integers(0, 2**40))
def test_symbols_say_what_the_image_shows(num_dancers, delay, seed):
    pixels, symbols = Ballet(num_dancers, delay), Ballet(num_dancers, delay, "symbolic")
    rng = np.random.default_rng(seed)
    seen, told = pixels.reset(seed=seed)[0], symbols.reset(seed=seed)[0]
    taken = None
    ended = False
    while not ended:
        slots, instruction = told[:-14].reshape(SLOTS, SLOT_SIZE), told[-14:]
        assert np.flatnonzero(instruction).tolist() == [seen["instruction"]]
        occupied = np.flatnonzero(slots.any(axis=1))
        assert len(occupied) == num_dancers
        assert taken is None or taken == occupied.tolist()
        taken = occupied.tolist()
        image = np.array(world_without_dancers(seen["image"]))
        for slot in slots[occupied]:
            row, column = (slot[:2] * 8).astype(int) + 5
            (shape,), (colour,) = (
                np.flatnonzero(slot[part])
                for part in (slice(SHAPE_AT, COLOUR_AT), slice(COLOUR_AT, SLOT_SIZE))
            )
            if 0 <= row < 11 and 0 <= column < 11:
                image[row * 9 : row * 9 + 9, column * 9 : column * 9 + 9] = world.tile(
                    int(shape), int(colour)
                )
        np.testing.assert_array_equal(image, seen["image"])
        action = int(rng.integers(8))
        seen, _, terminated, truncated, _ = pixels.step(action)
        told = symbols.step(action)[0]
        ended = terminated or truncated


def world_without_dancers(image):
    """The image with every cell black that is neither all wall nor all agent."""
    cells = image.reshape(11, 9, 11, 9, 3).copy()
    low, high = (extreme(axis=(1, 3, 4), keepdims=True) for extreme in (cells.min, cells.max))
    plain = (low == high) & ((low == np.float32(40 / 255)) | (low == 1.0))
    cells *= plain
    return cells.reshape(99, 99, 3)


@settings(max_examples=10, deadline=None)
@given(
    num_dancers=st.integers(1, 8),
    fewer=st.integers(0, 7),
    delay=st.integers(1, 20),
    seed=st.integers(0, 2**40),
)
def test_a_set_says_what_the_symbols_say_and_the_move_before(num_dancers, fewer, delay, seed):
    flat, of_dancers = (
        BalletVector(3, num_dancers, delay, kind, min_dancers=max(1, num_dancers - fewer))
        for kind in ("symbolic", "set")
    )
    rng = np.random.default_rng(seed)
    told, seen = flat.reset(seed=seed)[0], of_dancers.reset(seed=seed)[0]
    before = None
    for _ in range(flat.choice_step + 20):
        slots, instruction = told[:, :-14].reshape(3, SLOTS, SLOT_SIZE), told[:, -14:]
        present = slots.any(axis=2)
        np.testing.assert_array_equal(seen["dancers_mask"], present)
        np.testing.assert_array_equal(seen["instruction"], instruction.argmax(axis=1))
        place, moved, last, shape, colour = np.split(seen["dancers"], [2, 3, 4, 5], axis=2)
        np.testing.assert_array_equal(place, np.where(present[..., None], slots[..., :2] * 8 + 8, 0))
        for part, one_hot in (
            (moved, slots[..., MOVE_AT:SHAPE_AT]),
            (shape, slots[..., SHAPE_AT:COLOUR_AT]),
            (colour, slots[..., COLOUR_AT:]),
        ):
            np.testing.assert_array_equal(part[..., 0], one_hot.argmax(axis=2))
        expected = np.where(present, world.NO_MOVE, 0)[..., None] if before is None else before
        np.testing.assert_array_equal(last, expected)
        before = moved
        action = rng.integers(8, size=3)
        told, _, met, *_ = flat.step(action)
        seen = of_dancers.step(action)[0]
        if met.any():
            break


def test_every_episode_may_have_a_number_of_dancers_of_its_own():
    env = BalletVector(600, 4, 1, "set", min_dancers=2, walk_steps=5, autoreset_mode="SameStep")
    seen, _ = env.reset(seed=0)
    count = seen["dancers_mask"].sum(axis=1)
    assert stats.chisquare(np.bincount(count, minlength=5)[2:]).pvalue > 1e-4
    assert env.success_without_memory == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    told, ended = np.zeros(600), np.zeros(600)
    for step in range(1, 70):
        going = ended == 0
        seen, _, terminated, truncated, _ = env.step(np.zeros(600, dtype=np.int64))
        told[(seen["instruction"] > 0) & (told == 0) & going] = step
        ended[truncated & going] = step
        ended[terminated & going] = -1
    np.testing.assert_array_equal(told, count * 16)
    assert set(ended[ended > 0] - told[ended > 0]) == {5}
    assert (ended < 0).any(), "north of the middle somebody stands at times"


def test_a_smaller_ballet_looks_as_if_it_were_made_for_so_many():
    for dtype in ("float32", "uint8"):
        mixed = BalletVector(40, 5, 2, dtype=dtype, min_dancers=1, render_mode="ansi")
        mixed.reset(seed=3)
        for row in range(40):
            count = mixed.count[row]
            alone = BalletVector(1, int(count), 2, dtype=dtype, render_mode="ansi")
            alone.reset(seed=0)
            for name in ("place", "dance", "colour", "shape", "slot"):
                getattr(alone, name)[0] = getattr(mixed, name)[row, :count]
            alone.target[0] = mixed.target[row]
            ours, theirs = (env._observe(slice(None)) for env in (mixed, alone))
            assert isinstance(ours, dict)
            assert isinstance(theirs, dict)
            np.testing.assert_array_equal(ours["image"][row], theirs["image"][0])
            assert mixed._text(row).split("\n")[1:] == alone._text(0).split("\n")[1:]


def test_last_moves_are_the_dances():
    env = BalletVector(32, 3, 5, "symbolic")
    observations = [env.reset(seed=3)[0]]
    for _ in range(env.choice_step):
        observations.append(env.step(np.zeros(32, dtype=np.int64))[0])
    moves = np.stack(observations)[:, :, : SLOTS * SLOT_SIZE].reshape(-1, 32, SLOTS, SLOT_SIZE)
    moves = moves[..., MOVE_AT:SHAPE_AT]
    for row in range(32):
        for dancer in range(3):
            own = moves[:, row, env.slot[row, dancer]]
            assert (own.sum(axis=1) == 1).all()
            begin = dancer * 20
            dance = world.DANCE_MOVES[env.dance[row, dancer]]
            np.testing.assert_array_equal(own[begin : begin + 16].argmax(axis=1), dance)
            assert (np.delete(own, slice(begin, begin + 16), axis=0)[:, world.NO_MOVE] == 1).all()


def test_slots_are_a_random_order_that_tells_nothing():
    rows, count = 4000, 4
    env = BalletVector(rows, count, 16, "symbolic")
    env.reset(seed=0)
    assert all(len(set(slots)) == count for slots in env.slot.tolist())
    every_row = np.arange(rows)
    of_the_target = {
        name: values[every_row, env.target]
        for name, values in (("dance", env.dance), ("colour", env.colour), ("shape", env.shape))
    }
    order = np.broadcast_to(np.arange(count), (rows, count)).ravel()
    pairs = [
        (env.slot[every_row, env.target], np.zeros(rows, dtype=np.int64)),
        (env.slot.argsort(axis=1).argsort(axis=1)[every_row, env.target], env.target),
        *((env.slot[every_row, env.target], told) for told in of_the_target.values()),
        (env.slot.ravel(), order),
        *((env.slot.ravel(), each.ravel()) for each in (env.dance, env.colour, env.shape)),
        (env.slot.ravel(), (env.place[..., 0] * 11 + env.place[..., 1]).ravel()),
    ]
    for slot, tells in pairs:
        assert independence(slot, tells) > 1e-4


def independence(left, right):
    """p-value of the hypothesis that `left` is uniform over its values whatever `right` is."""
    values = np.unique(right, return_inverse=True)[1]
    table = np.zeros((left.max() + 1, values.max() + 1))
    np.add.at(table, (left, values), 1)
    expected = np.broadcast_to(table.sum(axis=0) / len(table), table.shape)
    return stats.chi2.sf(((table - expected) ** 2 / expected).sum(), (len(table) - 1) * table.shape[1])


@pytest.mark.parametrize(("delay", "max_steps"), [(16, 320), (48, 1024), (2, 1024)])
def test_step_limits_are_those_of_the_original(delay, max_steps):
    assert BalletVector(1, 8, delay).max_steps == max_steps


def test_longer_delays_than_the_original_allows_leave_room_to_choose():
    env = BalletVector(1, 8, 200)
    assert env.max_steps == env.choice_step + 72 == 1792


def test_a_time_limit_truncates():
    env = Ballet(2, 16, "symbolic")
    env.reset(seed=0)
    # North and south by turns: never meets a dancer.
    steps, reward, terminated, truncated = 0, 0.0, False, False
    while not terminated and not truncated:
        _, reward, terminated, truncated, info = env.step(4 * (steps % 2))
        steps += 1
    assert (steps, reward, terminated, truncated, info["success"]) == (320, 0.0, False, True, 0.0)


@pytest.mark.parametrize(("num_dancers", "expected"), [(2, (0.42, 137)), (4, (0.24, 157)), (8, (0.153, 262))])
def test_a_random_policy_does_as_in_the_original(num_dancers, expected):
    env = BalletVector(400, num_dancers, 16, "symbolic")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    success, lengths = np.full(400, np.nan), np.zeros(400)
    for step in range(1, 321):
        _, rewards, terminated, truncated, _ = env.step(rng.integers(0, 8, 400))
        first = (terminated | truncated) & np.isnan(success)
        success[first], lengths[first] = rewards[first], step
    # The original's numbers are means of 150 episodes, ours of 400: both err.
    share, length = expected
    assert abs(success.mean() - share) < 4 * np.sqrt(share * (1 - share) * (1 / 150 + 1 / 400))
    assert abs(lengths.mean() - length) < 4 * lengths.std() * np.sqrt(1 / 150 + 1 / 400)


def test_with_memory_success_is_one():
    env = BalletVector(200, 8, 16, "symbolic")
    env.reset(seed=1)
    for _ in range(env.choice_step):
        env.step(np.zeros(200, dtype=np.int64))
    found = np.zeros(200, dtype=np.bool_)
    moves = {step: move for move, step in STEPS.items()}
    goals = env.place[np.arange(200), env.target].copy()
    at = np.full((200, 2), 5)
    for _ in range(3):
        way = np.sign(goals - at)
        _, rewards, *_ = env.step(np.array([moves.get(tuple(step), 0) for step in way.tolist()]))
        at += way
        found |= rewards == 1.0
    assert found.all()


def test_instructions_are_told_in_words():
    env = gymnasium.make("scrubjay.envs:scrubjay/Ballet-v0", num_dancers=1, delay=1)
    _, info = env.reset(seed=0)
    words = [info["instruction"]] + [env.step(0)[4]["instruction"] for _ in range(16)]
    assert words[:-1] == ["watch"] * 16
    assert words[-1] in world.DANCE_NAMES


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_dancers": 0}, "num_dancers=0: expected an integer from 1 to 8"),
        ({"num_dancers": 9}, "num_dancers=9"),
        ({"delay": 0}, "delay=0: expected an integer of at least 1"),
        ({"delay": 1.5}, "delay=1.5"),
        ({"observation": "pixels"}, "observation='pixels': choose from 'rgb', 'symbolic', 'set'"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"max_steps": 64}, "max_steps=64: expected None or an integer of at least 65"),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        Ballet(**setting)
