"""Video writer: H.264 in an MP4, which every browser and player supports."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def check_encoder() -> None:
    """Raise ImportError, with installation instructions, if ffmpeg is missing."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"an MP4 needs ffmpeg from the extra `film` ({str(error).strip()}): pip install 'scrubjay[film]'"
        ) from error


def write_mp4(frames: Sequence[Image.Image], out: Path | str, per_second: float) -> None:
    """Write pictures as an MP4. The last picture stays for one second.

    A picture with an odd height or width is padded by one pixel, since the format needs even sizes. Raises
    ImportError if ffmpeg is missing, and OSError if the file cannot be written.
    """
    check_encoder()
    import imageio_ffmpeg

    pictures = [np.asarray(frame.convert("RGB")) for frame in frames]
    # Colors are stored per 2 by 2 pixels, so sizes must be even.
    height, width = (-(-max(picture.shape[axis] for picture in pictures) // 2) * 2 for axis in (0, 1))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with open(out, "wb"):  # raises a short OSError, unlike ffmpeg, if the file cannot be written
        pass
    film = imageio_ffmpeg.write_frames(
        os.path.abspath(out),  # ffmpeg would parse names that start with - or data: differently
        (width, height),
        fps=per_second,  # pyright: ignore[reportArgumentType]  (ffmpeg also accepts fractions)
        quality=8,
        macro_block_size=2,
        ffmpeg_log_level="quiet",
    )
    film.send(None)
    try:
        for picture in [*pictures, *[pictures[-1]] * (max(1, round(per_second)) - 1)]:
            film.send(_pad(picture, height, width))
    except OSError as error:
        raise _incomplete_film_error(out) from error
    finally:
        film.close()
    if b"moov" not in _read_box_names(out):  # the index is written last
        raise _incomplete_film_error(out)


def _read_box_names(path: Path | str) -> list[bytes]:
    """Return the names of the top-level boxes of an MP4; a box starts with its size and its name."""
    parts = []
    with open(path, "rb") as file:
        while len(head := file.read(8)) == 8 and (size := int.from_bytes(head[:4])) >= 8:
            parts.append(head[4:])
            file.seek(size - 8, os.SEEK_CUR)
    return parts


def _incomplete_film_error(out: Path | str) -> OSError:
    return OSError(errno.EIO, "ffmpeg could not finish the video; check the free disk space", str(out))


def _pad(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a contiguous picture of this size, padded by repeating the last row and column."""
    missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.ascontiguousarray(np.pad(picture, missing, mode="edge"))
