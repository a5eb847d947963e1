"""Videos whose frames show their number, so that each frame of a clip tells where it is from."""

import subprocess
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from kinetics_tools.media import decode, encode
from support import run

NUM_BITS = 10
BLOCK_PX = 16
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-g", "50", "-pix_fmt", "yuv420p")


def picture(number: int) -> decode.Frame:
    """Encodes the number: ten dark or bright blocks, lowest bit first; uint8 (32, 160, 3)."""
    bits = [(number >> bit) & 1 for bit in range(NUM_BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, BLOCK_PX)
    return np.broadcast_to(row[None, :, None], (2 * BLOCK_PX, len(row), 3)).copy()


def numbers(clip: Path) -> list[int]:
    """The numbers that the frames of a clip of any size encode."""
    return [number(frame[..., 0]) for frame in decode.frames(clip)]


def number(gray: decode.Frame) -> int:
    """The number that a grey picture of any size encodes."""
    height, width = gray.shape
    columns = (np.arange(NUM_BITS) + 0.5) * width / NUM_BITS
    bright = gray[height // 2, columns.astype(int)]
    return int(sum(1 << bit for bit, on in enumerate(bright > 127) if on))


def times_s(clip: Path) -> list[Fraction]:
    """The times of a clip's frames, in seconds."""
    return [Fraction(frame.pts * frame.time_base) for frame in decode.decode_frames(clip)]


def make(
    path: Path,
    shown: Iterable[int],
    *options: str,
    fps: int | Fraction = 25,
    filters: str = "null",
) -> Path:
    """Encode the pictures of these numbers by ffmpeg, with its own options for the output."""
    height, width, _ = picture(0).shape
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps))
    command = [str(encode.find_ffmpeg()), "-loglevel", "error", "-y", *raw, "-i", "pipe:"]
    pixels = b"".join(picture(number).tobytes() for number in shown)
    subprocess.run([*command, "-vf", filters, *options, str(path)], input=pixels, check=True)
    return path


def ffmpeg(*arguments: object) -> None:
    """Run our ffmpeg quietly."""
    run(encode.find_ffmpeg(), "-loglevel", "error", "-y", *arguments)
