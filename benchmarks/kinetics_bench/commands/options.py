"""Options that several verbs share, and what their values mean."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.protocols import PROTOCOLS, protocol_named
from kinetics_bench.weights.choices import FINETUNES, INITS, split_word
from kinetics_tools.core import cli
from kinetics_tools.core.cli import MAX_PROCESSES, Parser, one_of, whole
from kinetics_tools.core.errors import KineticsError, UnknownNameError, unknown_name
from kinetics_tools.core.file_cache import CACHE_BYTES
from kinetics_tools.core.store import is_address

if TYPE_CHECKING:
    pass

PROG: Final = "run-benchmark"
RUNS: Final = Path("runs")
ARCH: Final = "i3d"  # whose weights are published
DATA: Final = Path("shards")
TEST_SPLIT: Final = "val"
REPORT: Final = "report.html"
MIN_DURATION_S: Final = 0.08  # two frames at 25 per second


def add_start(parser: Parser) -> None:
    """Add the options for the initial weights, and for what is trained."""
    parser.add_argument(
        "--init",
        default=INITS[0],
        metavar="|".join((*INITS, "PATH")),
        help="initial weights: scratch, random; imagenet, torchvision's GoogLeNet (downloaded "
        "once), inflated for i3d; kinetics, the authors' i3d trained on ImageNet and Kinetics-400 "
        "(downloaded once, read with TensorFlow); or a file: a checkpoint of this command, the "
        "authors' model.ckpt, a state dict of piergiaj, hassony2 or ours (torch.save or "
        "safetensors); or a folder with one such file that has the stream's name in its name. "
        "PATH:WORD chooses one of several networks in a file, such as PATH:ema",
    )
    parser.add_argument(
        "--finetune",
        default=FINETUNES[0],
        choices=FINETUNES,
        help="what is trained: all layers, or only the last one on the fixed features of --init",
    )


def add_networks(parser: Parser, run: str, **options: Any) -> None:
    """Add the options that name networks: `run` (option or positional argument), or --init."""
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument(run, type=Path, **options)
    whose.add_argument(
        "--init",
        metavar="|".join((*INITS[1:], "PATH")),
        help="weights as for training, used without training, with --arch; input as in its recipe "
        "paper, classes of Kinetics-400",
    )
    parser.add_argument(
        "--arch",
        type=one_of("architecture", ARCHS),
        help=f"architecture of --init (default: {ARCH})",
    )
    parser.add_argument(
        "--stream",
        type=one_of("stream", STREAMS),
        help="default: that of the run; with --init the first one of the architecture",
    )
    cli.add_cache_dir(parser)


def add_data(parser: Parser, data: Path | None, test_split: str | None) -> None:
    """Add the options that say what is evaluated; None: the default is the run's."""
    parser.add_argument(
        "--data",
        type=_data,
        default=data,
        metavar="DIR|ADDRESS",
        help="folder of shards that extract-flow wrote, or the address of a copy: s3://, gs://, "
        "hf://, https:// or another that fsspec reads",
    )
    parser.add_argument(
        "--cache-bytes",
        type=cli.num_bytes,
        default=None if data is None else CACHE_BYTES,
        metavar="SIZE",
        help="how much of an address is kept in --cache-dir, such as 200GB; 0: nothing",
    )
    parser.add_argument(
        "--test-split",
        default=test_split,
        metavar="SPLIT",
        help="a split in the shards, an official one (ucf101/1 to 3, hmdb51/1 to 3), or a file of "
        "keys, one per line, with * and ?",
    )
    parser.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder that holds the folders ucf101 and hmdb51 with the official lists",
    )
    parser.add_argument(
        "--flow", metavar="NAME", help="name of the flow (default: the only one in the shards)"
    )
    parser.add_argument(
        "--protocol",
        type=_protocol,
        help=f"{known(PROTOCOLS)}, or another CLIPSxCROPS (default: the recipe's)",
    )


def _protocol(name: str) -> str:
    try:
        return protocol_named(name).name
    except UnknownNameError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_span(parser: Parser, default: str) -> None:
    """Add the options for a part of a video."""
    parser.add_argument(
        "--start",
        type=_seconds,
        metavar="S",
        help="begin here, in seconds from the video's start (default: 0)",
    )
    parser.add_argument(
        "--duration", type=_duration, metavar="D", help=f"duration in seconds (default: {default})"
    )


def add_machine(parser: Parser, *, workers: bool = True, training: bool = False) -> None:
    """Add the options that `open_machine` takes, and --workers."""
    if workers:
        parser.add_argument(
            "--workers",
            type=whole(0, MAX_PROCESSES),
            metavar="N",
            help="processes that read clips (default: one per processor; in training none if all "
            "decoded clips fit in memory)",
        )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--amp",
        default="auto",
        choices=("auto", "none", "bfloat16", *(["float16"] if training else [])),
        help="mixed precision; auto: bfloat16 if the hardware supports it"
        + ("; float16, with loss scaling, is for GPUs without it (V100, T4)" if training else ""),
    )


def known(table: Mapping[str, Any]) -> str:
    """The names of a table, for a help text."""
    return "one of: " + ", ".join(table)


def stream_of(arch: str, asked: str | None) -> str:
    """The stream that was asked for, or the first one of the architecture."""
    streams = ARCHS[arch].streams
    stream = asked or streams[0]
    if stream not in streams:
        raise UnknownNameError(unknown_name(f"stream of {arch}", stream, streams))
    return stream


def network_of(arguments: argparse.Namespace) -> tuple[str, str]:
    """Architecture and stream of --init, from the options of `add_networks`."""
    arch = arguments.arch or ARCH
    return arch, stream_of(arch, arguments.stream)


def absolute_init(init: str) -> str:
    """The value of --init with an absolute path."""
    return init if init in INITS or not init.strip() else str(Path(init).absolute())


def short_init(init: str) -> str:
    """The value of --init as part of a folder's name."""
    if init in INITS:
        return init
    path, word = split_word(init)
    return "-".join(filter(None, (path.stem, word)))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0")
    return seconds


def _duration(text: str) -> float:
    seconds = _seconds(text)
    if seconds < MIN_DURATION_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {MIN_DURATION_S} on (two frames)"
        )
    return seconds


def require_init(arguments: argparse.Namespace, *names: str) -> None:
    """Raise KineticsError if a run is given together with options that need --init."""
    for name in names:
        if arguments.run and getattr(arguments, name) is not None:
            raise KineticsError(
                f"--{name.replace('_', '-')} is for --init; {arguments.run} is a run, which has "
                "its own: leave one of them out"
            )


def add_saving(parser: Parser) -> None:
    """Add the options that `saving_of` reads."""
    parser.add_argument(
        "--checkpoint-every",
        type=_steps_or_minutes,
        default="10min",
        metavar="N|Nmin",
        help="steps or minutes between checkpoints, besides those at the end of epochs; "
        "SIGUSR1 asks for one now, SIGTERM for one before the run ends",
    )
    parser.add_argument(
        "--keep-checkpoints",
        type=whole(1, 1000),
        default=1,
        metavar="N",
        help="how many checkpoints of each network stay: checkpoint.pt, and earlier ones as "
        "checkpoint-STEP.pt",
    )


def _steps_or_minutes(text: str) -> str:
    """The value of --checkpoint-every."""
    number = re.fullmatch(r"[1-9][0-9]{0,8}|([0-9]{1,6}(\.[0-9]{1,3})?)min", text)
    if number is None or float(number[1] or 1) == 0:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no number of steps, such as 500, or of minutes, such as 10min"
        )
    return text


def _data(text: str) -> Path | str:
    """The value of --data: a path, or an address, of which a slash at the end says nothing."""
    return re.sub("(?<=[^:/])/+$", "", text) if is_address(text) else Path(text)


def absolute_data(data: Path | str) -> str:
    """The value of --data as a run records it."""
    return data if isinstance(data, str) else str(data.absolute())


def require_shards(data: Path | str) -> None:
    """Raise KineticsError if a folder holds no shards."""
    if isinstance(data, str):
        return  # a store is asked once, later
    if not (data / "dataset.json").exists():
        raise KineticsError(
            f"{data} holds no shards; make them with: kinetics-download MANIFEST.csv clips, then "
            f"extract-flow clips {data} (or give --data DIR)"
        )
