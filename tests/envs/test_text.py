"""Text in observations: its words, the spaces, and what remains without it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.envs import TextObservation
from scrubjay.envs.text import MAX_WORDS, encode_text, has_text


class Echo(gymnasium.Env):
    """Environment whose observations are samples of a space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


TEXT = spaces.Text(20)
CAMERA = spaces.Box(0, 1, (2,))
NESTED = spaces.Dict(
    {
        "a": spaces.Tuple([TEXT, CAMERA, spaces.Dict({"b": TEXT})]),
        "mission": TEXT,
        "z": spaces.Discrete(3),
    }
)


@pytest.mark.parametrize("text", ["encode", "drop"])
def test_observations_are_in_their_space(text):
    env = TextObservation(Echo(NESTED), text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # check_env warns that env is a wrapper
        check_env(env, skip_render_check=True)
    assert not has_text(env.observation_space)


def test_the_rest_of_an_observation_is_unchanged():
    env = TextObservation(Echo(NESTED), "drop")
    assert env.observation_space == spaces.Dict({"a": spaces.Tuple([CAMERA]), "z": spaces.Discrete(3)})
    whole, part = Echo(NESTED).reset(seed=4)[0], env.reset(seed=4)[0]
    assert np.array_equal(part["a"][0], whole["a"][1])
    assert part["z"] == whole["z"]
    with_words = TextObservation(Echo(NESTED)).reset(seed=4)[0]
    assert np.array_equal(with_words["a"][1], whole["a"][1])
    assert np.array_equal(with_words["mission"]["words"], encode_text(whole["mission"])["words"])


def test_a_dict_keeps_the_order_of_its_keys():
    space = spaces.Dict([("z", CAMERA), ("a", TEXT)])  # pyright: ignore[reportArgumentType]
    space_without: Any = TextObservation(Echo(space)).observation_space
    assert list(space_without) == ["z", "a"]


def test_a_space_without_text_is_the_same():
    space = spaces.Dict({"a": CAMERA})
    assert TextObservation(Echo(space), "drop").observation_space == space


@given(st.lists(st.text("abcXYZ019", min_size=1), max_size=MAX_WORDS, unique=True))
def test_words_differ_and_keep_their_order(words):
    code = encode_text("  ".join(words))
    assert code["words_mask"].sum() == len(words)
    rows = code["words"][: len(words)]
    assert (rows[:, 2] == np.arange(len(words))).all()
    assert len({tuple(row[:2]) for row in rows}) == len(words)
    assert not code["words"][len(words) :].any()


def test_punctuation_and_characters_of_chinese_are_words():
    def count(text: str) -> int:
        return int(encode_text(text)["words_mask"].sum())

    assert count("go to the red ball, then open it.") == 10
    assert count("拿起红球") == 4
    assert count("") == 0
    first, second = encode_text("open Open")["words"][:2, :2].tolist()
    assert first != second


def test_the_same_word_has_the_same_code_in_every_process():
    code = "from scrubjay.envs.text import encode_text; print(encode_text('key')['words'][0].tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(encode_text("key")["words"][0].tolist())


def test_bad_texts_and_modes_are_refused():
    with pytest.raises(ValueError, match=r"has 65 words, the maximum is 64; drop it with .*--env\.text drop"):
        encode_text("a " * 65)
    with pytest.raises(TypeError, match="expected a string"):
        encode_text(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="text='keep': choose from encode, drop"):
        TextObservation(Echo(TEXT), "keep")  # pyright: ignore[reportArgumentType]
    for space in (TEXT, spaces.Dict({"a": spaces.Tuple([TEXT])})):
        with pytest.raises(ValueError, match="text='drop' leaves nothing of the observation space"):
            TextObservation(Echo(space), "drop")
