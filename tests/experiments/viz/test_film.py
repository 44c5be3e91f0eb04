"""Recording of an episode as a GIF."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from PIL import Image, ImageSequence

from scrubjay.agents.teams.policy import TeamPolicy, TeamPolicyConfig
from scrubjay.envs import uav
from scrubjay.experiments import EnvConfig
from scrubjay.experiments.viz.film import play, play_team, render_frame, write_episode, write_gif, write_mp4


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


def read(path):
    """Return the metadata of a video and its pictures."""
    import imageio_ffmpeg

    film = imageio_ffmpeg.read_frames(str(path))
    metadata = next(film)
    width, height = metadata["size"]
    return metadata, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in film]


def halves(shade, size=(45, 27)):
    """Return a picture with a left half of a shade of red, and a blue right half."""
    picture = Image.new("RGB", size, (shade, 0, 0))
    picture.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return picture


@pytest.mark.requires("imageio_ffmpeg")
def test_a_film_shows_its_pictures_in_their_time_and_rests_on_the_last(tmp_path):
    shades = (40, 120, 200)
    write_episode([halves(shade) for shade in shades], tmp_path / "new" / "x.mp4", per_second=5)
    metadata, frames = read(tmp_path / "new" / "x.mp4")
    assert (metadata["codec"], metadata["fps"], metadata["size"]) == ("h264", 5, (46, 28))
    assert len(frames) == 2 + 5
    for frame, shade in zip(frames, (*shades, *[shades[-1]] * 4), strict=True):
        assert np.abs(frame[:, :18].astype(int) - [shade, 0, 0]).max() < 12
        # The padding repeats the last row and column.
        assert np.abs(frame[:, -18:].astype(int) - [0, 0, 255]).max() < 12


@pytest.mark.requires("imageio_ffmpeg")
def test_pictures_of_several_sizes_and_few_colours_are_written(tmp_path):
    frames = [halves(200, (20, 10)), halves(200, (31, 16)).convert("L")]
    write_mp4(frames, tmp_path / "x.mp4", per_second=0.5)
    metadata, read_back = read(tmp_path / "x.mp4")
    assert metadata["size"] == (32, 16)
    assert len(read_back) == 2


@pytest.mark.one_in(4)
@pytest.mark.requires("imageio_ffmpeg")
@pytest.mark.parametrize("name", ["-x.mp4", "http:x.mp4", "X.MP4", "é %d.mp4"])
def test_the_command_writes_a_film_whatever_its_name(name, here, tmp_path):
    code, out, err = here("play", "scrubjay/TMaze-v0", f"--out={name}", "--max-steps", 3)
    assert (code, err) == (0, "")
    assert f"{name}: 4 frames" in out
    assert [path.name for path in tmp_path.iterdir()] == [name]
    metadata, frames = read(tmp_path / name)
    assert len(frames) == 3 + metadata["fps"]


@pytest.mark.requires("imageio_ffmpeg")
def test_what_cannot_be_written_is_one_line(here, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    for name, message in (
        ("folder.mp4", "folder.mp4: Is a directory"),
        ("x.avi", "name it x.gif or x.mp4"),
        ("x", "name it x.gif or x.mp4"),
    ):
        code, out, err = here("play", "scrubjay/TMaze-v0", "--out", name, "--max-steps", 3)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.requires("imageio_ffmpeg")
def test_a_video_that_does_not_fit_on_the_disk_leaves_the_old_file(here, tmp_path):
    (tmp_path / "full.mp4").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        code, out, err = here("play", "scrubjay/TMaze-v0", "--out", "full.mp4", "--max-steps", 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, out) == (2, "")
    assert "full.mp4: ffmpeg could not finish the video" in err
    assert err.count("\n") == 1
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("full.mp4", "old")]


class Relay(ParallelEnv):
    """Each agent observes the time and its number, and its reward is its action.

    The second leaves after two of four steps.
    """

    metadata = {"name": "relay", "render_fps": 5}
    possible_agents = ["first", "second"]
    last = 4

    def observation_space(self, agent):
        return spaces.Box(0, 10, (2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(5)

    def reset(self, seed=None, options=None):
        self.agents, self.time, self.seed = list(self.possible_agents), 0, seed
        return self._see(), {agent: {} for agent in self.agents}

    def step(self, actions):
        assert list(actions) == self.agents
        self.time += 1
        acting_agents, over = self.agents, self.time == self.last
        observations = self._see()
        terminations = {agent: self.time == 2 and agent == "second" for agent in acting_agents}
        self.agents = [agent for agent in acting_agents if not over and not terminations[agent]]
        infos = {agent: {"double": 2.0 * self.time, "name": "relay"} for agent in acting_agents}
        return observations, dict(actions), terminations, dict.fromkeys(acting_agents, over), infos

    def render(self):
        return np.full((8, 8, 3), 50 * self.time, dtype=np.uint8)

    def _see(self):
        return {
            agent: np.array([self.time, 1 + self.possible_agents.index(agent)], np.float32)
            for agent in self.agents
        }


def test_a_team_is_played_to_its_end(tmp_path):
    actor_calls = []

    def actor(env, observations, alive, start):
        actor_calls.append((observations[""][0].tolist(), alive[0].tolist(), start.tolist()))
        return np.array([[1, 3]])

    env = Relay()
    episode = play_team(env, actor, tmp_path / "new" / "relay.gif", seed=9)
    assert env.seed == 9
    assert episode.frames == 5
    assert episode.returns == {"first": 4, "second": 6}
    assert episode.measures == {"double": 5.0}
    assert actor_calls == [
        ([[0, 1], [0, 2]], [True, True], [True]),
        ([[1, 1], [1, 2]], [True, True], [False]),
        ([[2, 1], [2, 2]], [True, False], [False]),
        ([[3, 1], [0, 0]], [True, False], [False]),
    ]
    with Image.open(tmp_path / "new" / "relay.gif") as gif:
        assert gif.info["duration"] == 200
        assert len(list(ImageSequence.Iterator(gif))) == 5


def still(env: object, observations: object, alive: np.ndarray, start: np.ndarray) -> np.ndarray:
    return np.array([[0, 0]])


def test_a_long_episode_is_cut(tmp_path):
    episode = play_team(Relay(), still, tmp_path / "relay.gif", max_steps=2)
    assert episode.frames == 3
    with pytest.raises(ValueError, match="max_steps=0"):
        play_team(Relay(), still, tmp_path / "relay.gif", max_steps=0)


def test_an_env_that_renders_nothing(tmp_path):
    for render in (lambda self: None, ParallelEnv.render):
        unseen = type("Unseen", (Relay,), {"render": render})
        with pytest.raises(ValueError, match="relay"):
            play_team(unseen(), still, tmp_path / "relay.gif")


def test_a_policy_that_remembers_is_played(tmp_path):
    env = uav.parallel_env("small", num_uavs=3, max_steps=4, render_mode="rgb_array")
    agent = env.possible_agents[0]
    policy = TeamPolicy(env.observation_space(agent), env.action_space(agent), 3, TeamPolicyConfig())
    state = None

    def actor(env, observations, alive, start):
        nonlocal state
        actions, state = policy.act(observations, alive, state, start)
        return actions

    assert play_team(env, actor, tmp_path / "uav.gif").frames == 5
    assert env.world.time.tolist() == [4]
