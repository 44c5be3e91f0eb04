"""Recording of an episode as an MP4, read back from its file."""

from __future__ import annotations

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from scrubjay.experiments.reports.episode import write_episode
from scrubjay.experiments.reports.film import write_mp4

pytestmark = pytest.mark.requires("imageio_ffmpeg")


def read(path):
    """Return the metadata of a video and its pictures."""
    film = imageio_ffmpeg.read_frames(str(path))
    metadata = next(film)
    width, height = metadata["size"]
    return metadata, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in film]


def halves(shade, size=(45, 27)):
    """Return a picture with a left half of a shade of red, and a blue right half."""
    picture = Image.new("RGB", size, (shade, 0, 0))
    picture.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return picture


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


def test_pictures_of_several_sizes_and_few_colours_are_written(tmp_path):
    frames = [halves(200, (20, 10)), halves(200, (31, 16)).convert("L")]
    write_mp4(frames, tmp_path / "x.mp4", per_second=0.5)
    metadata, read_back = read(tmp_path / "x.mp4")
    assert metadata["size"] == (32, 16)
    assert len(read_back) == 2


@pytest.mark.parametrize("name", ["-x.mp4", "http:x.mp4", "X.MP4", "é %d.mp4"])
def test_the_command_writes_a_film_whatever_its_name(name, here, tmp_path):
    code, out, err = here("play", "scrubjay/TMaze-v0", f"--out={name}", "--max-steps", 3)
    assert (code, err) == (0, "")
    assert f"{name}: 4 frames" in out
    assert [path.name for path in tmp_path.iterdir()] == [name]
    metadata, frames = read(tmp_path / name)
    assert len(frames) == 3 + metadata["fps"]


def test_what_cannot_be_written_is_one_line(here, tmp_path):
    (tmp_path / "full.mp4").symlink_to("/dev/full")
    (tmp_path / "folder.mp4").mkdir()
    for name, message in (
        ("full.mp4", "full.mp4: ffmpeg could not finish the video"),
        ("folder.mp4", "folder.mp4: Is a directory"),
        ("x.avi", "name it x.gif or x.mp4"),
        ("x", "name it x.gif or x.mp4"),
    ):
        code, out, err = here("play", "scrubjay/TMaze-v0", "--out", name, "--max-steps", 3)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
