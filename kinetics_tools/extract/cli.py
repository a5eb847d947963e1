"""`extract-flow`: shards of RGB and optical flow from clips."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kinetics_tools.core import cli, console, keys, system
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import KineticsError, OutError
from kinetics_tools.core.units import part_from
from kinetics_tools.extract import export_cli, show_cli
from kinetics_tools.flow.codecs import CODECS, DEFAULT_CODEC
from kinetics_tools.flow.methods import (
    BOUND_PX,
    METHODS,
    FlowMethod,
    FlowRecipe,
    find_devices,
    make_method,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinetics_tools.extract.clips import ClipSet
    from kinetics_tools.extract.plan import ExtractPlan, ShardUnit
    from kinetics_tools.extract.run import ExtractSummary

EXITS = (
    "exit codes: 0 complete; 2 unusable input; 3 finished with permanent gaps only; "
    "4 finished with gaps that may close when asked again; 130 interrupted"
)


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        "extract-flow",
        "Compute optical flow of clips and write sharded tars of RGB and flow, which plain "
        "webdataset reads. Give the same command again to go on where it stopped: only shards "
        "whose clips changed are made again. Another --method or --name adds a second flow beside "
        "the first. `extract-flow index OUT` writes the index of finished shards anew; "
        "`extract-flow export OUT FOLDER` writes them as folders of JPEGs; "
        "`extract-flow show CLIP FILE` draws the flow of one clip.",
        EXITS,
    )
    parser.add_argument(
        "clips",
        metavar="CLIPS",
        type=Path,
        help="folder that kinetics-download filled, or a folder of class folders of videos",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of shards to fill")
    flow = parser.add_argument_group("the flow")
    flow.add_argument(
        "--method",
        type=cli.one_of("flow method", METHODS),
        default="tvl1",
        help=f"one of {', '.join(METHODS)}",
    )
    flow.add_argument("--name", type=_name, help="of the flow in OUT (default: the method's)")
    flow.add_argument(
        "--device",
        default="auto",
        help="auto (all GPUs, else the CPU), cpu, cuda (all GPUs), cuda:0,1 (some); "
        "a process each; with --engine ray auto, cpu or cuda: the cluster's, one GPU a shard",
    )
    flow.add_argument(
        "--bound", type=cli.pixels, default=BOUND_PX, metavar="PX", help="clamp flow to +-PX pixels"
    )
    flow.add_argument(
        "--codec",
        type=cli.one_of("flow codec", CODECS),
        default=DEFAULT_CODEC,
        help="how flow is stored: h264, small, off by a code here and there; ffv1, lossless; jpeg, "
        "as I3D's authors did",
    )
    samples = parser.add_argument_group("the samples")
    samples.add_argument("--split", type=cli.names, default=(), help="only these splits: train,val")
    cli.add_short_side(samples)
    samples.add_argument(
        "--samples-per-shard", type=cli.positive, default=64, metavar="N", help="in one tar"
    )
    parser.add_run(
        jobs="clips at once on this machine (default: one a processor): processes on a CPU, on a "
        "GPU threads of its process. With --engine ray shards at once (default: as many as the "
        "cluster has room for)",
        made="shard",
    )
    parser.add_common()
    return parser


def _name(text: str) -> str:
    if not text or not keys.is_key(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not made of letters, digits, - and _")
    if text == "rgb":
        raise argparse.ArgumentTypeError("'rgb' is the frames' own name; choose another")
    return text


def main() -> NoReturn:
    """The console script."""
    cli.run(partial(_main, sys.argv[1:]))


def _main(argv: list[str]) -> int:
    verb, rest = cli.take_verb(argv, VERBS)
    if verb is not None:
        return VERBS[verb][1](rest)
    options = build_parser().parse_args(rest)
    if options.out.exists() and not options.out.is_dir():
        raise OutError(f"{options.out} is not a folder; choose another OUT")
    method = make_method(options.method)
    devices = _devices(options.device, options.engine, method)
    from kinetics_tools.extract.clips import read_clips
    from kinetics_tools.extract.plan import ExtractPlan
    from kinetics_tools.extract.run import extract
    from kinetics_tools.media import encode
    from kinetics_tools.media.cut import ClipRecipe

    clips = read_clips(options.clips, options.split, out=options.out)
    binary = encode.find_ffmpeg()
    plan = ExtractPlan(
        out=options.out,
        labels=clips.labels,
        rgb=ClipRecipe(
            short_side=options.short_side, enlarge=True, ffmpeg=encode.ffmpeg_version(binary)
        ),
        flow=FlowRecipe(
            method=options.method,
            parameters=method.as_json(),
            bound=options.bound,
            codec=options.codec,
        ),
        name=options.name or options.method,
        binary=binary,
        devices=devices,
        samples_per_shard=options.samples_per_shard,
        seed=options.seed,
        force=options.force,
        part=part_from(options.task, os.environ),
        jobs=options.jobs,
        engine=options.engine,
        tmp_dir=options.tmp_dir,
    )
    if options.dry_run:
        return _say_what_would_be_done(clips, plan)
    summary = extract(
        clips,
        plan,
        show=lambda done, total: console.progress(
            done, total=total, what="samples", size=lambda made: len(made[0].clips)
        ),
    )
    _say_how_it_stands(summary, plan)
    if summary.num_retryable:
        return Exit.RETRYABLE_GAPS
    return Exit.PERMANENT_GAPS if summary.gaps else Exit.COMPLETE


def _devices(name: str, engine: str, method: FlowMethod) -> tuple[str, ...]:
    """The devices of this machine; for Ray, whose nodes may have others, the word itself."""
    if engine != "ray" or name == "cpu" or "cuda" not in method.devices:
        return tuple(dict.fromkeys(find_devices(name, method)))
    if name not in ("auto", "cuda"):
        raise KineticsError(
            f"device {name!r}: Ray gives each task its GPU; with --engine ray choose auto, cpu or "
            "cuda"
        )
    return (name,)


def _say_what_would_be_done(clips: "ClipSet", plan: "ExtractPlan") -> int:
    from kinetics_tools.extract.estimate import estimate_pairs
    from kinetics_tools.extract.plan import pending, plan_shards

    units = plan_shards(clips.clips, plan)
    todo = pending(units, plan)
    num_clips = sum(len(unit.clips) for unit in todo)
    num_pairs = estimate_pairs(todo, plan)
    print(
        f"shards: {len(units)}, of {len(clips.clips)} samples, {len(clips.labels)} classes\n"
        f"to do: {len(todo)}, of {num_clips} samples, about {num_pairs} pairs"
    )
    if num_pairs:
        _say_how_long(todo, num_pairs, plan)
    return Exit.COMPLETE


def _say_how_long(todo: "Sequence[ShardUnit]", num_pairs: int, plan: "ExtractPlan") -> None:
    from kinetics_tools.extract.estimate import measure

    try:
        rate = measure(todo, plan)
    except KineticsError as error:
        print(f"time: not measured, {error}")
        return
    if rate is None:
        print("time: not measured, none of the clips tried can be decoded")
        return
    jobs = plan.jobs or system.num_processors()
    num_gpus = sum(device != "cpu" for device in plan.devices)
    without_rgb = [unit for unit in todo if plan.force or unit.current_rgb(plan) is None]
    rgb_share = sum(len(u.clips) for u in without_rgb) / sum(len(u.clips) for u in todo)
    seconds = rate.seconds(num_pairs, jobs=jobs, num_gpus=num_gpus, rgb_share=rgb_share)
    per_second = f"{num_pairs / seconds:.{0 if num_pairs >= 100 * seconds else 1}f}"
    print(
        f"measured: {rate.num_pairs} pairs of {rate.num_clips} clips; for each "
        f"{rate.flow_s * 1e3:.1f} ms of flow on {rate.device}, {rate.store_s * 1e3:.1f} ms to "
        f"decode and encode, {rate.rgb_s * 1e3:.1f} ms to make its RGB"
    )
    where = f"{jobs} processor{'s' * (jobs > 1)} like this one"
    if rate.device != "cpu":
        where += f" and {num_gpus} GPU{'s' * (num_gpus > 1)}"
    print(
        f"time: about {console.time_text(seconds)}, {per_second} pairs a second, with "
        f"{where}, if none slows another and no clip is harder"
    )


def _say_how_it_stands(summary: "ExtractSummary", plan: "ExtractPlan") -> None:
    part = "" if plan.part.count == 1 else f" of part {plan.part}"
    print(f"{summary.num_samples} of {summary.num_expected} samples{part} in {plan.out}")
    print(f"{summary.num_pairs} frame pairs in {plan.stream}")
    if summary.num_made:
        print(f"{summary.num_made} made now, {summary.num_made / summary.seconds:.2f} a second")
    if len(summary.devices) > 1:
        shards = ", ".join(f"{name or 'unknown'} {n}" for name, n in summary.devices.items())
        print(f"computed on different devices, which differ by rounding; shards: {shards}")
    for reason, count in summary.gaps.items():
        print(f"  {reason:14} {count}")
    if summary.gaps:
        print(f"each gap's detail: {plan.out}/*/*.json")
    print(
        f"index: {plan.out}/dataset.json"
        if summary.is_indexed
        else "index: not yet, some shards are still to be made"
    )


def index_parser() -> Parser:
    """The options of the verb `index`."""
    parser = Parser(
        "extract-flow index", "Write dataset.json and the indices from the shards that are there."
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of shards")
    parser.add_common()
    return parser


def index_main(argv: list[str]) -> int:
    """The verb `index`."""
    out = index_parser().parse_args(argv).out
    from kinetics_tools.shards.writer import write_index

    dataset = write_index(out)
    for split, counts in dataset["splits"].items():
        present = ", ".join(f"{name} {number}" for name, number in counts["present"].items())
        print(f"{split}: {counts['expected']} expected, {present}")
    print(f"index: {out}/dataset.json")
    return Exit.COMPLETE


VERBS = {
    "export": (export_cli.build_parser, export_cli.main),
    "index": (index_parser, index_main),
    "show": (show_cli.build_parser, show_cli.main),
}
