"""`extract-flow export`: shards as folders of JPEGs."""

import argparse
from pathlib import Path

from kinetics_tools.core import cli, console, system
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import OutError


def build_parser() -> Parser:
    """The options of the verb `export`."""
    parser = Parser(
        "extract-flow export",
        "Write shards as folders of JPEGs, FOLDER/<split>/<label>/<key>/ with img_%05d.jpg, "
        "flow_x_%05d.jpg and flow_y_%05d.jpg, and the lists that mmaction2 reads: "
        "FOLDER/<split>_list_rawframes.txt for frames, FOLDER/<split>_list_rawframes_flow.txt for "
        "flow. Give the same command again to go on where it stopped.",
        "exit codes: 0 complete; 2 unusable input; 4 some clips are left to another run; "
        "130 interrupted",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of shards")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="to fill")
    parser.add_argument("--split", type=cli.names, help="only these splits: train,val")
    parser.add_argument("--flow", metavar="NAME", help="of the flow (default: the only one there)")
    parser.add_argument(
        "--start-index",
        type=int,
        choices=(0, 1),
        default=1,
        help="number of the first picture: mmaction2 begins with 1, denseflow with 0",
    )
    parser.add_argument(
        "--images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the frames beside the flow",
    )
    parser.add_argument("--quality", type=_quality, default=95, metavar="Q", help="of JPEG, to 100")
    parser.add_argument(
        "--jobs",
        type=cli.positive,
        default=system.num_processors(),
        metavar="N",
        help="clips at once",
    )
    parser.add_common()
    return parser


def _quality(text: str) -> int:
    quality = cli.positive(text)
    if quality > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is above 100")
    return quality


def main(argv: list[str]) -> int:
    """The verb `export`."""
    options = build_parser().parse_args(argv)
    from kinetics_tools.extract.export import Layout, export
    from kinetics_tools.shards.reader import ShardFolder

    if options.out.resolve() in (options.folder.resolve(), *options.folder.resolve().parents):
        raise OutError(f"{options.folder} lies in {options.out}, among its shards; choose another")

    shards = ShardFolder(options.out)
    done = export(
        shards,
        options.folder,
        Layout(
            flow=shards.flow_named(options.flow),
            start_index=options.start_index,
            images=options.images,
            quality=options.quality,
        ),
        splits=options.split or (),
        jobs=options.jobs,
        show=lambda done, total: console.progress(done, total=total, what="clips"),
    )
    print(f"{done.num_clips} clips in {options.folder}, {done.num_made} made now")
    for path in done.lists:
        print(f"list: {path}")
    if done.num_crashed:
        print(f"{done.num_crashed} clips are left to another run: their processes died")
        return Exit.RETRYABLE_GAPS
    return Exit.COMPLETE
