"""The ffmpeg program: its path and version, how it is run, what its errors mean; `write_video`.

Its errors become MediaErrors. A full disk stays an OSError, as the video is not the cause.
"""

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg

from kinetics_tools.core.errors import KineticsError, MediaError, Reason
from kinetics_tools.core.files import FULL_ERRNOS
from kinetics_tools.media.decode import Frame

# An I/O error is not among them: demuxers report damaged videos as such.
DISK_ERRNOS = FULL_ERRNOS | {errno.EROFS}
_DISK_MESSAGES = {os.strerror(number): number for number in DISK_ERRNOS}
# Lines in which ffmpeg reports that it ends, after those that say why.
_ENDING = re.compile(
    "Task finished with error code|Terminating thread with return code"
    "|Could not open encoder before EOF|Nothing was written into output file"
)
# swscale converts RGB to these colours by default; without tags, players guess.
_FOR_BROWSERS = {"movflags": "+faststart", "colorspace": "smpte170m", "color_range": "tv"}


def find_ffmpeg(override: Path | None = None) -> Path:
    """The path of the ffmpeg program: `override`, else the one in the wheel imageio-ffmpeg.

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
    """The version that the program reports, such as "9.0.2".

    Raises:
        KineticsError: it does not answer as ffmpeg does.
    """
    try:
        done = subprocess.run([binary, "-version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise KineticsError(f"{binary} does not run: {error.strerror}") from error
    words = done.stdout.split()
    if done.returncode != 0 or words[:2] != ["ffmpeg", "version"]:
        raise KineticsError(f"{binary} does not answer -version as ffmpeg does")
    return words[2]


def run_ffmpeg(graph: Any, *, binary: Path, video: Path, output: Path, folder: Path) -> str:
    """Run the program and return its messages: warnings, as it succeeded.

    Args:
        graph: an ffmpeg-python output node that reads `video` and writes `output`.
        binary: the program.
        video: named in a MediaError.
        output: named in an OSError.
        folder: in which it runs: names without a path are of files there.

    Raises:
        MediaError: ffmpeg failed (the detail is its last message) or was killed (reason killed).
        OSError: the disk is full.
    """
    command = ffmpeg.compile(
        graph.global_args("-loglevel", "error", "-xerror", "-nostdin"),
        cmd=str(Path(shutil.which(binary) or binary).absolute()),  # it runs in another folder
        overwrite_output=True,
    )
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, check=False, cwd=folder
    )
    messages = done.stderr.decode(errors="replace").strip()
    _raise_failure(done.returncode, messages, video=video, output=output)
    return messages


def _raise_failure(code: int, messages: str, *, video: Path, output: Path) -> None:
    """Raise what an exit code and messages of ffmpeg mean, if it failed."""
    for text, number in _DISK_MESSAGES.items():
        if text in messages:
            raise OSError(number, os.strerror(number), str(output))
    if code == -signal.SIGXFSZ:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(output))
    if code < 0:
        detail = f"ffmpeg was killed by {signal.Signals(-code).name}"
        raise MediaError(video, detail, reason=Reason.KILLED)
    if code != 0:
        raise MediaError(video, _last_message(messages) or f"ffmpeg ended with {code}")


def _last_message(messages: str) -> str:
    """The last line that says what was wrong.

    Addresses in memory are removed, as they differ in every run. Of several prefixes such as
    "[mov] [h264]" the last one stays.
    """
    lines = re.sub(r"\[[^]]*\] (?=\[)| @ 0x[0-9a-f]+", "", messages).splitlines()
    causes = [line for line in lines if not _ENDING.search(line)]
    return (causes or lines or [""])[-1][:400]


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
        for_browsers: puts the index first and tags the colours, so that the file plays while it
            is loaded and looks the same in all players.

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
        except BrokenPipeError:  # its messages say why it stopped reading
            with suppress(BrokenPipeError):
                process.stdin.close()  # or leaving the block would flush what is left
        messages = process.stderr.read().decode(errors="replace")
    _raise_failure(process.returncode, messages, video=path, output=path)
