"""A tiny set of real shards, made once per test run: eight clips, two classes of motion."""

import atexit
import functools
import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kinetics_bench.archs.registry import ARCHS, Sampling
from kinetics_bench.recipes import RECIPES, OneCycle, Recipe
from kinetics_tools.media import encode
from kinetics_tools.media.decode import Window
from support import run_command

SUBJECTS = ("ann", "ben", "cyd", "dan")
LABELS = ("left", "right")
NUM_FRAMES = 14
SIZE = (40, 48)  # height, width


@functools.cache
def tiny_clips() -> Path:
    """A folder of class folders: textures that move left or right by two pixels per frame."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    random = np.random.default_rng(0)
    for label, step in zip(LABELS, (-2, 2), strict=True):
        for subject in SUBJECTS:
            coarse = random.integers(0, 256, (SIZE[0] // 4, SIZE[1] // 4, 3), dtype=np.uint8)
            texture = coarse.repeat(4, axis=0).repeat(4, axis=1)
            pictures = (np.roll(texture, step * t, axis=1) for t in range(NUM_FRAMES))
            clip = folder / "clips" / label / f"{subject}_{label}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            encode.write_video(clip, pictures, fps=25, binary=encode.find_ffmpeg())
    return folder / "clips"


@functools.cache
def tiny_shards() -> Path:
    """The shards of `tiny_clips`, split `all`; do not write into them, see `copy_of_shards`."""
    clips = tiny_clips()
    shards = clips.with_name("shards")
    options = ("--method", "opencv-tvl1", "--short-side", "keep", "--jobs", 1)
    done = run_command("extract-flow", clips, shards, *options)
    assert done.returncode == 0, done.stderr
    return shards


# Inputs of each network from a clip of 14 frames: its minimum.
TINY = {
    "i3d": {"rgb": Sampling(9), "flow": Sampling(9)},
    "convnet-lstm": {"rgb": Sampling(4, 3)},
    **{arch: ARCHS[arch].train for arch in ("c3d", "two-stream", "3d-fused")},
}


def tiny_recipe(arch: str = "i3d", stream: str = "rgb", **changes: Any) -> Recipe:
    """A recipe that trains a network on `tiny_shards` in seconds, at the minimum of 32 pixels."""
    sampling = {name: TINY[arch][name] for name in ARCHS[arch].clips_of(stream)}
    values: dict[str, Any] = {
        "name": "tiny",
        "sampling": sampling,
        "short_side": 36,
        "crop_px": 32,
        "batch_size": 4,
        "micro_batch_size": 4,
        "schedule": OneCycle(epochs=2, peak_lr=1e-3),
    }
    return replace(RECIPES["small"]["i3d"]["rgb"], **(values | changes))


@dataclass
class ArrayClip:
    """A clip in memory that is read like a sample: frames (T, H, W, 3), codes (T-1, H, W, 2)."""

    frames: npt.NDArray[np.uint8]
    all_codes: npt.NDArray[np.uint8]
    bound: float

    def rgb(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        return _part(self.frames, indices, window)

    def codes(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        return _part(self.all_codes, indices, window)


def _part(
    pictures: npt.NDArray[np.uint8], indices: Sequence[int] | None, window: Window | None
) -> npt.NDArray[np.uint8]:
    rows, columns = (slice(None), slice(None)) if window is None else window(*pictures.shape[1:3])
    numbers = range(len(pictures)) if indices is None else indices
    return np.stack([pictures[number, rows, columns] for number in numbers])


def copy_of_shards(folder: Path) -> Path:
    """A copy of `tiny_shards` to damage."""
    return Path(shutil.copytree(tiny_shards(), folder / "shards"))


def damage(shards: Path, key: str) -> None:
    """Overwrite the middle of a sample's mp4 in its shard, and write the new digest to the index.

    The sample then matches its digest, but cannot be decoded.
    """
    tar = shards / "all" / "rgb-000000.tar"
    with tarfile.open(tar) as members:
        member = members.getmember(f"{key}.mp4")
    start, end = member.offset_data, member.offset_data + member.size
    data = bytearray(tar.read_bytes())
    data[start + 40 : start + 1400] = bytes(1360)
    tar.write_bytes(data)
    path = shards / "all" / "index.parquet"
    index = pd.read_parquet(path)
    length = index["rgb_sha256"].str.len().iloc[0]
    digest = hashlib.sha256(data[start:end]).hexdigest()[:length]
    index.loc[index["key"] == key, "rgb_sha256"] = digest
    index.to_parquet(path, index=False)


def key_file(folder: Path, name: str, *patterns: str) -> Path:
    """A file of keys."""
    path = folder / name
    path.write_text("".join(f"{pattern}\n" for pattern in patterns))
    return path
