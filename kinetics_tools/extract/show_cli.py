"""`extract-flow show`: a clip beside its flow in colours."""

import argparse
from pathlib import Path

from kinetics_tools.core import cli, console, system
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import make_folder
from kinetics_tools.flow.methods import METHODS, find_devices, make_method

SUFFIXES = (".mp4", ".png")


def build_parser() -> Parser:
    """The options of the verb `show`."""
    parser = Parser(
        "extract-flow show",
        "Draw a clip beside its optical flow in the colours of the Middlebury benchmark. A .mp4 "
        "shows every frame, a .png some moments. The clip is first brought to the size and rate "
        "that extract-flow gives its samples. With two methods, their difference is shown too.",
    )
    parser.add_argument("clip", metavar="CLIP", type=Path, help="a video")
    parser.add_argument("file", metavar="FILE", type=_file, help=f"to write: {_suffixes()}")
    parser.add_argument(
        "--method",
        type=_methods,
        default="tvl1",
        metavar="M[,M2]",
        help=f"one or two of {', '.join(METHODS)}",
    )
    parser.add_argument("--device", default="auto", help="auto (a GPU, else the CPU), cpu, cuda:0")
    cli.add_short_side(parser)
    parser.add_argument(
        "--start", type=_number, default=0, metavar="N", help="begin at this frame of the 25 fps"
    )
    parser.add_argument("--frames", type=cli.positive, metavar="N", help="show so many at most")
    parser.add_argument(
        "--full",
        type=cli.pixels,
        metavar="PX",
        help="speed shown in full colour, pixels a frame (default: one that suits the clip)",
    )
    parser.add_common()
    return parser


def _suffixes() -> str:
    return " or ".join(SUFFIXES)


def _file(text: str) -> Path:
    if Path(text).suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {_suffixes()}")
    return Path(text)


def _methods(text: str) -> tuple[str, ...]:
    methods = tuple(cli.one_of("flow method", METHODS)(name) for name in cli.names(text))
    if len(set(methods)) != len(methods) or not 1 <= len(methods) <= 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not one method, or two with a comma")
    return methods


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def main(argv: list[str]) -> int:
    """The verb `show`."""
    options = build_parser().parse_args(argv)
    _check_file(options.clip, options.file)
    for method in options.method:
        find_devices(options.device, make_method(method))
    from kinetics_tools.extract.visualize import Film, open_clip, show
    from kinetics_tools.media.cut import ClipRecipe

    tmp_dir = make_folder(options.tmp_dir or options.file.parent)
    with open_clip(
        options.clip,
        ClipRecipe(short_side=options.short_side, enlarge=True),
        start=options.start,
        num_frames=options.frames,
        tmp_dir=tmp_dir,
    ) as part:
        shown = show(
            Film(
                title=options.clip.stem,
                part=part,
                methods=options.method,
                device=options.device,
                threads=system.num_processors(),
            ),
            options.file,
            full_px=options.full,
            progress=lambda moments, total: console.progress(moments, total=total, what="frames"),
        )
    what = "frames" if options.file.suffix == ".mp4" else "moments"
    print(f"{options.file}: {shown.num_moments} {what}, full colour {shown.scale.full_px:g} px")
    if shown.mean_px is not None:
        print(f"mean difference of {' and '.join(options.method)}: {shown.mean_px:.3f} px")
    return Exit.COMPLETE


def _check_file(clip: Path, file: Path) -> None:
    if file.is_dir():
        raise OutError(f"{file} is a folder; choose another FILE")
    if file.exists() and clip.exists() and file.samefile(clip):
        raise OutError(f"{file} is both CLIP and FILE; choose another FILE")
