"""What a training tells before its first step: its length, its hours, a recipe that fits."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.data.loader import BatchPlan
from kinetics_bench.device import Machine
from kinetics_bench.recipes import RECIPES
from kinetics_bench.training import estimate
from kinetics_bench.training.trainer import plan_training, train
from tiny import tiny_recipe
from trainings import CPU, job

KINETICS, UCF101, HMDB51 = 240_000, 9_537, 3_570  # training clips
NETWORKS = [(arch, stream) for arch, known in ARCHS.items() for stream in known.networks]


def told(arch: str, stream: str, recipe: str, num_clips: int) -> tuple[str, str]:
    plan = BatchPlan(num_clips, RECIPES[recipe][arch][stream], 0)
    num_steps = plan.recipe.schedule.num_steps(plan.steps_per_epoch)
    length = estimate.length_text(plan, num_steps, 0)
    return length, estimate.better_recipe(plan, num_steps, arch, stream)


def test_the_papers_recipe_on_ucf101_is_told_in_epochs_with_the_recipe_that_fits() -> None:
    length, better = told("i3d", "rgb", "paper", UCF101)
    assert length == "115,000 steps of 384 clips: 4,600 epochs of 9,537 clips"
    assert better == (
        "recipe paper counts steps, for a larger set, and is 4,600 epochs of these "
        "9,537 clips; --recipe small (40 epochs) fits a small set"
    )
    assert told("i3d", "flow", "paper", 60)[0] == (
        "155,000 steps of 60 clips: 155,000 epochs of 60 clips"
    )
    assert told("i3d", "rgb", "small", 60) == ("400 steps of 6 clips: 40 epochs of 60 clips", "")


@pytest.mark.parametrize(("arch", "stream"), NETWORKS)
def test_a_recipe_is_advised_for_small_sets_alone(arch: str, stream: str) -> None:
    assert told(arch, stream, "paper", KINETICS)[1] == ""
    for num_clips in (UCF101, HMDB51):
        assert "--recipe small (40 epochs)" in told(arch, stream, "paper", num_clips)[1]
        assert told(arch, stream, "small", num_clips)[1] == ""


@pytest.mark.parametrize(("arch", "num_workers"), [("i3d", None), ("convnet-lstm", 2)])
def test_the_hours_are_measured_before_the_first_step_and_change_no_weight(
    arch: str,
    num_workers: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Steps(Machine):
        def all_reduce_sum(self, tensors: Any) -> None:  # noqa: ARG002
            logging.getLogger("kinetics_bench").info("a step or an epoch ended")

    caplog.set_level(logging.INFO, "kinetics_bench")
    recipe = tiny_recipe(arch)
    plain = train(job(tmp_path / "plain", recipe, arch=arch), CPU)
    assert "measured" not in caplog.text  # four passes are over before two would be timed
    caplog.clear()
    monkeypatch.setattr(estimate, "MIN_PASSES", 1)
    given = job(tmp_path / "measured", recipe, arch=arch, num_workers=num_workers)
    measured = train(given, Steps(torch.device("cpu")))
    first, second, third, *_ = caplog.messages
    assert first == "rgb: 4 steps of 4 clips: 2.0 epochs of 8 clips"
    assert second.startswith("rgb: about ")
    assert second.endswith(" clips per second")
    assert third == "a step or an epoch ended"
    assert measured.net.keys() == plain.net.keys()
    for name, values in plain.net.items():
        assert torch.equal(measured.net[name], values), name


def test_a_training_that_is_continued_tells_what_is_done() -> None:
    plan = BatchPlan(9_537, RECIPES["paper"]["i3d"]["rgb"], 0)
    assert estimate.length_text(plan, 115_000, 250).endswith("; 250 steps are done")
    assert estimate.num_passes(plan, 10) == 640
    eight = BatchPlan(9_537, RECIPES["paper"]["i3d"]["rgb"], 0, 3, 8)
    assert estimate.num_passes(eight, 10) == 80


@pytest.mark.parametrize(
    ("short_side", "crop_px", "is_told"), [(128, 224, True), (223, 224, True), (224, 224, False)]
)
def test_shards_smaller_than_the_crop_are_told(
    short_side: int, crop_px: int, is_told: bool
) -> None:
    recipe = RECIPES["paper"]["i3d"]["rgb"]
    assert recipe.crop_px == crop_px
    text = estimate.enlarged(recipe, short_side)
    assert bool(text) == is_told
    assert "\n" not in text
    assert estimate.enlarged(recipe, None) == ""
    if is_told:
        assert f"short side of {short_side} px and are enlarged to 256 px" in text
        assert "make shards with --short-side 256" in text


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_training_tells_that_it_enlarges_frames(
    stream: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The shards keep the size of each video, 48x40 px."""
    for crop_px, times in ((40, 0), (42, 1)):
        caplog.clear()
        recipe = tiny_recipe(stream=stream, crop_px=crop_px, short_side=44)
        plan_training(job(tmp_path, recipe, stream=stream), CPU)
        told = [text for text in caplog.messages if "short side of 40 px" in text]
        assert len(told) == times
