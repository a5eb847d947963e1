"""The ffmpeg program: where it is, what it says, and pictures written as a video."""

import errno
import itertools
import os
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path

import ffmpeg
import imageio_ffmpeg

from kinetics_tools.core.errors import KineticsError, MediaError
from kinetics_tools.core.files import FULL_ERRNOS
from kinetics_tools.media.decode import Frame

# What ffmpeg says of a disk, by which it is told from a video that is damaged. An I/O error is not
# among them: demuxers say so of damage too.
STORAGE_WORDS = {os.strerror(number): number for number in (*FULL_ERRNOS, errno.EROFS)}


def find_ffmpeg(override: Path | None = None) -> Path:
    """The ffmpeg binary: `override`, or the one in the wheel imageio-ffmpeg.

    Raises:
        KineticsError: `override` is not a program.
    """
    if override is None:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    if not os.access(override, os.X_OK) or override.is_dir():
        raise KineticsError(f"--ffmpeg {override}: no program there; leave it out to use our own")
    return override.absolute()


@cache
def ffmpeg_version(binary: Path) -> str:
    """The version that the binary names, such as "9.0.2".

    Raises:
        KineticsError: it does not answer as ffmpeg does.
    """
    try:
        said = subprocess.run([binary, "-version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise KineticsError(f"{binary} does not run: {error.strerror}") from error
    words = said.stdout.split()
    if said.returncode != 0 or words[:2] != ["ffmpeg", "version"]:
        raise KineticsError(f"{binary} does not answer -version as ffmpeg does")
    return words[2]


def raise_if_full(words: str, path: Path) -> None:
    """Raise OSError where ffmpeg's words say that the disk with `path` takes no more."""
    for text, number in STORAGE_WORDS.items():
        if text in words:
            raise OSError(number, os.strerror(number), str(path))


def last_words(text: str) -> str:
    """The last line of what ffmpeg said was wrong, without addresses (they differ in every run).

    Of the parts of it that are named before a line, the innermost stays.
    """
    lines = re.sub(r"\[[^]]*\] (?=\[)| @ 0x[0-9a-f]+", "", text).splitlines()
    telling = [line for line in lines if not _ENDING.search(line)]
    return (telling or lines or [""])[-1][:400]


# What ffmpeg says of its own end, after it has said what was wrong.
_ENDING = re.compile(
    "Task finished with error code|Terminating thread with return code"
    "|Could not open encoder before EOF|Nothing was written into output file"
)


def write_video(
    path: Path,
    pictures: Iterable[Frame],
    *,
    fps: int | Fraction,
    binary: Path,
    for_browsers: bool = False,
) -> None:
    """Encode pictures as H.264 (yuv420p) into the new file `path`.

    Args:
        path: its suffix names the container.
        pictures: uint8 (H, W, 3), RGB, all of one even size; at least one.
        fps: constant rate.
        binary: the ffmpeg program.
        for_browsers: puts the index first and says which colours these are, so that it plays
            before it is there whole and looks the same everywhere.

    Raises:
        MediaError: ffmpeg failed.
        OSError: the disk is full.
    """
    rest = iter(pictures)
    first = next(rest)
    height, width, _ = first.shape
    command = ffmpeg.compile(
        ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=str(fps))
        .output(
            str(path.absolute()),
            vcodec="libx264",
            pix_fmt="yuv420p",
            crf=16,
            threads=1,
            **(_FOR_BROWSERS if for_browsers else {}),
        )
        .global_args("-loglevel", "error"),
        cmd=str(binary),
        overwrite_output=True,
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            for picture in itertools.chain([first], rest):
                process.stdin.write(picture.tobytes())
            process.stdin.close()
        except BrokenPipeError:  # its last words say why it stopped reading
            with suppress(BrokenPipeError):
                process.stdin.close()  # or leaving the block tries again to send what is left
        words = process.stderr.read().decode(errors="replace")
    raise_if_full(words, path)
    if process.returncode != 0:
        raise MediaError(path, last_words(words))


# swscale makes such colours of RGB unless told otherwise; untagged ones players guess.
_FOR_BROWSERS = {"movflags": "+faststart", "colorspace": "smpte170m", "color_range": "tv"}
