"""The synthetic videos of the demo: short videos in six classes that only motion tells apart.

A textured shape over a drifting texture moves left, right, up or down, or grows or shrinks, on a
picture whose edges are joined. Its start and size have the same distribution in all classes, so a
single frame does not give the class away. Before and after the labelled segment the shape moves the
opposite way, so a clip that is cut at the wrong time has the wrong label. Textures move with their
surfaces, as optical flow assumes.
"""

import contextlib
import functools
import http.server
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kinetics_tools.core import engine
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import publish, write_text
from kinetics_tools.core.units import Crash
from kinetics_tools.dataset.manifest import Segment, format_manifest
from kinetics_tools.media import decode, encode

Array = npt.NDArray[np.float32]

SIZE_PX = 80
VIDEO_S = 4
SEGMENT_S = 1  # 25 frames, 24 pairs per clip
NUM_VIDEOS = {"train": 14, "val": 6}  # per class: 2,880 frame pairs
RATES_FPS = (24, 25, 30)
SPEED_PX_S = 60.0
GROWTH_S = 0.9  # natural logarithm of the scale, per second
# x to the right, y down, growth
MOTIONS = {
    "down": (0, 1, 0),
    "grow": (0, 0, 1),
    "left": (-1, 0, 0),
    "right": (1, 0, 0),
    "shrink": (0, 0, -1),
    "up": (0, -1, 0),
}
_TILE_PX = 128  # edge of a texture, which repeats


@dataclass(frozen=True, slots=True)
class _Scene:
    """What one video shows; the distribution is the same for all classes."""

    back: Array
    shape: Array
    start_px: Array
    drift_px_s: Array
    radius_px: float
    roundness: float
    speed: float
    segment_s: Fraction


def write_videos(folder: Path, *, seed: int = 0, jobs: int = 1) -> Path:
    """Generate the videos that are missing in `folder`, and their manifest.

    Args:
        folder: gets `videos/<youtube_id>.mp4` and `manifest.csv`.
        seed: every random choice follows from it.
        jobs: number of processes.

    Returns:
        Path of the manifest.

    Raises:
        OutError: a process died.
    """
    units = [
        (split, number, label)
        for split, count in NUM_VIDEOS.items()
        for number in range(count)
        for label in MOTIONS
    ]
    work = functools.partial(_write_one, folder=folder / "videos", seed=seed)
    segments = []
    for unit, segment in engine.run(units, work, jobs=jobs):
        if isinstance(segment, Crash):
            raise OutError(f"{folder}: video {unit} was not generated: {segment.detail}; run again")
        segments.append(segment)
    manifest = folder / "manifest.csv"
    write_text(manifest, format_manifest(segments))
    return manifest


def _write_one(unit: tuple[str, int, str], *, folder: Path, seed: int) -> Segment:
    split, number, label = unit
    # Eleven characters, like YouTube's ids, of which some begin with a dash.
    name = f"{'_-'[number % 2]}{number:02d}{split[0]}{label:_<7}"
    scene = _draw_scene(np.random.default_rng([seed, *map(ord, name)]))
    video = folder / f"{name}.mp4"
    if not video.exists():
        fps = RATES_FPS[number % len(RATES_FPS)]
        with publish(video) as scratch:
            pictures = _pictures(scene, label, fps)
            encode.write_video(scratch, pictures, fps=fps, binary=encode.find_ffmpeg())
    return Segment(
        youtube_id=name,
        start_s=scene.segment_s,
        end_s=scene.segment_s + SEGMENT_S,
        label=label,
        split=split,
    )


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the files of a folder over HTTP on loopback in this block; yield the address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing: the ledger of the download has everything."""


def _draw_scene(rng: np.random.Generator) -> _Scene:
    angle = rng.uniform(0, 2 * np.pi)
    return _Scene(
        back=_texture(rng),
        shape=_texture(rng),
        start_px=rng.uniform(0, SIZE_PX, 2).astype(np.float32),
        drift_px_s=np.float32(rng.uniform(3, 10))
        * np.array([np.cos(angle), np.sin(angle)], np.float32),
        radius_px=rng.uniform(15, 23),
        roundness=rng.choice([2.0, 4.0, 8.0]),
        speed=rng.uniform(0.8, 1.2),
        segment_s=Fraction(int(rng.integers(12, 20)), 10),
    )


def _texture(rng: np.random.Generator) -> Array:
    """A smooth random texture, (tile, tile, 3) in [0, 255], that repeats without a seam."""
    frequency = np.fft.fftfreq(_TILE_PX)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    band = np.exp(-(((radius - 0.06) / 0.035) ** 2))  # waves of 10 to 40 pixels
    luma = _filtered(rng, band)
    tints = np.stack([_filtered(rng, band) for _ in range(3)], axis=-1)
    mean = rng.uniform(90, 165, 3)
    return np.clip(mean + 45 * luma[..., None] + 12 * tints, 0, 255).astype(np.float32)


def _filtered(rng: np.random.Generator, band: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((_TILE_PX, _TILE_PX))) * band).real
    result: npt.NDArray[np.float64] = noise / noise.std()
    return result


def _pictures(scene: _Scene, label: str, fps: int) -> Iterator[decode.Frame]:
    """Yield the video: uint8 (H, W, 3)."""
    motion_x, motion_y, growth = MOTIONS[label]
    rows, columns = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32)
    for frame in range(VIDEO_S * fps):
        time_s = frame / fps
        # Seconds of the labelled motion, counted from the segment's middle; it is undone before
        # the segment and after it.
        before_s = float(scene.segment_s)
        inside = min(max(time_s - before_s, 0), SEGMENT_S)
        outside = time_s - inside - before_s
        phase_s = scene.speed * (inside - SEGMENT_S / 2 - outside)
        scale = math.exp(growth * GROWTH_S * min(max(phase_s, -1), 1))
        centre_x = scene.start_px[0] + motion_x * SPEED_PX_S * phase_s
        centre_y = scene.start_px[1] + motion_y * SPEED_PX_S * phase_s
        # Offsets from the centre on a picture that joins at its edges.
        x = (columns - centre_x + SIZE_PX / 2) % SIZE_PX - SIZE_PX / 2
        y = (rows - centre_y + SIZE_PX / 2) % SIZE_PX - SIZE_PX / 2
        norm = (np.abs(x) ** scene.roundness + np.abs(y) ** scene.roundness) ** (
            1 / scene.roundness
        )
        inner = np.clip(scene.radius_px * scale - norm + 0.5, 0, 1)[..., None]
        front = _look_up(scene.shape, x / scale, y / scale)
        drift_x, drift_y = scene.drift_px_s * time_s
        back = _look_up(scene.back, columns - drift_x, rows - drift_y)
        yield (inner * front + (1 - inner) * back).round().astype(np.uint8)


def _look_up(texture: Array, x: Array, y: Array) -> Array:
    """The texture at real positions, bilinear, repeating."""
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_share, low_share = (x - left)[..., None], (y - top)[..., None]
    left, top, right, low = (n % _TILE_PX for n in (left, top, left + 1, top + 1))
    upper = texture[top, left] * (1 - right_share) + texture[top, right] * right_share
    lower = texture[low, left] * (1 - right_share) + texture[low, right] * right_share
    result: Array = upper * (1 - low_share) + lower * low_share
    return result
