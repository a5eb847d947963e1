"""What a dry run counts and measures."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from extractions import plan_for, run
from kinetics_tools.extract import estimate
from kinetics_tools.extract.clips import read_clips
from kinetics_tools.extract.estimate import Rate, estimate_pairs, measure
from kinetics_tools.extract.plan import ExtractPlan, ShardUnit, plan_shards
from kinetics_tools.flow import methods
from kinetics_tools.flow.methods import FlowRecipe
from kinetics_tools.media import decode
from support import run_command

MakeVideo = Callable[..., Path]


@pytest.fixture
def clips(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Five clips of 25 frames, one of 4 s at another rate, and one that is damaged."""
    root = tmp_path / "clips"
    (root / "running").mkdir(parents=True)
    kept = "-c:v libx264 -preset ultrafast -g 16"  # as they are: nothing has to be encoded
    for number in range(5):
        short = make_video(seconds=1, fps="25", size="64x48", options=kept)
        shutil.copy(short, root / "running" / f"{number}.mp4")
    shutil.copy(make_video(seconds=4, fps="30", size="64x48"), root / "running" / "long.mp4")
    (root / "running" / "torn.mp4").write_bytes(b"torn")
    return root


def todo(clips: Path, plan: ExtractPlan) -> list[ShardUnit]:
    """All shards."""
    return plan_shards(read_clips(clips).clips, plan)


@dataclass
class Slow:
    """A method that takes its time."""

    pair_s: float
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def as_json(self) -> dict[str, Any]:
        return {}

    def prepare(self, device: str) -> None:
        pass

    def flows(
        self, frames: Iterator[npt.NDArray[np.uint8]], device: str, threads: int
    ) -> Iterator[npt.NDArray[np.float32]]:
        assert (device, threads) == ("cpu", 1)
        for frame in list(frames)[1:]:
            time.sleep(self.pair_s)
            yield np.zeros((*frame.shape, 2), np.float32)


def slow_plan(
    clips: Path, out: Path, pair_s: float, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> ExtractPlan:
    monkeypatch.setitem(methods.METHODS, "slow", lambda: Slow(pair_s))
    return plan_for(
        clips, out, flow=FlowRecipe(method="slow", parameters={}), name="slow", **changes
    )


def test_a_few_clips_are_measured_each_for_its_share_of_the_time(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = slow_plan(clips, tmp_path / "out", 0.01, monkeypatch)

    rate = measure(todo(clips, plan), plan)

    assert rate is not None
    assert (rate.device, rate.num_clips) == ("cpu", 4)
    assert 4 <= rate.num_pairs <= 4 * 50
    assert rate.flow_s >= 0.01
    assert rate.store_s > 0


def test_a_pair_that_takes_long_is_measured_once_a_clip(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinetics_tools.extract.estimate.BUDGET_S", 0.04)
    plan = slow_plan(clips, tmp_path / "out", 0.05, monkeypatch)

    rate = measure(todo(clips, plan), plan)

    assert rate is not None
    assert rate.num_pairs == 4


def test_clips_cost_their_making_and_those_that_are_kept_their_check(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    plan = slow_plan(clips, tmp_path / "out", 0.0, monkeypatch, tmp_dir=scratch)
    kept = [
        replace(u, clips=tuple(c for c in u.clips if "long" not in c.key))
        for u in todo(clips, plan)
    ]
    larger = replace(plan, rgb=replace(plan.rgb, short_side=80))

    as_they_are, made_again = measure(kept, plan), measure(kept, larger)

    assert as_they_are is not None
    assert made_again is not None
    assert 0 < as_they_are.rgb_s < made_again.rgb_s
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_where_no_clip_can_be_decoded_nothing_is_measured(clips: Path, tmp_path: Path) -> None:
    for clip in (clips / "running").iterdir():
        clip.write_bytes(b"torn")
    plan = plan_for(clips, tmp_path / "out")
    assert measure(todo(clips, plan), plan) is None
    said = run_command("extract-flow", clips, tmp_path / "out", "--dry-run")
    assert said.stdout.splitlines()[1:] == ["to do: 1, of 7 samples, about 0 pairs"]


def test_pairs_are_estimated_of_what_is_to_do(clips: Path, tmp_path: Path) -> None:
    plan = plan_for(clips, tmp_path / "out", samples_per_shard=7)
    # Five clips of 25 frames, one of 4 s: at 25 a second 100.
    assert estimate_pairs(todo(clips, plan), plan) == 5 * 24 + 99
    assert run(clips, tmp_path / "out", samples_per_shard=7).num_made == 5 * 24 + 99


def test_what_headers_say_is_not_decoded_and_probing_ends_in_time(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(clips, tmp_path / "out", samples_per_shard=7)
    units = todo(clips, plan)
    with monkeypatch.context() as changed:
        changed.setattr(decode, "count_frames", None)  # a call would fail
        assert estimate_pairs(units, plan) == 5 * 24 + 99
    monkeypatch.setattr(estimate, "PROBE_S", 0.0)
    probed: list[Path] = []
    probe = decode.probe

    def counted(path: Path) -> decode.Video:
        probed.append(path)
        return probe(path)

    monkeypatch.setattr(decode, "probe", counted)
    estimate_pairs(units, plan)
    assert len(probed) == 1


def test_a_clip_whose_header_tells_no_length_is_decoded(
    clips: Path, tmp_path: Path, ffmpeg: Path
) -> None:
    bare = tmp_path / "bare.h264"
    words = f"-loglevel error -i {clips}/running/0.mp4 -c copy {bare}"
    subprocess.run([ffmpeg, *words.split()], check=True)
    assert decode.probe(bare).duration_s is None
    plan = plan_for(clips, tmp_path / "out", samples_per_shard=7)
    clip = replace(read_clips(clips).clips[0], path=bare)
    assert estimate_pairs([ShardUnit("all", 0, (clip,))], plan) == 24


def test_time_is_shared_among_processors_and_gpus() -> None:
    rate = Rate(device="cpu", num_clips=1, num_pairs=1, flow_s=0.02, store_s=0.004, rgb_s=0.006)
    assert rate.seconds(1000, jobs=1, num_gpus=0) == pytest.approx(30)
    assert rate.seconds(1000, jobs=4, num_gpus=0) == pytest.approx(7.5)
    assert rate.seconds(1000, jobs=4, num_gpus=0, rgb_share=0) == pytest.approx(6)
    fast = replace(rate, device="cuda:0", flow_s=0.0005)
    # Two GPUs compute 4,000 pairs a second, eight processors decode and encode 2,000.
    assert fast.seconds(1000, jobs=8, num_gpus=2, rgb_share=0) == pytest.approx(0.5)
    assert fast.seconds(1000, jobs=8, num_gpus=2) == pytest.approx(0.5 + 0.75)
    assert fast.seconds(1000, jobs=64, num_gpus=2, rgb_share=0) == pytest.approx(0.25)


def test_a_dry_run_finds_that_the_cluster_cannot_be_used(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = (clips, tmp_path / "out", "--engine", "ray", "--dry-run")
    said = run_command("extract-flow", *options, "--device", "cuda")
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1].startswith("error: no node of the Ray cluster has a GPU")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    said = run_command("extract-flow", *options)
    assert said.returncode == 2
    assert "RAY_ADDRESS=127.0.0.1:1 is not a Ray cluster that can be used" in said.stderr
    assert not (tmp_path / "out").exists()
