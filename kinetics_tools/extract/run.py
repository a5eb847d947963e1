"""The stage from clips to shards: RGB samples, and flow computed from exactly those samples.

A unit is one shard. Its RGB is made first, unless it is current, and its flow from the very frames
that its RGB decodes to: so both always match, and a second method needs no clips. One bad clip
leaves a gap with a reason; it never stops a run.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from kinetics_tools.core import engine, system
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import (
    OTHER_TMP_DIR,
    digest,
    hold_lock,
    remove_leftovers,
    require_free,
    require_locks,
    scratch_folder,
)
from kinetics_tools.core.units import Crash
from kinetics_tools.dataset.layout import MISSING
from kinetics_tools.extract.clips import ClipSet
from kinetics_tools.extract.plan import (
    ExtractPlan,
    ShardState,
    ShardUnit,
    pending,
    plan_shards,
    read_states,
)
from kinetics_tools.extract.worker import make_shard
from kinetics_tools.flow.methods import make_method
from kinetics_tools.shards import writer
from kinetics_tools.shards.records import (
    RGB,
    ExpectedSplit,
    FolderRecipe,
    FolderRecords,
    ShardLayout,
    StreamRecipe,
    shards_present,
)

logger = logging.getLogger(__name__)
CRASHED = "crashed"  # the reason of a gap, in summaries: no file has it


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractSummary:
    """What a part holds after a run.

    Attributes:
        num_expected: samples of this part.
        num_samples: how many of them have RGB and flow.
        num_pairs: their frame pairs.
        gaps: how many of the others there are, by reason.
        num_retryable: how many of the others another run may make.
        num_made: frame pairs whose flow this run computed.
        seconds: that this run took.
        is_indexed: whether all parts are done and the index is written.
        devices: number of flow shards by the kind of device that computed them.
    """

    num_expected: int
    num_samples: int
    num_pairs: int
    gaps: Mapping[str, int]
    num_retryable: int
    num_made: int = 0
    seconds: float = 0.0
    is_indexed: bool = False
    devices: Mapping[str, int] = field(default_factory=dict)


class Extraction:
    """A run on a folder of shards, which is locked for it; see `open_extraction`.

    Attributes:
        plan: how shards are made.
        todo: the shards that this run makes, the largest first.
        shards: iterator that makes those in `todo` and yields each when it is made, or left to the
            next run. It raises KineticsError where a machine has no such device, or another version
            of the method; OSError when the disk is full.
    """

    def __init__(
        self, plan: ExtractPlan, units: Sequence[ShardUnit], records: FolderRecords
    ) -> None:
        self.plan = plan
        self._start = time.monotonic()
        self._records = records
        self._states = read_states(units, plan, records)
        # The largest first: so all processes end at about the same time.
        self.todo = sorted(pending(self._states, plan), key=lambda state: -state.unit.num_bytes)
        self.shards = self._make_shards()
        self._num_made = 0
        self._crashed: set[ShardUnit] = set()

    @property
    def num_samples(self) -> int:
        """How many samples the shards in `todo` are to have."""
        return sum(len(state.unit.clips) for state in self.todo)

    def _make_shards(self) -> Generator[ShardUnit, None, None]:
        plan = self.plan
        devices, jobs = plan.devices, plan.jobs
        if plan.engine == "local":
            if self.todo:
                prepare(plan)
            if jobs is None:
                jobs = system.num_processors()
            if devices == ("cpu",):
                devices *= max(jobs, 1)
            devices = devices[: max(len(self.todo), 1)]
        units = [state.unit for state in self.todo]
        with scratch_folder(plan.tmp_dir or plan.out) as scratch:
            work = partial(make_shard, plan=plan, scratch=scratch)
            made = engine.run(units, work, jobs=jobs, engine=plan.engine, devices=devices)
            with closing(made):
                for unit, result in made:
                    if isinstance(result, Crash):
                        logger.warning(
                            "shard %d of split %s: left to the next run: %s",
                            *(unit.number, unit.split, result.detail),
                        )
                        self._crashed.add(unit)
                    else:
                        self._num_made += result
                    yield unit

    def finish(self) -> ExtractSummary:
        """Write the index if all parts are done; say what this part holds.

        Only the sidecars of shards that this or another part made meanwhile are read again; a part
        that had nothing to do looks for them too.

        Raises:
            ShardError: a sidecar is damaged, or as `write_index` raises it.
        """
        plan = self.plan
        undone = [state for state in self._states if not state.is_done]
        units = {state.unit for state in (*self.todo, *undone)}
        made = [unit.shard(plan, stream) for unit in units for stream in (RGB, plan.stream)]
        self._records.refresh(made)
        self._states = [state.unit.state(plan, self._records) for state in self._states]
        is_indexed = all(s.is_done or s.unit in self._crashed for s in self._states)
        if is_indexed:
            writer.write_index(self._records)
        return replace(
            summarise(plan.part.of(self._states)),
            num_made=self._num_made,
            seconds=time.monotonic() - self._start,
            is_indexed=is_indexed,
        )


@contextmanager
def open_extraction(clips: ClipSet, plan: ExtractPlan) -> Iterator[Extraction]:
    """Lock OUT for the block, and find what is to be made there; may be repeated at any time.

        with open_extraction(clips, plan) as extraction:
            for unit in extraction.shards:
                print(unit)
            summary = extraction.finish()

    Args:
        clips: what OUT is to hold of the splits that they are in.
        plan: how.

    Raises:
        OutError: OUT is in use, or holds shards of other clips or labels, or by another recipe.
        ShardError: it holds something that breaks the schema.
    """
    with hold_lock(plan.out, str(plan.part)):
        units = plan_shards(clips.clips, plan)
        remove_leftovers(plan.out)
        records = FolderRecords(plan.out)
        recipe = _checked_recipe(units, plan, records)
        writer.register_recipes(records, recipe)
        for split, expected in recipe.splits.items():
            writer.remove_beyond(plan.out, split, expected.shards)
        extraction = Extraction(plan, units, records)
        _log_recomputed(extraction)
        with closing(extraction.shards):
            yield extraction


def rehearse(clips: ClipSet, plan: ExtractPlan) -> list[ShardState]:
    """What is there of each shard of all parts, before a run that would begin now.

    It raises what `open_extraction` and the beginning of the run would raise, and writes nothing.
    """
    require_free(plan.out, str(plan.part))
    units = plan_shards(clips.clips, plan)
    records = FolderRecords(plan.out)
    writer.agree(records, _checked_recipe(units, plan, records))
    states = read_states(units, plan, records)
    require_locks(plan.tmp_dir or plan.out, OTHER_TMP_DIR)
    if plan.engine != "local":
        nothing: Sequence[ShardUnit] = ()
        for _ in engine.run(
            nothing, make_shard, jobs=plan.jobs, engine=plan.engine, devices=plan.devices
        ):
            pass  # without units an engine begins and ends
    return states


def _checked_recipe(
    units: Sequence[ShardUnit], plan: ExtractPlan, records: FolderRecords
) -> FolderRecipe:
    """What this run makes; raises OutError where shards hold clips that are not expected."""
    keys: dict[str, list[str]] = {}
    num_shards: Counter[str] = Counter(unit.split for unit in units)
    for unit in units:
        keys.setdefault(unit.split, []).extend(clip.key for clip in unit.clips)
    if not plan.force:
        _refuse_other_clips(records, keys)
    return FolderRecipe(
        labels=plan.labels,
        layout=ShardLayout(samples_per_shard=plan.samples_per_shard, seed=plan.seed),
        recipes={
            RGB: StreamRecipe.of(plan.rgb.as_json()),
            plan.stream: StreamRecipe.of(plan.flow.as_json()),
        },
        splits={
            split: ExpectedSplit(expected=len(own), shards=num_shards[split], keys=digest(own))
            for split, own in keys.items()
        },
    )


def prepare(plan: ExtractPlan) -> None:
    """Let the method compile what it has to, once: the processes then find it in its cache."""
    if "cpu" in plan.devices:
        make_method(plan.flow.method).prepare("cpu")


def _refuse_other_clips(records: FolderRecords, keys: Mapping[str, Iterable[str]]) -> None:
    """Raise OutError where shards hold clips that are no longer expected; a set may grow."""
    for split, expected in keys.items():
        present: set[str] = set()
        for shard in shards_present(records.folder, RGB, split):
            sidecar = records.sidecar(shard)
            present.update(() if sidecar is None else sidecar.keys)
        lost = present.difference(expected)
        if lost:
            raise OutError(
                f"{records.folder}: the shards of split {split} also hold {len(lost)} clips that "
                f"CLIPS does not name now, such as {min(lost)}; give the same CLIPS, another OUT, "
                "or --force"
            )


def _log_recomputed(extraction: Extraction) -> None:
    plan = extraction.plan
    shards = [state.unit.shard(plan, RGB) for state in extraction.todo if state.rgb is None]
    num_present = sum(shard.exists() for shard in shards)
    if num_present and not plan.force:
        logger.info(
            "%d existing shards are recomputed, with all of their flow: their clips are not "
            "the same any more (new keys move others from shard to shard)",
            num_present,
        )


def summarise(states: Iterable[ShardState]) -> ExtractSummary:
    """What some shards hold."""
    gaps: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    num_expected = num_samples = num_pairs = 0
    for state in states:
        num_expected += len(state.unit.clips)
        if state.rgb is None or state.flow is None:
            gaps[CRASHED] += len(state.unit.clips)
            continue
        devices[state.flow.device] += 1
        num_samples += len(state.flow.members)
        num_pairs += sum(member.frames - 1 for member in state.flow.members)
        gaps.update(failure.reason for failure in state.rgb.failed.values())
    return ExtractSummary(
        num_expected=num_expected,
        num_samples=num_samples,
        num_pairs=num_pairs,
        gaps=dict(sorted(gaps.items())),
        num_retryable=gaps[MISSING] + gaps[CRASHED],  # a damaged file stays as it is
        devices=dict(sorted(devices.items())),
    )
