"""What a training will take, told before it: steps, epochs, hours, and a recipe that fits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import nn

from kinetics_bench.data.loader import BatchPlan, ClipDataset
from kinetics_bench.device import Machine
from kinetics_bench.recipes import RECIPES, OneCycle, Recipe
from kinetics_tools.core.console import time_text

MIN_PASSES: Final = 200  # of a process, for a measurement of some passes to cost one in a hundred
MANY_EPOCHS: Final = 1000  # the recipes `paper` are 180 to 470 epochs of Kinetics' 240,000 clips
SMALL: Final = "small"
SLOW_S: Final = 5.0  # after a pass of such a duration another would tell no more
NUM_READ: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a training will do and take.

    Attributes:
        stream: of the network.
        recipe: its name and the start of its hash.
        num_clips: that it is trained on, each once per epoch.
        num_held_out: that it is not trained on, and checked with.
        num_steps: of all, at most.
        steps_done: of them.
        num_epochs: of all, at most.
        finished: whether no step is ahead: all are done, or the loss saturated before the last.
        seconds: that the steps ahead take, by a measured rate; 0 where none are.
        clips_per_second: that rate, of all processes; 0: not measured.
    """

    stream: str
    recipe: str
    num_clips: int
    num_held_out: int
    num_steps: int
    steps_done: int
    num_epochs: float
    finished: bool = False
    seconds: float = 0.0
    clips_per_second: float = 0.0

    @property
    def steps_ahead(self) -> int:
        """Steps that are still to be done, at most."""
        return 0 if self.finished else self.num_steps - self.steps_done

    def cells(self) -> dict[str, str]:
        """The plan as a row of a table."""
        return {
            "stream": self.stream,
            "recipe": self.recipe,
            "clips": f"{self.num_clips:,}",
            "held out": f"{self.num_held_out:,}",
            "epochs": f"{self.num_epochs:,.{0 if self.num_epochs >= 10 else 1}f}",
            "steps": f"{self.num_steps:,}",
            "done": f"{self.steps_done:,}",
            "ahead": f"{self.steps_ahead:,}",
            "clips/s": f"{self.clips_per_second:.3g}" if self.clips_per_second else "-",
            "takes about": time_text(self.seconds),
        }


def length_text(plan: BatchPlan, num_steps: int, step: int) -> str:
    """The length of a training: steps and epochs, and how many of the steps are done."""
    epochs = num_steps / plan.steps_per_epoch
    size = min(plan.recipe.batch_size, plan.num_clips)
    text = (
        f"{num_steps:,} steps of {size:,} clips: {epochs:,.{0 if epochs >= 10 else 1}f} epochs of "
        f"{plan.num_clips:,} clips"
    )
    return f"{text}; {step:,} steps are done" if step else text


def better_recipe(plan: BatchPlan, num_steps: int, arch: str, stream: str) -> str:
    """Why another recipe suits the training set better, and which; empty if none does."""
    epochs = num_steps / plan.steps_per_epoch
    small = RECIPES[SMALL].get(arch, {}).get(stream)
    counts_steps = plan.recipe.schedule.unit == "steps"
    if small is None or not counts_steps or epochs <= MANY_EPOCHS:
        return ""
    assert isinstance(small.schedule, OneCycle)
    return (
        f"recipe {plan.recipe.name} counts steps, for a larger set, and is "
        f"{epochs:,.0f} epochs of these {plan.num_clips:,} clips; --recipe {SMALL} "
        f"({small.schedule.epochs} epochs) fits a small set"
    )


def enlarged(recipe: Recipe, short_side: int | None) -> str:
    """Why the frames of the shards are too small for a recipe; empty if they are not.

    Args:
        recipe: of the training.
        short_side: of the frames in the shards, pixels; None: as the videos had it.
    """
    if short_side is None or short_side >= recipe.crop_px:
        return ""
    return (
        f"frames in the shards have a short side of {short_side} px and are enlarged to "
        f"{recipe.short_side} px, as recipe {recipe.name} crops {recipe.crop_px} px; make shards "
        f"with --short-side {recipe.short_side}, or take a recipe of smaller crops"
    )


def num_passes(plan: BatchPlan, num_steps: int) -> int:
    """Forward and backward passes of each process in so many steps."""
    recipe = plan.recipe
    size = min(recipe.batch_size, plan.num_clips)
    return num_steps * -(-size // (recipe.micro_batch_size * plan.num_processes))


def learning_seconds(
    model: nn.Module, empty_pass: Callable[[int], object], recipe: Recipe, machine: Machine
) -> float:
    """Seconds of a forward and backward pass for each of its clips.

    The last of up to three passes is timed. Gradients are left behind, weights and running
    statistics are as before.

    Args:
        model: what is trained, in training mode.
        empty_pass: a pass on so many empty clips.
        recipe: of the training.
        machine: where it is trained.
    """
    statistics = {name: values.clone() for name, values in model.named_buffers()}
    learning_s = 0.0
    # The first passes warm up, each on a size that is new; two clips, for batch norm.
    full = recipe.micro_batch_size
    sizes = (min(2, full), full, full)
    for num in sizes[:2] if machine.compiled else ():
        empty_pass(num)  # compiles it
    for num in sizes:
        start = time.monotonic()
        empty_pass(num)
        machine.synchronize()
        learning_s = (time.monotonic() - start) / num
        # All processes stop alike: one that goes on alone would wait for the others' values.
        if any(machine.gather(learning_s * num > SLOW_S)):
            break
    for name, values in model.named_buffers():
        values.copy_(statistics[name])
    return learning_s


def reading_seconds(clips: ClipDataset) -> float:
    """Seconds that this process needs to read a view of a clip."""
    start = time.monotonic()
    for number in range(min(NUM_READ, len(clips))):
        clips[0, number]
    return (time.monotonic() - start) / min(NUM_READ, len(clips))
