"""The stage from clips to shards: RGB samples, and flow computed from exactly those samples.

A unit is one shard. Its RGB is made first, unless it is current, and its flow from the very frames
that its RGB decodes to: so both always match, and a second method needs no clips. One bad clip
leaves a gap with a reason; it never stops a run.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kinetics_tools.core import engine, system
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import digest, hold_lock, remove_leftovers, scratch_folder
from kinetics_tools.core.units import Crash, Results
from kinetics_tools.dataset.layout import MISSING
from kinetics_tools.extract.clips import ClipSet
from kinetics_tools.extract.plan import CRASHED, ExtractPlan, ShardUnit, pending, plan_shards
from kinetics_tools.extract.worker import make_shard
from kinetics_tools.flow.methods import make_method
from kinetics_tools.shards import writer
from kinetics_tools.shards.reader import RGB

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractSummary:
    """How a part stands after a run.

    Attributes:
        num_expected: samples of this part.
        num_samples: of them, with RGB and flow.
        num_pairs: their frame pairs.
        gaps: of the others, how many by reason.
        num_retryable: of the others, how many may come with another run.
        num_made: frame pairs whose flow this run computed.
        seconds: that this run took.
        is_indexed: whether all parts are done and the index is written.
        devices: of the flow shards, how many by the kind of device that computed them.
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


Finished = Iterator[tuple[ShardUnit, Any]]


def extract(
    clips: ClipSet,
    plan: ExtractPlan,
    *,
    show: Callable[[Finished, int], Iterable[tuple[ShardUnit, Any]]],
) -> ExtractSummary:
    """Make the shards that are not current; safe to call again at any time.

    Args:
        clips: what OUT is to hold of the splits that they are of.
        plan: how.
        show: wraps the iterator of finished units, given how many samples they will have, to
            show progress.

    Raises:
        OutError: OUT is in use, or holds shards of other labels or another recipe.
        ShardError: it holds something that breaks the schema.
    """
    start = time.monotonic()
    with hold_lock(plan.out, str(plan.part)):
        units = plan_shards(clips.clips, plan)
        remove_leftovers(plan.out)
        if not plan.force:
            _refuse_other_clips(units, plan)
        counts = _claim(units, plan)
        for split, count in counts.items():
            writer.remove_beyond(plan.out, split, count["shards"])
        # The largest first: so all processes end at about the same time.
        todo = sorted(pending(units, plan), key=lambda unit: -unit.num_bytes)
        _say_what_is_made_anew(todo, plan)
        num_made = 0
        crashed = set()
        with (
            scratch_folder(plan.tmp_dir or plan.out) as scratch,
            closing(_made(todo, plan, scratch)) as finished,
        ):
            for unit, result in show(finished, sum(len(unit.clips) for unit in todo)):
                if isinstance(result, Crash):
                    logger.warning("%s: left to the next run: %s", unit, result.detail)
                    crashed.add((unit.split, unit.number))
                else:
                    num_made += result
        is_indexed = all(
            (unit.split, unit.number) in crashed or unit.is_done(plan) for unit in units
        )
        if is_indexed:
            writer.write_index(plan.out)
    return summarise(
        plan.part.of(units),
        plan,
        num_made=num_made,
        seconds=time.monotonic() - start,
        is_indexed=is_indexed,
    )


def _made(todo: Sequence[ShardUnit], plan: ExtractPlan, scratch: Path) -> Results[ShardUnit, int]:
    """Make the shards; yield each when it is made."""
    devices, jobs = plan.devices, plan.jobs
    if plan.engine == "local":
        if todo:
            prepare(plan)
        if jobs is None:
            jobs = system.num_processors()
        if devices == ("cpu",):
            devices *= max(jobs, 1)
        devices = devices[: max(len(todo), 1)]
    work = partial(make_shard, plan=plan, scratch=scratch)
    return engine.run(todo, work, jobs=jobs, engine=plan.engine, devices=devices)


def prepare(plan: ExtractPlan) -> None:
    """Let the method compile what it has to, once: the processes then find it in its cache."""
    if "cpu" in plan.devices:
        make_method(plan.flow.method).prepare("cpu")


def _claim(units: Sequence[ShardUnit], plan: ExtractPlan) -> dict[str, dict[str, int]]:
    """Write down what OUT will hold; return expected samples and shards by split."""
    counts: dict[str, dict[str, int]] = {}
    for unit in units:
        count = counts.setdefault(unit.split, {"expected": 0, "shards": 0})
        count["expected"] += len(unit.clips)
        count["shards"] += 1
    keys: dict[str, list[str]] = {}
    for unit in units:
        keys.setdefault(unit.split, []).extend(clip.key for clip in unit.clips)
    writer.register_recipes(
        plan.out,
        labels=plan.labels,
        layout={"samples_per_shard": plan.samples_per_shard, "seed": plan.seed},
        recipes={RGB: plan.rgb.as_json(), plan.stream: plan.flow.as_json()},
        splits={split: {**counts[split], "keys": digest(keys[split])} for split in counts},
    )
    return counts


def _refuse_other_clips(units: Iterable[ShardUnit], plan: ExtractPlan) -> None:
    """Raise OutError where shards hold clips that are no longer expected; a set may grow."""
    expected: dict[str, set[str]] = {}
    for unit in units:
        expected.setdefault(unit.split, set()).update(clip.key for clip in unit.clips)
    for split, keys in expected.items():
        lost = writer.keys_there(plan.out, split) - keys
        if lost:
            raise OutError(
                f"{plan.out}: the shards of split {split} are also of {len(lost)} clips that CLIPS "
                f"does not name now, such as {min(lost)}; give the same CLIPS, another OUT, or "
                "--force"
            )


def _say_what_is_made_anew(todo: Iterable[ShardUnit], plan: ExtractPlan) -> None:
    shards = [unit.shard(plan, RGB) for unit in todo if unit.current_rgb(plan) is None]
    num_anew = sum(shard.exists() for shard in shards)
    if num_anew and not plan.force:
        logger.info(
            "%d shards that are there are made anew, with all of their flow: their clips are not "
            "the same any more (new keys move others from shard to shard)",
            num_anew,
        )


def summarise(
    units: Iterable[ShardUnit],
    plan: ExtractPlan,
    *,
    num_made: int = 0,
    seconds: float = 0.0,
    is_indexed: bool = False,
) -> ExtractSummary:
    """How some units stand, from their sidecars."""
    gaps: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    num_expected = num_samples = num_pairs = 0
    for unit in units:
        num_expected += len(unit.clips)
        rgb = unit.current_rgb(plan)
        flow = None if rgb is None else unit.current_flow(plan, rgb)
        if rgb is None or flow is None:
            gaps[CRASHED] += len(unit.clips)
            continue
        devices[flow.device] += 1
        num_samples += len(flow.members)
        num_pairs += sum(member.frames - 1 for member in flow.members)
        gaps.update(failure["reason"] for failure in rgb.failed.values())
    return ExtractSummary(
        num_expected=num_expected,
        num_samples=num_samples,
        num_pairs=num_pairs,
        gaps=dict(sorted(gaps.items())),
        num_retryable=gaps[MISSING] + gaps[CRASHED],  # a damaged file stays as it is
        num_made=num_made,
        seconds=seconds,
        is_indexed=is_indexed,
        devices=dict(sorted(devices.items())),
    )
