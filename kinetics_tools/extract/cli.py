"""`extract-flow`: shards of RGB and optical flow from clips; its verbs export, index and show."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kinetics_tools.core import cli, console, keys, system
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import KineticsError, OutError
from kinetics_tools.core.files import make_folder, real_path, remove_leftovers
from kinetics_tools.core.units import part_from
from kinetics_tools.flow.codecs import CODECS, DEFAULT_CODEC
from kinetics_tools.flow.methods import (
    BOUND_PX,
    METHODS,
    FlowMethod,
    FlowRecipe,
    find_devices,
    make_method,
)
from kinetics_tools.media.recipe import ENCODINGS, SCALERS, ClipRecipe

if TYPE_CHECKING:
    from kinetics_tools.extract.clips import ClipSet
    from kinetics_tools.extract.plan import ExtractPlan, ShardState
    from kinetics_tools.extract.run import ExtractSummary

EXITS = (
    "exit codes: 0 complete; 2 unusable input; 3 finished, the missing samples are permanently "
    "unavailable; 4 finished, some missing samples may succeed if you rerun; 130 interrupted; "
    "143 terminated"
)
PICTURE_SUFFIXES = (".mp4", ".png")


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        "extract-flow",
        "Compute optical flow of clips and write sharded tars of RGB and flow, which plain "
        "webdataset reads. Run the same command again to continue: only shards whose clips changed "
        "are recomputed. Another --method or --name adds a second flow beside the first. "
        "`extract-flow index OUT` writes the index of finished shards again; "
        "`extract-flow export OUT FOLDER` writes them as folders of JPEGs; "
        "`extract-flow show CLIP FILE` draws the flow of one clip.",
        EXITS,
    )
    parser.add_argument(
        "clips",
        metavar="CLIPS",
        type=Path,
        help="folder that kinetics-download filled, or one folder of videos per class\nor one with "
        "folders train, val and test of such folders",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of shards to fill")
    flow = parser.add_argument_group("flow options")
    flow.add_argument(
        "--method",
        type=cli.one_of("flow method", METHODS),
        default="tvl1",
        metavar="NAME",
        help=f"one of {', '.join(METHODS)}",
    )
    flow.add_argument("--name", type=_name, help="name of the flow in OUT (default: the method's)")
    flow.add_argument(
        "--device",
        default="auto",
        help="auto (all GPUs, else the CPU), cpu, cuda, cuda:0,1\none process per GPU. With "
        "--engine ray auto, cpu or cuda: the cluster's devices, one GPU per shard",
    )
    flow.add_argument(
        "--bound", type=cli.pixels, default=BOUND_PX, metavar="PX", help="clamp flow to +-PX pixels"
    )
    flow.add_argument(
        "--codec",
        type=cli.one_of("flow codec", CODECS),
        default=DEFAULT_CODEC,
        metavar="NAME",
        help=f"how flow is stored: {', '.join(CODECS)}\nh264: small, some codes off by one; ffv1: "
        "lossless; jpeg: as the authors of I3D store it",
    )
    samples = parser.add_argument_group("sample options")
    samples.add_argument(
        "--split", type=cli.comma_separated, default=(), help="only these splits: train,val"
    )
    cli.add_short_side(samples)
    cli.add_scaler(samples, SCALERS)
    cli.add_encoding(samples, {name: each.meaning for name, each in ENCODINGS.items()})
    samples.add_argument(
        "--samples-per-shard", type=cli.positive, default=64, metavar="N", help="samples in one tar"
    )
    samples.add_argument(
        "--check-all",
        action="store_true",
        help="read every clip again, also those that did not change since an earlier run",
    )
    parser.add_run(
        jobs="clips at once on this machine (default: one per processor)\nprocesses on a CPU, "
        "threads of the GPU's process on a GPU. With --engine ray shards at once (default: as many "
        "as the cluster has room for)",
        made="shard",
    )
    parser.add_common()
    return parser


def _name(text: str) -> str:
    if not text or not keys.is_key(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not made of letters, digits, - and _")
    if text == "rgb":
        raise argparse.ArgumentTypeError("'rgb' is the name of the RGB shards; choose another")
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
    from kinetics_tools.extract.digests import DigestStore
    from kinetics_tools.extract.plan import ExtractPlan
    from kinetics_tools.extract.run import open_extraction
    from kinetics_tools.media import encode

    digests = DigestStore(options.out, distrust=options.check_all)
    clips = read_clips(options.clips, options.split, out=options.out, digests=digests)
    binary = encode.find_ffmpeg()
    plan = ExtractPlan(
        out=options.out,
        labels=clips.labels,
        rgb=ClipRecipe(
            short_side=options.short_side,
            enlarge=True,
            scaler=options.scaler,
            encoding=options.encoding,
            ffmpeg=encode.ffmpeg_version(binary),
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
        return _dry_run(clips, plan)
    with open_extraction(clips, plan) as extraction:
        digests.write()
        for _ in console.progress(
            extraction.shards,
            total=extraction.num_samples,
            what="samples",
            size=lambda shard: len(shard.clips),
        ):
            pass  # a shard is on the disk when it is yielded
        summary = extraction.finish()
    _print_summary(summary, plan)
    return _exit_code(summary)


def _exit_code(summary: ExtractSummary) -> Exit:
    if summary.num_retryable:
        return Exit.RETRYABLE_GAPS
    return Exit.PERMANENT_GAPS if summary.gaps else Exit.COMPLETE


def _devices(name: str, engine: str, method: FlowMethod) -> tuple[str, ...]:
    """The devices of this machine; for Ray, whose nodes may have others, `name` itself."""
    if engine != "ray" or name == "cpu" or "cuda" not in method.devices:
        return tuple(dict.fromkeys(find_devices(name, method)))
    if name not in ("auto", "cuda"):
        raise KineticsError(
            f"device {name!r}: Ray gives each task its GPU; with --engine ray choose auto, cpu or "
            "cuda"
        )
    return (name,)


def _dry_run(clips: ClipSet, plan: ExtractPlan) -> int:
    """Print what would be done, and about how long it would take.

    Where nothing is to be done, the exit code is that of the run; else that of its beginning.
    """
    from kinetics_tools.extract.estimate import estimate_pairs
    from kinetics_tools.extract.plan import pending
    from kinetics_tools.extract.run import rehearse, summarise

    states = rehearse(clips, plan)
    todo = pending(states, plan)
    num_clips = sum(len(state.unit.clips) for state in todo)
    num_pairs = estimate_pairs([state.unit for state in todo], plan)
    print(
        f"shards: {len(states)}, of {len(clips.clips)} samples, {len(clips.labels)} classes\n"
        f"to do: {len(todo)}, of {num_clips} samples, about {num_pairs} pairs"
    )
    if num_pairs:
        _print_time(todo, num_pairs, plan)
    return Exit.COMPLETE if todo else _exit_code(summarise(plan.part.of(states)))


def _print_time(todo: list[ShardState], num_pairs: int, plan: ExtractPlan) -> None:
    from kinetics_tools.extract.estimate import measure

    try:
        rate = measure([state.unit for state in todo], plan)
    except KineticsError as error:
        if plan.engine == "local":
            raise  # the run would end so
        print(f"time: not measured, {error}")
        return
    if rate is None:
        print("time: not measured, none of the clips tried can be decoded")
        return
    jobs = plan.jobs or system.num_processors()
    num_gpus = sum(device != "cpu" for device in plan.devices)
    num_without_rgb = sum(len(s.unit.clips) for s in todo if s.rgb is None)
    rgb_share = num_without_rgb / sum(len(state.unit.clips) for state in todo)
    seconds = rate.seconds(num_pairs, jobs=jobs, num_gpus=num_gpus, rgb_share=rgb_share)
    per_second = f"{num_pairs / seconds:.{0 if num_pairs >= 100 * seconds else 1}f}"
    print(
        f"measured: {rate.num_pairs} pairs of {rate.num_clips} clips; per pair "
        f"{rate.flow_s * 1e3:.1f} ms of flow on {rate.device}, {rate.store_s * 1e3:.1f} ms to "
        f"decode and encode, {rate.rgb_s * 1e3:.1f} ms to make its RGB"
    )
    where = f"{jobs} processor{'s' * (jobs > 1)} like this one"
    if rate.device != "cpu":
        where += f" and {num_gpus} GPU{'s' * (num_gpus > 1)}"
    print(
        f"time: about {console.time_text(seconds)}, {per_second} pairs per second, with "
        f"{where}, if none slows another and other clips take as long"
    )


def _print_summary(summary: ExtractSummary, plan: ExtractPlan) -> None:
    part = "" if plan.part.count == 1 else f" of part {plan.part}"
    print(f"{summary.num_samples} of {summary.num_expected} samples{part} in {plan.out}")
    print(f"{summary.num_pairs} frame pairs in {plan.stream}")
    if summary.num_made:
        rate = summary.num_made / summary.seconds
        print(f"{summary.num_made} computed now, {rate:.2f} per second")
    if len(summary.devices) > 1:
        shards = ", ".join(f"{name or 'unknown'} {n}" for name, n in summary.devices.items())
        print(f"computed on different devices, which differ by rounding; shards: {shards}")
    for reason, count in summary.gaps.items():
        print(f"  {reason:14} {count}")
    if summary.gaps:
        print(f"details of each gap: {plan.out}/*/*.json")
    print(
        f"index: {plan.out}/dataset.json"
        if summary.is_indexed
        else "index: not yet, some shards are still to be made"
    )


# extract-flow index


def index_parser() -> Parser:
    """The options of the verb `index`."""
    parser = Parser(
        "extract-flow index", "Write dataset.json and the indices from the shards in OUT."
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of shards")
    parser.add_common()
    return parser


def index_main(argv: list[str]) -> int:
    """The verb `index`."""
    out = index_parser().parse_args(argv).out
    from kinetics_tools.shards.records import FolderRecords
    from kinetics_tools.shards.writer import write_index

    for name, split in write_index(FolderRecords(out)).splits.items():
        present = ", ".join(f"{stream} {number}" for stream, number in split.present.items())
        print(f"{name}: {split.expected} expected, {present}")
    print(f"index: {out}/dataset.json")
    return Exit.COMPLETE


# extract-flow export


def export_parser() -> Parser:
    """The options of the verb `export`."""
    parser = Parser(
        "extract-flow export",
        "Write shards as folders of JPEGs, FOLDER/<split>/<label>/<key>/ with img_%05d.jpg, "
        "flow_x_%05d.jpg and flow_y_%05d.jpg, and the lists that mmaction2 reads: "
        "FOLDER/<split>_list_rawframes.txt for frames, FOLDER/<split>_list_rawframes_flow.txt for "
        "flow. Run the same command again to continue. Clips of an earlier export of these splits "
        "that the shards do not have now are removed; files of other origin stay.",
        "exit codes: 0 complete; 2 unusable input; 4 finished, some clips may succeed if you "
        "rerun; 130 interrupted; 143 terminated",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of shards")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to fill")
    parser.add_argument("--split", type=cli.comma_separated, help="only these splits: train,val")
    parser.add_argument(
        "--flow", metavar="NAME", help="name of the flow (default: the only one in OUT)"
    )
    parser.add_argument(
        "--start-index",
        type=int,
        choices=(0, 1),
        default=1,
        help="number of the first frame: 1 for mmaction2, 0 for denseflow",
    )
    parser.add_argument(
        "--images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the frames beside the flow",
    )
    parser.add_argument(
        "--quality", type=_quality, default=95, metavar="Q", help="quality of the JPEGs, 1 to 100"
    )
    parser.add_jobs()
    parser.add_common()
    return parser


def _quality(text: str) -> int:
    quality = cli.positive(text)
    if quality > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is above 100")
    return quality


def export_main(argv: list[str]) -> int:
    """The verb `export`."""
    options = export_parser().parse_args(argv)
    from kinetics_tools.extract.export import Layout, open_export
    from kinetics_tools.shards.reader import ShardFolder

    folder = real_path(options.folder)
    if real_path(options.out) in (folder, *folder.parents):
        raise OutError(f"{options.folder} lies in {options.out}, among its shards; choose another")

    shards = ShardFolder(options.out)
    layout = Layout(
        flow=shards.flow_named(options.flow),
        start_index=options.start_index,
        images=options.images,
        quality=options.quality,
    )
    splits = options.split or ()
    with open_export(shards, options.folder, layout, splits=splits, jobs=options.jobs) as export:
        for _ in console.progress(export.clips, total=len(export.todo), what="clips"):
            pass  # a clip is on the disk when it is yielded
        exported = export.finish()
    print(f"{exported.num_clips} clips in {options.folder}, {exported.num_made} made now")
    if exported.num_removed:
        print(f"{exported.num_removed} clips of an earlier export removed")
    for path in exported.lists:
        print(f"list: {path}")
    if exported.num_crashed:
        print(f"{exported.num_crashed} clips are left to another run: their processes died")
        return Exit.RETRYABLE_GAPS
    return Exit.COMPLETE


# extract-flow show


def show_parser() -> Parser:
    """The options of the verb `show`."""
    parser = Parser(
        "extract-flow show",
        "Draw a clip beside its optical flow in the colours of the Middlebury benchmark. A .mp4 "
        "shows every frame, a .png some of them. The clip is first brought to the size and rate "
        "that extract-flow gives its samples. With two methods, their difference is shown too.",
    )
    suffixes = " or ".join(PICTURE_SUFFIXES)
    parser.add_argument("clip", metavar="CLIP", type=Path, help="a video")
    parser.add_argument("file", metavar="FILE", type=_picture, help=f"file to write: {suffixes}")
    parser.add_argument(
        "--method",
        type=_methods,
        default="tvl1",
        metavar="M[,M2]",
        help=f"one or two of {', '.join(METHODS)}",
    )
    parser.add_argument("--device", default="auto", help="auto (a GPU, else the CPU), cpu, cuda:0")
    cli.add_short_side(parser)
    cli.add_scaler(parser, SCALERS)
    parser.add_argument(
        "--start", type=_number, default=0, metavar="N", help="first frame to show, at 25 fps"
    )
    parser.add_argument(
        "--frames", type=cli.positive, metavar="N", help="number of frames to show, at most"
    )
    parser.add_argument(
        "--full",
        type=cli.pixels,
        metavar="PX",
        help="speed shown in full colour, pixels per frame (default: one that suits the clip)",
    )
    parser.add_common()
    return parser


def _picture(text: str) -> Path:
    if Path(text).suffix not in PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end in {' or '.join(PICTURE_SUFFIXES)}"
        )
    return Path(text)


def _methods(text: str) -> tuple[str, ...]:
    methods = tuple(cli.one_of("flow method", METHODS)(name) for name in cli.comma_separated(text))
    if len(set(methods)) != len(methods) or not 1 <= len(methods) <= 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not one method, or two with a comma")
    return methods


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def show_main(argv: list[str]) -> int:
    """The verb `show`."""
    options = show_parser().parse_args(argv)
    clip, file = options.clip, options.file
    if file.is_dir():
        raise OutError(f"{file} is a folder; choose another FILE")
    if file.exists() and clip.exists() and file.samefile(clip):
        raise OutError(f"{file} is both CLIP and FILE; choose another FILE")
    for method in options.method:
        find_devices(options.device, make_method(method))
    from kinetics_tools.extract.visualize import Film, open_clip, write_film, write_sheet

    recipe = ClipRecipe(short_side=options.short_side, enlarge=True, scaler=options.scaler)
    tmp_dir = make_folder(options.tmp_dir or file.parent)
    remove_leftovers(file.parent, deep=False)
    with open_clip(
        clip, recipe, start=options.start, num_frames=options.frames, tmp_dir=tmp_dir
    ) as part:
        film = Film(
            title=clip.stem,
            part=part,
            methods=options.method,
            device=options.device,
            threads=system.num_processors(),
        )
        if file.suffix == ".png":
            what, shown = "moments", write_sheet(film, file, full_px=options.full)
        else:
            what = "frames"
            moments = console.progress(film.moments(), total=film.num_moments, what=what)
            shown = write_film(film, moments, file, full_px=options.full)
    print(f"{file}: {shown.num_moments} {what}, full colour {shown.scale.full_px:g} px")
    if shown.mean_px is not None:
        print(f"mean difference of {' and '.join(options.method)}: {shown.mean_px:.3f} px")
    return Exit.COMPLETE


VERBS = {
    "export": (export_parser, export_main),
    "index": (index_parser, index_main),
    "show": (show_parser, show_main),
}

if __name__ == "__main__":
    main()
