"""What a run of extract-flow makes: which clips share a shard, and which shards are current."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinetics_tools.core.files import digest
from kinetics_tools.core.units import WHOLE, Part
from kinetics_tools.extract.clips import Clip
from kinetics_tools.flow.methods import FlowRecipe
from kinetics_tools.media.recipe import ClipRecipe
from kinetics_tools.shards.records import RGB, FolderRecords, Sidecar, flow_stream, shard_path

MIN_FRAMES = 2  # fewer have no flow
MIN_SIDE_PX = 4  # the methods differ on smaller frames


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractPlan:
    """How a run makes shards. Sent to every worker process.

    Attributes:
        out: the folder to fill.
        labels: the dataset's full label list.
        rgb: recipe of the RGB samples.
        flow: recipe of the flow.
        name: of the flow.
        devices: as torch names them; each GPU has one process. With the engine ray "auto", "cuda"
            or "cpu": each node chooses its device.
        binary: path of the ffmpeg program.
        samples_per_shard: expected keys per shard.
        seed: of the order of the keys.
        force: make every shard again.
        part: which share of the shards.
        jobs: clips at once on this machine: on a CPU each in a process, as long as there are enough
            shards; on GPUs in threads of the GPU's process. None for one per processor; 0 works in
            this process. With the engine ray: shards at once, None for as many as the cluster has
            room for. The bytes of the shards do not depend on it.
        engine: a name in `core.engine.ENGINES`.
        tmp_dir: for scratch files; None for the folder of shards.
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
        return flow_stream(self.name)


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """A shard that a run is to hold: the unit of work.

    Attributes:
        split: of all its clips.
        number: of the shard in its split, from 0.
        clips: that are expected in it, in order.
    """

    split: str
    number: int
    clips: tuple[Clip, ...] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Size of its clips' files: about how much work it is."""
        total = 0
        for clip in self.clips:
            with contextlib.suppress(OSError):  # removed, a loop of links: its reader says which
                total += clip.path.stat().st_size
        return total

    def shard(self, plan: ExtractPlan, stream: str) -> Path:
        """Path of its tar of a stream."""
        return shard_path(plan.out, self.split, stream, self.number)

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

    def current_rgb(self, plan: ExtractPlan, records: FolderRecords) -> Sidecar | None:
        """The sidecar of its RGB; None if that is to be made."""
        sidecar = records.whole_sidecar(self.shard(plan, RGB))
        return sidecar if sidecar and sidecar.inputs == self.rgb_inputs(plan) else None

    def current_flow(
        self, plan: ExtractPlan, records: FolderRecords, rgb: Sidecar
    ) -> Sidecar | None:
        """The sidecar of its flow, computed from this RGB; None if that is to be made."""
        sidecar = records.whole_sidecar(self.shard(plan, plan.stream))
        return sidecar if sidecar and sidecar.inputs == self.flow_inputs(plan, rgb) else None

    def state(self, plan: ExtractPlan, records: FolderRecords) -> ShardState:
        """What is there of it.

        Raises:
            ShardError: a sidecar has another schema version, or is damaged.
        """
        rgb = self.current_rgb(plan, records)
        return ShardState(self, rgb, self.current_flow(plan, records, rgb) if rgb else None)


@dataclass(frozen=True, slots=True)
class ShardState:
    """What is there of a shard.

    Attributes:
        unit: the shard.
        rgb: the sidecar of its RGB; None if that is to be made.
        flow: the sidecar of its flow; None if that is to be made.
    """

    unit: ShardUnit
    rgb: Sidecar | None
    flow: Sidecar | None

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to make."""
        return self.flow is not None


def plan_shards(clips: Iterable[Clip], plan: ExtractPlan) -> list[ShardUnit]:
    """All shards that the run is to hold, of all parts.

    Which keys share a shard depends on the expected keys alone, so nothing moves when a missing
    clip is found later; their order is that of a seeded hash, so that every shard mixes classes.
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


def read_states(
    units: Sequence[ShardUnit], plan: ExtractPlan, records: FolderRecords
) -> list[ShardState]:
    """What is there of each shard, of all those in the order of `plan_shards`.

    With `plan.force` the sidecars of this part's shards are not read: a damaged one is made again.

    Raises:
        ShardError: a sidecar has another schema version, or is damaged.
    """
    forced = set(plan.part.of(units)) if plan.force else set()
    return [
        ShardState(unit, None, None) if unit in forced else unit.state(plan, records)
        for unit in units
    ]


def pending(states: Sequence[ShardState], plan: ExtractPlan) -> list[ShardState]:
    """This part's shards that are to be made, of all shards in the order of `plan_shards`."""
    return [state for state in plan.part.of(states) if plan.force or not state.is_done]
