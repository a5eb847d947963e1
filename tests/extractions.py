"""Runs of extract-flow on small clips: plans, and commands that are killed."""

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from kinetics_tools.extract.clips import ClipSet, read_clips
from kinetics_tools.extract.plan import ExtractPlan
from kinetics_tools.extract.run import ExtractSummary, open_extraction
from kinetics_tools.flow.methods import FlowRecipe, make_method
from kinetics_tools.media.encode import ffmpeg_version, find_ffmpeg
from kinetics_tools.media.recipe import ClipRecipe


def plan_for(clips: Path, out: Path, **changes: Any) -> ExtractPlan:
    """A plan that works in this process, with two samples a shard, each of its own size."""
    binary = find_ffmpeg()
    version = ffmpeg_version(binary)
    plan = ExtractPlan(
        out=out,
        labels=read_clips(clips).labels,
        rgb=ClipRecipe(short_side=None, enlarge=True, ffmpeg=version),
        flow=FlowRecipe(method="tvl1", parameters=make_method("tvl1").as_json()),
        name="tvl1",
        binary=binary,
        samples_per_shard=2,
        jobs=0,
    )
    return replace(plan, **changes)


def run(clips: Path, out: Path, **changes: Any) -> ExtractSummary:
    """Extract in this process."""
    return extract(read_clips(clips), plan_for(clips, out, **changes))


def extract(clips: ClipSet, plan: ExtractPlan) -> ExtractSummary:
    """All that the command does with a plan."""
    with open_extraction(clips, plan) as extraction:
        num_samples = sum(len(shard.clips) for shard in extraction.shards)
        assert num_samples == extraction.num_samples
        return extraction.finish()


def until_at_work(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait for the first scratch folder of a shard, or for the command's end."""
    scratch = f".scratch/*-{process.pid}/*-*-*"  # of this process, not of one killed before
    while process.poll() is None and not any(out.glob(scratch)):
        time.sleep(0.005)


def files_below(folder: Path) -> frozenset[str]:
    """Names of all files there, scratch files among them; others may come and go meanwhile."""
    return frozenset(f"{parent}/{name}" for parent, _, names in os.walk(folder) for name in names)


def steps_of(process: subprocess.Popen[bytes], out: Path) -> Iterator[None]:
    """Yield whenever a command at work has made, named or removed files, until it ends."""
    until_at_work(process, out)
    before = files_below(out)
    while process.poll() is None:
        time.sleep(0.002)
        there = files_below(out)
        if there != before:
            before = there
            yield


def killed(
    words: Sequence[str], env: dict[str, str], out: Path, *, times: int
) -> set[frozenset[str]]:
    """Kill -9 a command so many times while it makes shards, then let it end.

    How many steps it takes, and how long they are, is seen first; each kill comes at a random
    moment after a random one of them, so that a fast machine is met in as many states as a slow
    one. Whenever the command ends before it is killed, it has to begin from nothing again.

    Returns:
        The states that the kills left: names of the files that were there, but for scratch files.
    """
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, env=env, **quiet) as process:
        start = time.monotonic()
        num_steps = sum(1 for _ in steps_of(process, out))
        step_s = (time.monotonic() - start) / num_steps
    most = max(num_steps // 3, 1)  # what is done stays done: several kills to a whole run
    random = Random(times)
    states = set()
    while times:
        if (out / "dataset.json").exists():
            shutil.rmtree(out)
        with subprocess.Popen(words, env=env, **quiet) as process:
            for _ in itertools.islice(steps_of(process, out), random.randint(1, most)):
                pass
            try:
                assert process.wait(random.uniform(0, step_s)) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                there = map(os.path.basename, files_below(out))
                states.add(frozenset(name for name in there if not name.startswith(".")))
                times -= 1
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return states
