"""The scripts of benchmarks/speed run and say what they promise; no test asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, environment


@pytest.mark.full
def test_the_speed_of_training_is_told_by_part_and_way() -> None:
    words = (
        "benchmarks/speed/train.py --arch two-stream --stream flow --batch 2 --device cpu --eager"
    )
    done = subprocess.run(
        [sys.executable, *words.split()],
        env=environment(), cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    by_part = {
        part: [row for row in rows if row["part"] == part]
        for part in ("product", "steps", "operators", "memory")
    }
    assert sum(map(len, by_part.values())) == len(rows)
    for row in by_part["product"]:
        assert row["giga_operations_per_s"] > 0
    ways = {row["way"]: row for row in by_part["steps"]}
    plain = ways["float32, contiguous"]
    assert "float32, channels last" in ways
    assert plain["forward_times_plain"] == plain["step_times_plain"] == 1
    for row in ways.values():
        assert (row["arch"], row["stream"], row["batch"]) == ("two-stream", "flow", 2)
        assert min(row["forward_clips_per_s"], row["step_clips_per_s"], row["share_of_product"]) > 0
    (operators,) = by_part["operators"]
    assert "convolution_backward" in operators["seconds"]
    assert min(operators["seconds"].values()) > 0
    assert sum(operators["seconds"].values()) <= operators["step_s"]
    assert 0 < operators["convolutions_s"] < operators["step_s"]
    (memory,) = by_part["memory"]
    assert min(memory["peak_gib"], memory["peak_gib_checkpointed"]) > 0


@pytest.mark.full
def test_the_cost_of_encodings_is_told_by_clip_and_for_all(shared_data: Path) -> None:
    words = "benchmarks/speed/encoding.py --views 1 --rounds 1 --candidate CAVLC"
    done = subprocess.run(
        [sys.executable, *words.split(), str(shared_data)],
        env=environment(), cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["candidate"] for row in rows] == ["today", "CAVLC"] * (len(rows) // 2)
    assert [row["clip"] for row in rows[-2:]] == ["all", "all"]
    today, cavlc = rows[-2:]
    assert today["times_views"] == today["times_bytes"] == 1
    assert (today["more_ssim"], today["meets"]) == (0, False)
    for row in rows:
        assert min(row["ms_a_view"], row["bytes"], row["encode_s"], row["psnr"]) > 0
        assert 0.9 < row["ssim"] < 1
    assert 1 < cavlc["times_bytes"] < 1.25


@pytest.mark.full
def test_the_loader_is_told_beside_its_peers(shared_data: Path) -> None:
    words = "benchmarks/speed/loader.py --views 1 --rounds 1"
    done = subprocess.run(
        [sys.executable, *words.split(), str(shared_data)],
        env=environment(), cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    sides = {row["side"]: row for row in rows if "side" in row}
    peers = {"spdl", "spdl crop", "decord", "torchcodec"}  # which may not be installed
    ours = {"ours rgb", "ours flow", "ours joint"}
    assert sides.keys() == peers | ours | {"libavcodec rgb", "flow codes", "pyav", "opencv"}
    for name, row in sides.items():
        if name in peers and "missing" in row:
            continue
        assert min(row["cpu_ms_a_clip"], row["wall_ms_a_clip"]) > 0
        if name in ("pyav", "opencv", "decord", "spdl"):  # the others crop elsewhere, or nothing
            assert row["mean_difference_to_ours"] < 0.1
    parts = {row["part"]: row for row in rows if "part" in row}
    ratios = {key: value for key, value in parts["ratios"].items() if key != "part"}
    assert {"rgb_of_libavcodec", "flow_of_its_codes", "joint_of_both"} <= ratios.keys()
    assert [row["num_processes"] for row in rows if row.get("part") == "processes"] == [1, 2]
    first, memory = parts["first batch"], parts["memory"]
    assert first["samples"] == 250_000
    assert 0 < first["seconds_of_the_index"] <= first["seconds"]
    assert len(memory["mib_after_epochs"]) == 10
