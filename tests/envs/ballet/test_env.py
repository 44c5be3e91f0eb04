"""Ballet against recordings of DeepMind's original and a plain-Python reference."""

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
from scrubjay.envs.ballet.env import (
    COLOUR_OFFSET,
    MOVE_OFFSET,
    SHAPE_OFFSET,
    SLOT_SIZE,
    SLOTS,
    Ballet,
    BalletVector,
)

from .looks import digest

STEPS = {0: (-1, 0), 1: (-1, 1), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (1, -1), 6: (0, -1), 7: (-1, -1)}


class SlowBallet:
    """Reference implementation of the original: shuffled lists, one update per sprite, a countdown."""

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
        self.agent, self.countdown, self.frame, self.instruction = (5, 5), 1, 0, "watch"
        self.update(None)
        return self.observe()

    def step(self, action):
        self.frame += 1
        reward, over = self.update(action)
        return self.observe(), reward, over, self.frame >= self.max_steps and not over

    def update(self, action):
        choosing, reward, over = self.instruction != "watch", 0.0, False
        if choosing:
            self.agent = self.next_place(self.agent, action)
        elif self.countdown > 0:
            self.countdown -= 1
            if self.countdown == 0 and self.waiting:
                self.waiting.pop(0)["dances"] = True
            elif self.countdown == 0:
                self.instruction = next(dancer["dance"] for dancer in self.dancers if dancer["pays"])
        for dancer in self.dancers:
            if dancer["dances"]:
                dancer["at"] = self.next_place(dancer["at"], dancer["moves"].pop(0))
                if not dancer["moves"]:
                    dancer["dances"], self.countdown = False, self.delay
            elif dancer["at"] == self.agent:
                reward, over = dancer["pays"], True
        return reward, over

    @staticmethod
    def next_place(at, move):
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
        return image, self.instruction


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
    done, last_reward = False, 0.0
    while not done:
        observation, last_reward, terminated, truncated, _ = env.step(int(actions.integers(8)))
        images.append(observation["image"])
        done = terminated or truncated
    assert (len(images) - 1, last_reward, digest(images)) == (steps, reward, all_frames)


@pytest.mark.slow
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
    for _ in range(2):  # the second episode checks the generators after the first
        image, instruction = slow.reset()
        done = False
        while not done:
            np.testing.assert_array_equal(observation["image"], image)
            assert info["instruction"] == instruction == world.INSTRUCTIONS[observation["instruction"]]
            action = int(rng.integers(8))
            observation, reward, terminated, truncated, info = env.step(action)
            (image, instruction), *theirs = slow.step(action)
            assert [reward, terminated, truncated] == theirs
            done = terminated or truncated
        np.testing.assert_array_equal(observation["image"], image)
        assert (info["success"], info["reached"]) == (reward, terminated)
        observation, info = env.reset()


def test_uint8_images_equal_float_images_and_pass_as_images():
    floats, byte_env = Ballet(4, 2), Ballet(4, 2, dtype="uint8")
    space: Any = byte_env.observation_space
    # stable-baselines3 recognizes images and their channel axis by this rule.
    assert space["image"] == spaces.Box(0, 255, (99, 99, 3), np.uint8)
    assert np.argmin(space["image"].shape) == 2
    obs, as_bytes = floats.reset(seed=3)[0], byte_env.reset(seed=3)[0]
    rng, shades, done = np.random.default_rng(0), set(), False
    while not done:
        assert as_bytes["image"].dtype == np.uint8
        np.testing.assert_array_equal(as_bytes["image"] / np.float32(255), obs["image"])
        assert as_bytes["instruction"] == obs["instruction"]
        shades |= set(np.unique(as_bytes["image"]).tolist())
        action = int(rng.integers(8))
        (obs, *result), (as_bytes, *others) = floats.step(action), byte_env.step(action)
        assert result == others
        done = result[1] or result[2]
    assert {0, 40, 255} <= shades


def test_a_state_has_the_dtype_of_its_images():
    floats, byte_env = BalletVector(2, 1, 2), BalletVector(2, 1, 2, dtype="uint8")
    for env in (floats, byte_env):
        env.reset(seed=0)
    assert floats.get_state()["settings"]["dtype"] == "float32"
    with pytest.raises(ValueError, match="'dtype': 'uint8'"):
        byte_env.set_state(floats.get_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype='float64': choose from 'float32', 'uint8'"),
        ({"min_dancers": 3}, "min_dancers=3: expected an integer from 1 to num_dancers=2"),
        ({"min_dancers": 0}, "min_dancers=0: expected an integer"),
        ({"walk_steps": 2}, "walk_steps=2, max_steps=None: .* walk_steps must be an integer of at least 3"),
        ({"walk_steps": 9, "max_steps": 400}, "walk_steps=9, max_steps=400: pass only one of them"),
        ({"dtype": "uint8", "observation": "symbolic"}, "observation='symbolic' has none"),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ballet(**options)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(num_dancers=st.integers(1, 8), delay=st.integers(1, 20), seed=st.integers(0, 2**40))
def test_symbols_say_what_the_image_shows(num_dancers, delay, seed):
    pixels, symbols = Ballet(num_dancers, delay), Ballet(num_dancers, delay, "symbolic")
    rng = np.random.default_rng(seed)
    pixel_obs, symbol_obs = pixels.reset(seed=seed)[0], symbols.reset(seed=seed)[0]
    previous_slots = None
    done = False
    while not done:
        slots, instruction = symbol_obs[:-14].reshape(SLOTS, SLOT_SIZE), symbol_obs[-14:]
        assert np.flatnonzero(instruction).tolist() == [pixel_obs["instruction"]]
        used_slots = np.flatnonzero(slots.any(axis=1))
        assert len(used_slots) == num_dancers
        assert previous_slots is None or previous_slots == used_slots.tolist()
        previous_slots = used_slots.tolist()
        image = np.array(world_without_dancers(pixel_obs["image"]))
        for slot in slots[used_slots]:
            row, column = (slot[:2] * 8).astype(int) + 5
            (shape,), (colour,) = (
                np.flatnonzero(slot[part])
                for part in (slice(SHAPE_OFFSET, COLOUR_OFFSET), slice(COLOUR_OFFSET, SLOT_SIZE))
            )
            if 0 <= row < 11 and 0 <= column < 11:
                image[row * 9 : row * 9 + 9, column * 9 : column * 9 + 9] = world.draw_tile(
                    int(shape), int(colour)
                )
        np.testing.assert_array_equal(image, pixel_obs["image"])
        action = int(rng.integers(8))
        pixel_obs, _, terminated, truncated, _ = pixels.step(action)
        symbol_obs = symbols.step(action)[0]
        done = terminated or truncated


def world_without_dancers(image):
    """Return the image with all cells black except wall and agent."""
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
    flat, set_env = (
        BalletVector(3, num_dancers, delay, kind, min_dancers=max(1, num_dancers - fewer))
        for kind in ("symbolic", "set")
    )
    rng = np.random.default_rng(seed)
    flat_obs, set_obs = flat.reset(seed=seed)[0], set_env.reset(seed=seed)[0]
    before = None
    for _ in range(flat.choice_step + 20):
        slots, instruction = flat_obs[:, :-14].reshape(3, SLOTS, SLOT_SIZE), flat_obs[:, -14:]
        present = slots.any(axis=2)
        np.testing.assert_array_equal(set_obs["dancers_mask"], present)
        np.testing.assert_array_equal(set_obs["instruction"], instruction.argmax(axis=1))
        place, move, last, shape, colour = np.split(set_obs["dancers"], [2, 3, 4, 5], axis=2)
        np.testing.assert_array_equal(place, np.where(present[..., None], slots[..., :2] * 8 + 8, 0))
        for part, one_hot in (
            (move, slots[..., MOVE_OFFSET:SHAPE_OFFSET]),
            (shape, slots[..., SHAPE_OFFSET:COLOUR_OFFSET]),
            (colour, slots[..., COLOUR_OFFSET:]),
        ):
            np.testing.assert_array_equal(part[..., 0], one_hot.argmax(axis=2))
        expected = np.where(present, world.NO_MOVE, 0)[..., None] if before is None else before
        np.testing.assert_array_equal(last, expected)
        before = move
        action = rng.integers(8, size=3)
        flat_obs, _, terminated, *_ = flat.step(action)
        set_obs = set_env.step(action)[0]
        if terminated.any():
            break


def test_each_episode_may_draw_its_number_of_dancers():
    env = BalletVector(600, 4, 1, "set", min_dancers=2, walk_steps=5, autoreset_mode="SameStep")
    obs, _ = env.reset(seed=0)
    count = obs["dancers_mask"].sum(axis=1)
    assert stats.chisquare(np.bincount(count, minlength=5)[2:]).pvalue > 1e-4
    assert env.success_without_memory == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    instruction_step, end_step = np.zeros(600), np.zeros(600)
    for step in range(1, 70):
        going = end_step == 0
        obs, _, terminated, truncated, _ = env.step(np.zeros(600, dtype=np.int64))
        instruction_step[(obs["instruction"] > 0) & (instruction_step == 0) & going] = step
        end_step[truncated & going] = step
        end_step[terminated & going] = -1
    np.testing.assert_array_equal(instruction_step, count * 16)
    assert set(end_step[end_step > 0] - instruction_step[end_step > 0]) == {5}
    assert (end_step < 0).any(), "some episodes have a dancer north of the middle"


def test_an_episode_with_fewer_dancers_equals_an_environment_of_that_size():
    for dtype in ("float32", "uint8"):
        mixed_env = BalletVector(40, 5, 2, dtype=dtype, min_dancers=1, render_mode="ansi")
        mixed_env.reset(seed=3)
        for row in range(40):
            count = mixed_env.count[row]
            alone = BalletVector(1, int(count), 2, dtype=dtype, render_mode="ansi")
            alone.reset(seed=0)
            for name in ("place", "dance", "colour", "shape", "slot"):
                getattr(alone, name)[0] = getattr(mixed_env, name)[row, :count]
            alone.target[0] = mixed_env.target[row]
            ours, theirs = (env._observe(slice(None)) for env in (mixed_env, alone))
            assert isinstance(ours, dict)
            assert isinstance(theirs, dict)
            np.testing.assert_array_equal(ours["image"][row], theirs["image"][0])
            assert mixed_env._render_text(row).split("\n")[1:] == alone._render_text(0).split("\n")[1:]


def test_last_moves_are_the_dances():
    env = BalletVector(32, 3, 5, "symbolic")
    observations = [env.reset(seed=3)[0]]
    for _ in range(env.choice_step):
        observations.append(env.step(np.zeros(32, dtype=np.int64))[0])
    moves = np.stack(observations)[:, :, : SLOTS * SLOT_SIZE].reshape(-1, 32, SLOTS, SLOT_SIZE)
    moves = moves[..., MOVE_OFFSET:SHAPE_OFFSET]
    for row in range(32):
        for dancer in range(3):
            own = moves[:, row, env.slot[row, dancer]]
            assert (own.sum(axis=1) == 1).all()
            begin = dancer * 20
            dance = world.DANCE_MOVES[env.dance[row, dancer]]
            np.testing.assert_array_equal(own[begin : begin + 16].argmax(axis=1), dance)
            assert (np.delete(own, slice(begin, begin + 16), axis=0)[:, world.NO_MOVE] == 1).all()


def test_slots_are_random_and_carry_no_information():
    rows, count = 4000, 4
    env = BalletVector(rows, count, 16, "symbolic")
    env.reset(seed=0)
    assert all(len(set(slots)) == count for slots in env.slot.tolist())
    every_row = np.arange(rows)
    target_attributes = {
        name: values[every_row, env.target]
        for name, values in (("dance", env.dance), ("colour", env.colour), ("shape", env.shape))
    }
    order = np.broadcast_to(np.arange(count), (rows, count)).ravel()
    pairs = [
        (env.slot[every_row, env.target], np.zeros(rows, dtype=np.int64)),
        (env.slot.argsort(axis=1).argsort(axis=1)[every_row, env.target], env.target),
        *((env.slot[every_row, env.target], target_values) for target_values in target_attributes.values()),
        (env.slot.ravel(), order),
        *((env.slot.ravel(), each.ravel()) for each in (env.dance, env.colour, env.shape)),
        (env.slot.ravel(), (env.place[..., 0] * 11 + env.place[..., 1]).ravel()),
    ]
    for slot, tells in pairs:
        assert independence(slot, tells) > 1e-4


def independence(left, right):
    """Return the p-value of the hypothesis that `left` is uniform and independent of `right`."""
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
    # Alternating north and south never reaches a dancer.
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
    # The original's numbers are means of 150 episodes, these of 400; both have sampling errors.
    share, length = expected
    assert abs(success.mean() - share) < 4 * np.sqrt(share * (1 - share) * (1 / 150 + 1 / 400))
    assert abs(lengths.mean() - length) < 4 * lengths.std() * np.sqrt(1 / 150 + 1 / 400)


def test_with_memory_success_is_one():
    env = BalletVector(200, 8, 16, "symbolic")
    env.reset(seed=1)
    for _ in range(env.choice_step):
        env.step(np.zeros(200, dtype=np.int64))
    success = np.zeros(200, dtype=np.bool_)
    moves = {step: move for move, step in STEPS.items()}
    goals = env.place[np.arange(200), env.target].copy()
    at = np.full((200, 2), 5)
    for _ in range(3):
        way = np.sign(goals - at)
        _, rewards, *_ = env.step(np.array([moves.get(tuple(step), 0) for step in way.tolist()]))
        at += way
        success |= rewards == 1.0
    assert success.all()


def test_info_holds_the_text_of_the_instruction():
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
