"""Recording of an episode as a GIF."""

import pytest
from PIL import Image

from scrubjay.experiments import EnvConfig
from scrubjay.experiments.reports.episode import play, render_frame, write_gif


def test_play_writes_the_episode(finished_run, tmp_path):
    frames, _ = play(finished_run.config.env, tmp_path / "episode.gif", finished_run.policy)
    with Image.open(tmp_path / "episode.gif") as gif:
        assert 2 <= getattr(gif, "n_frames", 1) <= frames
    random_frames, _ = play(EnvConfig("scrubjay/RepeatPrevious-v0"), tmp_path / "random.gif", max_steps=7)
    assert random_frames == 8


def test_the_last_picture_rests_and_none_is_too_short(tmp_path):
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    write_gif(frames, tmp_path / "new" / "x.gif", per_second=1000)
    with Image.open(tmp_path / "new" / "x.gif") as gif:
        durations = []
        for number in range(3):
            gif.seek(number)
            durations.append(gif.info["duration"])
    assert durations == [20, 20, 1000]


def test_one_seed_plays_one_episode(tmp_path):
    env = EnvConfig("scrubjay/RepeatPrevious-v0")
    results = [play(env, tmp_path / name, seed=seed, max_steps=20) for name, seed in (("a", 3), ("b", 3))]
    assert results[0] == results[1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    play(env, tmp_path / "c", seed=4, max_steps=20)
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes()


def test_an_environment_without_pictures_is_named(tmp_path):
    class Dark:
        def render(self):
            raise NotImplementedError

    with pytest.raises(ValueError, match="environment 'dark' does not render pictures"):
        render_frame(Dark(), "dark")
