"""Clips and shards that version 0.1 wrote are still used as they are."""

from pathlib import Path

import numpy as np
import pytest

import pipeline
from kinetics_tools.shards import ShardFolder, read_samples
from support import tree, unpack_written_by_0_1


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder in which version 0.1 ran: clips/ and shards/."""
    unpack_written_by_0_1(tmp_path)
    return tmp_path


def call(cwd: Path, *arguments: object) -> str:
    done = pipeline.call("extract-flow", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_on_them_has_nothing_to_do(written: Path) -> None:
    before = tree(written / "shards", without=("index",))
    options = ("--short-side", "keep", "--samples-per-shard", 3, "--scaler", "bicubic")

    for method in ("tvl1", "opencv-tvl1"):
        said = call(written, "clips", "shards", "--method", method, *options)
        assert "8 of 8 samples in shards" in said
        assert "computed now" not in said
        assert "index: shards/dataset.json" in said

    assert tree(written / "shards", without=("index",)) == before
    said = call(written, "index", "shards")
    assert "train: 4 expected, flow-opencv-tvl1 4, flow-tvl1 4, rgb 4" in said
    assert tree(written / "shards", without=("index",)) == before


def test_a_run_that_scales_in_another_way_is_refused(written: Path) -> None:
    before = tree(written / "shards")
    options = ("--short-side", "keep", "--samples-per-shard", 3)
    said = pipeline.call("extract-flow", "clips", "shards", *options, cwd=written)
    assert said.returncode == 2
    assert "rgb there: scaler = bicubic, in this run: scaler = bilinear" in said.stderr
    assert tree(written / "shards") == before


def test_their_samples_are_read_by_the_index_that_lies_there(written: Path) -> None:
    data = ShardFolder(written / "shards")
    assert data.flows == ("opencv-tvl1", "tvl1")
    assert data.recipes["rgb"].parameters["fps"] == 25
    assert (data.num_expected("val"), data.missing("val")) == (4, {})
    for flow in data.flows:
        samples = list(read_samples(written / "shards", "train", flow=flow))
        assert len(samples) == 4
        for sample in samples:
            assert sample.label_id == data.labels.index(str(sample.label))
            rgb, field = sample.rgb(), sample.flow()
            assert rgb.shape == (25, *rgb.shape[1:3], 3)
            assert field.shape == (24, *rgb.shape[1:3], 2)
            assert np.abs(field).max() <= 20


def test_they_are_exported_and_shown(written: Path) -> None:
    said = call(written, "export", "shards", "jpegs", "--flow", "tvl1")
    assert "8 clips in jpegs, 8 made now" in said
    clip = next((written / "clips" / "clips" / "val").rglob("*.mp4"))
    said = call(written, "show", clip, "sheet.png", "--short-side", "keep")
    assert "sheet.png: 5 moments" in said
