"""Wrapper that encodes or drops the text in observations, such as MiniGrid's missions."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from gymnasium.utils import RecordConstructorArgs

TextMode = Literal["encode", "drop"]

MAX_WORDS = 64
"""Maximum number of words in a text that is encoded."""
_HASHES = 512
_WORD = re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]")


class TextObservation(gymnasium.ObservationWrapper, RecordConstructorArgs):
    """Wrapper that replaces each text of an observation by a set of words, or removes it.

    With `text="encode"` the space of a text becomes a Dict with two entries. `words` is a MultiDiscrete
    `[64, 3]` with one row per word: two hashes of the word, each from 0 to 511, and its position.
    `words_mask` is a MultiBinary `[64]` with a 1 for each word. A run of ASCII letters and digits is one
    word, and so is each other character except whitespace. Case matters. Two words have the same hashes with
    a probability of 1 in 262,144.

    With `text="drop"` the entry is removed from its Dict or Tuple.

    Args:
        env: Environment to wrap.
        text: "encode" or "drop".

    Raises:
        ValueError: If nothing remains, on an unknown mode, and on a text of more than 64 words.
    """

    stateless = True
    """The wrapper has no state of its own; restoring the wrapped environment is enough."""

    def __init__(self, env: gymnasium.Env, text: TextMode = "encode") -> None:
        if text not in get_args(TextMode):
            raise ValueError(f"text={text!r}: choose from {', '.join(get_args(TextMode))}")
        RecordConstructorArgs.__init__(self, text=text)
        gymnasium.ObservationWrapper.__init__(self, env)
        conversion = _find_conversion(env.observation_space, drops=text == "drop")
        if conversion is None:
            raise ValueError(f"text='drop' leaves nothing of the observation space {env.observation_space}")
        self.observation_space, self._convert = conversion

    def observation(self, observation: Any) -> Any:
        """Return the observation with its texts encoded or removed."""
        return self._convert(observation)


def is_text(space: Space) -> bool:
    """Return True if the values of a space are strings, as for Text and MiniGrid's MissionSpace."""
    return isinstance(space, Space) and space.dtype is not None and space.dtype.kind == "U"


def has_text(space: Space) -> bool:
    """Return True if a space is a text, or a Dict or Tuple with a text in it."""
    return is_text(space) or any(has_text(part) for _, part in _parts(space))


def encode_text(text: str) -> dict[str, np.ndarray]:
    """Return the words of a text and their mask, as `TextObservation` describes.

    Raises TypeError if `text` is no string, and ValueError if it has more than 64 words.
    """
    if not isinstance(text, str):
        raise TypeError(f"text {text!r:.60} in an observation: expected a string")
    matches = _WORD.findall(text)
    if len(matches) > MAX_WORDS:
        raise ValueError(
            f"text {text!r:.60} in an observation has {len(matches)} words, the maximum is {MAX_WORDS}; drop "
            "it with text='drop' (--env.text drop)"
        )
    words = np.zeros((MAX_WORDS, 3), dtype=np.int64)
    for position, word in enumerate(matches):
        words[position] = *_hash_word(word), position
    return {"words": words, "words_mask": (np.arange(MAX_WORDS) < len(matches)).astype(np.int8)}


def _find_conversion(space: Space, drops: bool) -> tuple[Space, Callable[[Any], Any]] | None:
    """Return the space without text and the function that converts a value; None if nothing remains."""
    if is_text(space):
        return None if drops else (_word_space(), encode_text)
    if not has_text(space):
        return space, lambda value: value
    conversions = {key: _find_conversion(part, drops) for key, part in _parts(space)}
    rest = {key: conversion for key, conversion in conversions.items() if conversion is not None}
    if not rest:
        return None
    if isinstance(space, spaces.Dict):
        pairs: Any = [(key, part) for key, (part, _) in rest.items()]  # a Dict sorts the keys of a mapping
        return spaces.Dict(pairs), lambda value: {
            key: convert(value[key]) for key, (_, convert) in rest.items()
        }
    parts = spaces.Tuple([part for part, _ in rest.values()])
    return parts, lambda value: tuple(convert(value[key]) for key, (_, convert) in rest.items())


def _parts(space: Space) -> list[tuple[Any, Space]]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else []


def _word_space() -> spaces.Dict:
    words = spaces.MultiDiscrete(np.tile([_HASHES, _HASHES, MAX_WORDS], (MAX_WORDS, 1)))
    return spaces.Dict({"words": words, "words_mask": spaces.MultiBinary(MAX_WORDS)})


@functools.lru_cache(maxsize=4096)
def _hash_word(word: str) -> tuple[int, int]:
    """Return two independent hashes of a word, which are the same in every process."""
    digest = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return digest % _HASHES, digest // _HASHES % _HASHES
