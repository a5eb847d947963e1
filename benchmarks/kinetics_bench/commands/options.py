"""Options that several verbs share, and what their values mean."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.protocols import PROTOCOLS, protocol_named
from kinetics_bench.weights.choices import FINETUNES, INITS, split_word
from kinetics_tools.core import cli
from kinetics_tools.core.cli import MAX_PROCESSES, Parser, one_of, whole
from kinetics_tools.core.errors import KineticsError, UnknownNameError, unknown_name
from kinetics_tools.core.file_cache import CACHE_BYTES
from kinetics_tools.core.store import is_address
from kinetics_tools.core.text import read_text

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
        metavar="WEIGHTS",
        help=f"initial weights: {', '.join(INITS)}, or a path\n"
        "imagenet: torchvision's GoogLeNet (downloaded once), inflated for i3d; kinetics: the "
        "authors' i3d trained on ImageNet and Kinetics-400 (downloaded once, read with "
        "TensorFlow); a file: a checkpoint of this command, the authors' model.ckpt, a state dict "
        "of piergiaj, hassony2 or ours (torch.save or safetensors); a folder with one such file "
        "that has the stream's name in its name. PATH:WORD chooses one of several networks in a "
        "file, such as PATH:ema",
    )
    parser.add_argument(
        "--finetune",
        default=FINETUNES[0],
        choices=FINETUNES,
        help="what is trained: all layers, or only the last one\non the fixed features of --init",
    )


def add_networks(parser: Parser, run: str, **options: Any) -> None:
    """Add the options that name networks: `run` (option or positional argument), or --init."""
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument(run, type=Path, **options)
    whose.add_argument(
        "--init",
        metavar="WEIGHTS",
        help=f"weights without training: {', '.join(INITS[1:])}, or a path\nas for training, with "
        "--arch; input as in its recipe paper, classes of Kinetics-400",
    )
    parser.add_argument(
        "--arch",
        type=one_of("architecture", ARCHS),
        help=f"architecture of --init (default: {ARCH})",
    )
    parser.add_argument(
        "--stream",
        type=one_of("stream", STREAMS),
        help="rgb, flow or joint (default: the run's)\nwith --init the architecture's first one",
    )
    cli.add_cache_dir(parser.more)


def add_data(parser: Parser, data: Path | None, test_split: str | None) -> None:
    """Add the options that say what is evaluated; None: the default is the run's."""
    parser.add_argument(
        "--data",
        type=folder_or_address,
        default=data,
        metavar="DIR|ADDRESS",
        help="shards that extract-flow wrote, a folder or an address\nof a copy: s3://, gs://, "
        "hf://, https:// or another that fsspec reads",
    )
    parser.more.add_argument(
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
        help="a split of the shards, ucf101/1 (to 3), hmdb51/1, or a file\nof keys, one per "
        "line, with * and ?",
    )
    parser.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder of the official lists of UCF-101 and HMDB-51\nas they are published, or the "
        "folder above the folders ucf101 and hmdb51",
    )
    parser.more.add_argument(
        "--flow", metavar="NAME", help="name of the flow (default: the only one in the shards)"
    )
    parser.add_argument(
        "--protocol",
        type=_protocol,
        metavar="NAME",
        help=f"{', '.join(PROTOCOLS)} or CLIPSxCROPS (default: the recipe's)",
    )


def add_scope(parser: Parser) -> None:
    """Add the options that `scope_of` reads: which clips count, and what a number covers."""
    parser.add_argument(
        "--classes",
        metavar="A,B|FILE",
        help="only these classes, by name, or a file with a name per line",
    )
    parser.more.add_argument(
        "--min-coverage",
        type=_share,
        metavar="SHARE",
        help="refuse a test split of which fewer clips are there, such as 0.95 or 95%%",
    )
    parser.more.add_argument(
        "--pretrained-on",
        action="append",
        metavar="LIST",
        help="videos that the weights were trained on before: an official list, such as "
        "kinetics700/train, or the path or address of a list; the result says how many test clips "
        "are of these, and the accuracy without them",
    )
    parser.more.add_argument(
        "--allow-overlap",
        action="store_true",
        help="go on if test clips are of videos that the weights were trained on (evaluate: or are "
        "these clips); the result says how many, and the accuracy without them",
    )


def scope_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request that the options of `add_scope` give."""
    given = {
        "classes": arguments.classes and classes_named(arguments.classes),
        "min_coverage": arguments.min_coverage,
        "pretrained_on": arguments.pretrained_on
        and tuple(_absolute_list(each) for each in arguments.pretrained_on),
        "allow_overlap": arguments.allow_overlap or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def classes_named(text: str) -> tuple[str, ...]:
    """The value of --classes."""
    path = Path(text)
    lines = read_text(path).splitlines() if path.is_file() else text.split(",")
    stripped = (line.strip() for line in lines if not line.startswith("#"))
    names = tuple(dict.fromkeys(filter(None, stripped)))
    if not names:
        raise KineticsError(f"--classes {text}: no class is named there")
    return names


def _absolute_list(text: str) -> str:
    """A value of --pretrained-on with an absolute path."""
    from kinetics_tools.download.official_lists import is_name

    return text if is_name(text) or is_address(text) else str(Path(text).absolute())


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no share, such as 0.95 or 95%")
    return share


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
            help="processes that read clips (default: one per processor)\nin training none if all "
            "decoded clips fit in memory",
        )
    precisions = ("auto", "none", "bfloat16", *(["float16"] if training else []))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--amp",
        default="auto",
        choices=precisions,
        metavar="TYPE",
        help=f"mixed precision: {', '.join(precisions)}\nauto: bfloat16 if the hardware supports it"
        + ("; float16, with loss scaling, is for GPUs without it (V100, T4)" if training else ""),
    )


def add_dump(parser: Parser) -> None:
    """Add the option that `print_results` takes."""
    parser.add_argument(
        "--dump",
        choices=("csv",),
        help="also write predictions.csv beside each predictions.parquet\nof key, label, "
        "prediction, and the probability of each class",
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
    parser.more.add_argument(
        "--checkpoint-every",
        type=_steps_or_minutes,
        default="10min",
        metavar="N|Nmin",
        help="steps or minutes between checkpoints, besides those at the end of epochs; "
        "SIGUSR1 asks for one now, SIGTERM for one before the run ends",
    )
    parser.more.add_argument(
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


def folder_or_address(text: str) -> Path | str:
    """The value of --data: a path, or an address, of which a slash at the end says nothing."""
    return re.sub("(?<=[^:/])/+$", "", text) if is_address(text) else Path(text)


def absolute_data(data: Path | str) -> str:
    """The value of --data as a run records it."""
    return data if isinstance(data, str) else str(data.absolute())


def require_shards(data: Path | str, option: str = "--data DIR") -> None:
    """Raise KineticsError if a folder holds no shards; `option` names another one."""
    if isinstance(data, str):
        return  # a store is asked once, later
    if not (data / "dataset.json").exists():
        raise KineticsError(
            f"{data} holds no shards; make them with: kinetics-download MANIFEST.csv clips, then "
            f"extract-flow clips {data} (or give {option})"
        )
