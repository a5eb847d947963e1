"""The verbs `predict` and `features`: videos in, classes or features out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_bench.commands.options import (
    PROG,
    add_machine,
    add_networks,
    add_span,
    network_of,
    require_init,
)
from kinetics_tools.core import console, system
from kinetics_tools.core.cli import Exit, Parser, positive
from kinetics_tools.core.errors import KineticsError, OutError
from kinetics_tools.core.files import make_folder, remove_leftovers

if TYPE_CHECKING:
    from kinetics_bench.training.checkpoint import Checkpoint


def predict_parser() -> Parser:
    """The options of the verb `predict`."""
    parser = Parser(
        f"{PROG} predict", "Predict the classes of any video files, with probabilities."
    )
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="a video file")
    add_networks(parser, "--work-dir", dest="run", help="a finished run")
    parser.add_argument("--top", type=positive, default=5, help="number of classes shown")
    add_span(parser, "10 s, or to the end of the video")
    parser.add_argument("--json", action="store_true", help="print one JSON object per video")
    add_machine(parser, workers=False)
    parser.add_common()
    return parser


def features_parser() -> Parser:
    """The options of the verb `features`."""
    parser = Parser(
        f"{PROG} features",
        "Write features of any video files: the input of a trained network's last layer, one row "
        "per time step.",
        "NAME.npy is float32 (steps, features); NAME.json has the start and end of each row in "
        "seconds, and the network and its weights. NAME is the name of the video; with --stream "
        "joint of i3d there are NAME.rgb and NAME.flow.",
    )
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="a video file")
    add_networks(parser, "--work-dir", dest="run", help="a finished run")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("features"),
        metavar="DIR",
        help="folder to fill (default: features)",
    )
    add_span(parser, "to the end of the video")
    parser.add_argument("--force", action="store_true", help="compute again what is there already")
    add_machine(parser, workers=False)
    parser.add_common()
    return parser


def predict(arguments: argparse.Namespace) -> int:
    """Print the classes of each video."""
    from kinetics_bench.device import open_machine
    from kinetics_bench.inference.networks import read_request
    from kinetics_bench.inference.predict import Predictor
    from kinetics_bench.inference.videos import Span

    span = Span(arguments.start or 0, arguments.duration)
    with open_machine(arguments.device, arguments.amp) as machine:
        networks = _networks(arguments)
        protocol = read_request(arguments.run).protocol if arguments.run else None
        scratch = arguments.tmp_dir or arguments.run or system.cache_dir(arguments.cache_dir)
        predictor = Predictor(networks, machine, make_folder(scratch), protocol=protocol)

        def act(video: Path) -> None:
            shares = predictor.predict(video, span)
            _print_classes(video, shares[: arguments.top], as_json=arguments.json)

        return _for_each(arguments.videos, act)


def features(arguments: argparse.Namespace) -> int:
    """Write the features of each video, and print their paths."""
    from kinetics_bench.device import open_machine
    from kinetics_bench.inference.features import Extractor, keys_of
    from kinetics_bench.inference.videos import Span

    span = Span(arguments.start or 0, arguments.duration)
    keys = keys_of(arguments.videos)
    with open_machine(arguments.device, arguments.amp) as machine:
        networks = _networks(arguments, whole=False)
        out = make_folder(arguments.out)
        remove_leftovers(out, deep=False)
        extractor = Extractor(networks, machine, make_folder(arguments.tmp_dir or out))

        def act(video: Path) -> None:
            made = extractor.write(video, span, out / keys[video], force=arguments.force)
            print(*made, sep="\n")

        return _for_each(keys, act)


def _networks(arguments: argparse.Namespace, *, whole: bool = True) -> list[Checkpoint]:
    """The networks that the options name; `whole` as in `networks_of_weights`."""
    from kinetics_bench.inference.networks import networks_of_run, networks_of_weights

    require_init(arguments, "arch")
    cache = arguments.cache_dir
    if arguments.run:
        return networks_of_run(arguments.run, arguments.stream, cache=cache)
    return networks_of_weights(arguments.init, *network_of(arguments), cache=cache, whole=whole)


def _for_each(videos: Collection[Path], act: Callable[[Path], object]) -> int:
    """Call `act` for each video; one that cannot be read costs a line, not the others."""
    failed = 0
    # On a terminal the printed results show the progress.
    is_terminal = sys.stdout.isatty()
    for video in (
        videos if is_terminal else console.progress(videos, total=len(videos), what="videos")
    ):
        try:
            act(video)
        except OutError:
            raise  # every video would fail so
        except KineticsError as error:
            failed += 1
            console.tell(f"error: {error}")
    if failed == len(videos):
        return Exit.UNUSABLE
    return Exit.PERMANENT_GAPS if failed else Exit.COMPLETE


def _print_classes(video: Path, shares: Sequence[tuple[str, float]], *, as_json: bool) -> None:
    if as_json:
        classes = [{"label": label, "probability": share} for label, share in shares]
        print(json.dumps({"video": str(video), "classes": classes}))
        return
    print(video)
    for label, share in shares:
        print(f"  {share:7.2%}  {label}")
