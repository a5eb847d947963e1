"""What a run of extract-flow makes: which clips share a shard, and which shards are current."""

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinetics_tools.core.files import (
    digest,
)
from kinetics_tools.core.units import WHOLE, Part
from kinetics_tools.extract.clips import Clip
from kinetics_tools.flow.methods import FlowRecipe
from kinetics_tools.media.cut import ClipRecipe
from kinetics_tools.shards import reader
from kinetics_tools.shards.reader import RGB, shard_path
from kinetics_tools.shards.writer import Sidecar

MIN_FRAMES = 2  # fewer have no flow
MIN_SIDE_PX = 4  # smaller pictures have no neighbourhood to speak of, and methods differ in them
CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractPlan:
    """How a run makes shards. Sent to every worker process.

    Attributes:
        out: the folder to fill.
        labels: the dataset's full list.
        rgb: recipe of the RGB samples.
        flow: recipe of the flow.
        name: of the flow.
        devices: as torch names them; each GPU has one process. With the engine ray "auto", "cuda"
            or "cpu", which each task's node makes a device of.
        binary: the ffmpeg program.
        samples_per_shard: expected keys in a shard.
        seed: of the order of keys.
        force: make every shard anew.
        part: which share of the shards.
        jobs: clips at once on this machine; on a CPU each has a process as long as there are enough
            shards, on GPUs they are threads of the GPU's process. None for one a processor; 0 works
            in this process. With the engine ray: shards at once, None for what the cluster can do.
            The shards' bytes do not depend on it.
        engine: a name in `engine.ENGINES`.
        tmp_dir: for scratch files; None for beside the shards.
    """

    out: Path
    labels: tuple[str, ...]
    rgb: ClipRecipe
    flow: FlowRecipe
    name: str
    binary: Path
    devices: tuple[str, ...] = ("cpu",)
    samples_per_shard: int = 64
    seed: int = 0
    force: bool = False
    part: Part = WHOLE
    jobs: int | None = 1
    engine: str = "local"
    tmp_dir: Path | None = None

    @property
    def stream(self) -> str:
        """The flow's stream."""
        return reader.flow_stream(self.name)


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """One shard to be: its clips, in order."""

    split: str
    number: int
    clips: tuple[Clip, ...] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Of its clips' files: about how much work it is."""
        total = 0
        for clip in self.clips:
            with contextlib.suppress(FileNotFoundError):  # since they were listed
                total += clip.path.stat().st_size
        return total

    def shard(self, plan: ExtractPlan, name: str) -> Path:
        """Where its tar of the stream `name` lies."""
        return shard_path(plan.out, self.split, name, self.number)

    def rgb_inputs(self, plan: ExtractPlan) -> str:
        """Digest of everything that its RGB is made from."""
        clips = [[c.key, c.label, c.source, c.sha256 or c.reason] for c in self.clips]
        return digest({"recipe": plan.rgb.as_json(), "labels": plan.labels, "clips": clips})

    def flow_inputs(self, plan: ExtractPlan, rgb: Sidecar) -> str:
        """Digest of everything that its flow is made from."""
        members = [[m.key, m.label, m.frames, m.sha256] for m in rgb.members]
        keys = list(rgb.keys)
        recipe = plan.flow.as_json()
        return digest({"recipe": recipe, "labels": plan.labels, "keys": keys, "rgb": members})

    def current_rgb(self, plan: ExtractPlan) -> Sidecar | None:
        """The sidecar of its RGB, if that need not be made."""
        sidecar = Sidecar.read(self.shard(plan, RGB))
        if sidecar is None or not sidecar.is_current(self.shard(plan, RGB), self.rgb_inputs(plan)):
            return None
        return sidecar

    def current_flow(self, plan: ExtractPlan, rgb: Sidecar) -> Sidecar | None:
        """The sidecar of its flow, if that need not be made."""
        shard = self.shard(plan, plan.stream)
        sidecar = Sidecar.read(shard)
        if sidecar is None or not sidecar.is_current(shard, self.flow_inputs(plan, rgb)):
            return None
        return sidecar

    def is_done(self, plan: ExtractPlan) -> bool:
        """Whether RGB and flow are current."""
        rgb = self.current_rgb(plan)
        return rgb is not None and self.current_flow(plan, rgb) is not None


def plan_shards(clips: Iterable[Clip], plan: ExtractPlan) -> list[ShardUnit]:
    """All shards to be, of all parts.

    Which keys share a shard follows from the expected keys alone, so nothing moves when a missing
    clip turns up; their order is that of a seeded hash, so that every shard mixes classes.
    """
    splits: dict[str, list[Clip]] = {}
    for clip in clips:
        splits.setdefault(clip.split, []).append(clip)
    units = []
    for split, own in sorted(splits.items()):
        own.sort(key=lambda c: hashlib.sha256(f"{plan.seed}:{c.key}".encode()).digest())
        for number, start in enumerate(range(0, len(own), plan.samples_per_shard)):
            units.append(
                ShardUnit(split, number, tuple(own[start : start + plan.samples_per_shard]))
            )
    return units


def pending(units: Sequence[ShardUnit], plan: ExtractPlan) -> list[ShardUnit]:
    """This part's units that are to be made."""
    return [unit for unit in plan.part.of(units) if plan.force or not unit.is_done(plan)]
