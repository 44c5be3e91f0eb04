"""Pictures as a film: H.264 in an MP4, which every browser and player shows."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def check_encoder() -> None:
    """Raise ImportError, which says what to install, unless there is what writes films."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"a film needs ffmpeg, by the extra `film` ({str(error).strip()}): pip install 'scrubjay[film]'"
        ) from error


def write_mp4(frames: Sequence[Image.Image], out: Path | str, per_second: float) -> None:
    """Write pictures as a film that rests a second on the last one; odd sizes gain a row or column.

    Raises ImportError as `check_encoder`, OSError if the file cannot be written.
    """
    check_encoder()
    import imageio_ffmpeg

    pictures = [np.asarray(frame.convert("RGB")) for frame in frames]
    # Colours are stored for squares of 2 by 2 pixels.
    height, width = (-(-max(picture.shape[axis] for picture in pictures) // 2) * 2 for axis in (0, 1))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with open(out, "wb"):  # Python says in a line why it cannot be, ffmpeg in many
        pass
    film = imageio_ffmpeg.write_frames(
        os.path.abspath(out),  # what begins with - or data: would be something else to ffmpeg
        (width, height),
        fps=per_second,  # pyright: ignore[reportArgumentType]  (ffmpeg takes fractions, too)
        quality=8,
        macro_block_size=2,
        ffmpeg_log_level="quiet",
    )
    film.send(None)
    try:
        for picture in [*pictures, *[pictures[-1]] * (max(1, round(per_second)) - 1)]:
            film.send(_padded(picture, height, width))
    except OSError as error:
        raise _unfinished(out) from error
    finally:
        film.close()
    if b"moov" not in _parts(out):  # the index, which is written last
        raise _unfinished(out)


def _parts(path: Path | str) -> list[bytes]:
    """Return the names of an MP4's outermost parts, each of which begins with its size and its name."""
    parts = []
    with open(path, "rb") as file:
        while len(head := file.read(8)) == 8 and (size := int.from_bytes(head[:4])) >= 8:
            parts.append(head[4:])
            file.seek(size - 8, os.SEEK_CUR)
    return parts


def _unfinished(out: Path | str) -> OSError:
    return OSError(errno.EIO, "ffmpeg could not finish the film; is there room on the disk?", str(out))


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture of that size, whose last row and column go on; contiguous, as ffmpeg reads it."""
    missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.ascontiguousarray(np.pad(picture, missing, mode="edge"))
