"""Shards of pictures that tell their number, made as the extract stage makes them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kinetics_tools.core.files import file_digest
from kinetics_tools.flow.codecs import CODECS
from kinetics_tools.media.encode import write_video
from kinetics_tools.shards import writer
from kinetics_tools.shards.records import (
    Dataset,
    ExpectedSplit,
    Failure,
    FolderRecipe,
    FolderRecords,
    ShardLayout,
    Sidecar,
    StreamRecipe,
)
from kinetics_tools.shards.writer import SampleContent

LABELS = ("abseiling", "yoga")
RECIPES: dict[str, dict[str, Any]] = {
    "rgb": {"fps": 25, "short_side": 16},
    "flow-tvl1": {"method": "tvl1", "bound": 20.0, "codec": "ffv1"},
}
HASHED = {stream: StreamRecipe.of(recipe) for stream, recipe in RECIPES.items()}
HEIGHT, WIDTH = 16, 24


def pictures(key: str, num: int) -> npt.NDArray[np.uint8]:
    """Frames that tell their number: grey 20, 40, 60 ..."""
    return np.stack(
        [np.full((HEIGHT, WIDTH, 3), 20 * (t + 1), np.uint8) for t in range(num)]
    ) + np.uint8(len(key))


def codes(num: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(num).integers(0, 256, (num - 1, HEIGHT, WIDTH, 2), np.uint8)


class Maker:
    """Makes shards of given samples as the extract stage does."""

    def __init__(self, folder: Path, scratch: Path, ffmpeg: Path) -> None:
        self.folder, self.scratch, self.ffmpeg = folder, scratch, ffmpeg
        self.shards: dict[str, int] = {}
        scratch.mkdir(exist_ok=True)

    def register(self, **changes: Any) -> None:
        recipe = FolderRecipe(
            labels=LABELS,
            layout=ShardLayout(samples_per_shard=2, seed=0),
            recipes=HASHED,
            splits={
                split: ExpectedSplit(expected=4, shards=num, keys="")
                for split, num in self.shards.items()
            },
        )
        writer.register_recipes(FolderRecords(self.folder), replace(recipe, **changes))

    def index(self) -> Dataset:
        return writer.write_index(FolderRecords(self.folder))

    def rgb(self, split: str, number: int, samples: dict[str, int], missing: str = "") -> Sidecar:
        self.shards[split] = max(self.shards.get(split, 0), number + 1)
        self.register()
        contents = []
        for key, num in samples.items():
            path = self.scratch / f"{key}.mp4"
            write_video(path, pictures(key, num), fps=25, binary=self.ffmpeg)
            contents.append(self.content(key, num, path, file_digest(path)))
        return self.publish("rgb", split, number, contents, "mp4", missing)

    def flow(self, rgb: Sidecar) -> Sidecar:
        contents = []
        for member in rgb.members:
            path = self.scratch / f"{member.key}.mkv"
            path.write_bytes(CODECS["ffv1"].encode(codes(member.frames)))
            contents.append(self.content(member.key, member.frames, path, member.sha256))
        return self.publish("flow-tvl1", rgb.split, rgb.number, contents, "flow.mkv")

    def content(self, key: str, num: int, path: Path, made_from: str) -> SampleContent:
        label = LABELS[len(key) % 2]
        return SampleContent(
            key=key, label=label, frames=num, path=path, made_from=made_from, about={"x": "y"}
        )

    def publish(
        self,
        stream: str,
        split: str,
        number: int,
        contents: Sequence[SampleContent],
        ext: str,
        missing: str = "",
    ) -> Sidecar:
        sidecar = Sidecar(
            stream=stream,
            split=split,
            number=number,
            recipe=HASHED[stream].hash,
            inputs="inputs",
            keys=tuple(c.key for c in contents) + ((missing,) if missing else ()),
            failed={missing: Failure("missing", "")} if missing else {},
        )
        return writer.write_shard(self.folder, sidecar, contents, ext=ext, labels=LABELS)


@pytest.fixture
def maker(tmp_path: Path, ffmpeg: Path) -> Maker:
    return Maker(tmp_path / "shards", tmp_path / "scratch", ffmpeg)


@pytest.fixture
def folder(maker: Maker) -> Path:
    """Two shards of a split `train` with two samples each and a gap, one of `val`."""
    maker.flow(maker.rgb("train", 0, {"bb": 5, "-a": 4}, missing="gone"))
    maker.flow(maker.rgb("train", 1, {"c": 3}))
    maker.flow(maker.rgb("val", 0, {"dd_": 2}))
    maker.index()
    return maker.folder
