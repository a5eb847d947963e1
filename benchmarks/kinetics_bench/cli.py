"""`run-benchmark`: parse, call, print."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from kinetics_bench.archs.registry import ARCHS, CHANNELS, STREAMS
from kinetics_bench.protocols import PROTOCOLS, protocol_named
from kinetics_bench.recipes import RECIPES
from kinetics_bench.weights.choices import FINETUNES, INITS, split_word
from kinetics_tools.core import cli, console, system
from kinetics_tools.core.cli import MAX_PROCESSES, Exit, Parser, one_of, positive, whole
from kinetics_tools.core.errors import KineticsError, OutError, UnknownNameError, unknown_name
from kinetics_tools.core.file_cache import CACHE_BYTES
from kinetics_tools.core.files import hold_lock, make_folder, remove_leftovers
from kinetics_tools.core.store import is_address

if TYPE_CHECKING:
    from kinetics_bench.evaluation.results import Result
    from kinetics_bench.training.checkpoint import Checkpoint
    from kinetics_bench.training.occasions import Saving

PROG: Final = "run-benchmark"
RUNS: Final = Path("runs")
ARCH: Final = "i3d"  # whose weights are published
DATA: Final = Path("shards")
TEST_SPLIT: Final = "val"
REPORT: Final = "report.html"
MIN_DURATION_S: Final = 0.08  # two frames at 25 per second


def main() -> NoReturn:
    """The console script."""
    argv = sys.argv[1:]
    again = "the same command"
    if cli.take_verb(argv, VERBS)[0] is None:
        again += " with --resume" + (" in place of --force" if "--force" in argv else "")
    cli.run(lambda: run(argv), again=again)


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return the exit code."""
    verb, rest = cli.take_verb(list(argv), VERBS)
    parser, act = VERBS[verb] if verb else (train_parser, _train)
    return act(parser().parse_args(rest))


def train_parser() -> Parser:
    """The options of the command without a verb: training and evaluation."""
    parser = Parser(
        PROG,
        "Train and evaluate an architecture on shards that extract-flow wrote.",
        "verbs: run-benchmark evaluate | report | archs | predict | features | verify-weights "
        "(each has --help). "
        "Many processes: torchrun --no-python --nproc-per-node N run-benchmark ... "
        "exit codes: 0 complete; 2 unusable input, or a training that diverged or lost a process; "
        "130 interrupted; 143 terminated (--resume continues)",
    )
    parser.add_argument(
        "--arch", required=True, type=one_of("architecture", ARCHS), help=_known(ARCHS)
    )
    added = ", ".join(
        name for name, arch in ARCHS.items() if "joint" in arch.streams and not arch.joint_training
    )
    parser.add_argument(
        "--stream",
        type=one_of("stream", STREAMS),
        help=f"rgb, flow, or joint. joint of {added}: both streams are trained separately (or "
        "reused) and their logits are added; for other architectures: one network that takes both "
        "streams (default: joint; rgb for architectures without flow)",
    )
    parser.add_argument(
        "--recipe", default="paper", type=one_of("recipe", RECIPES), help=_known(RECIPES)
    )
    _add_data(parser, DATA, TEST_SPLIT)
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="as --test-split")
    _add_start(parser)
    parser.add_argument(
        "--batch-size", type=positive, help="clips per step, of all processes; overrides the recipe"
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="for a short test; overrides the recipes small and sample (paper counts steps)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="folder for checkpoints and results (default: runs/ARCH-STREAM-RECIPE)",
    )
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="continue a training that stopped")
    there.add_argument("--force", action="store_true", help="retrain what is finished")
    _add_saving(parser)
    cli.add_cache_dir(parser)
    parser.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="less memory for a third more operations: activations are computed again in the "
        "backward pass; the weights are the same",
    )
    _add_machine(parser)
    parser.add_common()
    return parser


def evaluate_parser() -> Parser:
    """The options of the verb `evaluate`."""
    parser = Parser(
        f"{PROG} evaluate",
        "Evaluate a finished run again, also on other clips or with another protocol; or evaluate "
        "given weights with the paper's protocol.",
        "Options not given are taken from the run; with --init the defaults are --data shards "
        "--test-split val.",
    )
    _add_networks(parser, "run", nargs="?", metavar="WORK_DIR", help="the --work-dir of a run")
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="folder for the results of --init (default: runs/ARCH-STREAM-INIT); later it can be "
        "given as WORK_DIR",
    )
    _add_data(parser, None, None)
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="evaluate clips that the weights were trained on too; the result says how many",
    )
    _add_machine(parser)
    parser.add_common()
    return parser


def report_parser() -> Parser:
    """The options of the verb `report`."""
    parser = Parser(f"{PROG} report", "Write one HTML page about one run or several.")
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="work-dirs (default: all in runs/)"
    )
    parser.add_argument("--out", type=Path, default=RUNS / REPORT, help="path of the page")
    parser.add_common()
    return parser


def predict_parser() -> Parser:
    """The options of the verb `predict`."""
    parser = Parser(
        f"{PROG} predict", "Predict the classes of any video files, with probabilities."
    )
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="a video file")
    _add_networks(parser, "--work-dir", dest="run", help="a finished run")
    parser.add_argument("--top", type=positive, default=5, help="number of classes shown")
    _add_span(parser, "10 s, or to the end of the video")
    parser.add_argument("--json", action="store_true", help="print one JSON object per video")
    _add_machine(parser, workers=False)
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
    _add_networks(parser, "--work-dir", dest="run", help="a finished run")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("features"),
        metavar="DIR",
        help="folder to fill (default: features)",
    )
    _add_span(parser, "to the end of the video")
    parser.add_argument("--force", action="store_true", help="compute again what is there already")
    _add_machine(parser, workers=False)
    parser.add_common()
    return parser


def verify_weights_parser() -> Parser:
    """The options of the verb `verify-weights`."""
    parser = Parser(
        f"{PROG} verify-weights",
        "Compare our logits for the authors' example (a clip of cricket) with the published ones.",
        "Weights and both arrays are in github.com/deepmind/kinetics-i3d, folder data/; other "
        "copies of the weights can be used. Exit code 0: all numbers are equal within the "
        "tolerance; 3: some are not.",
    )
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="a folder with one file of weights per stream, its name with rgb or flow in it; or a "
        "file of one stream",
    )
    for stream, channels in CHANNELS.items():
        parser.add_argument(
            f"--{stream}",
            type=Path,
            metavar="NPY",
            help=f"v_CricketShot_g04_c01_{stream}.npy, (1, 79, 224, 224, {channels})",
        )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_common()
    return parser


def archs_parser() -> Parser:
    """The options of the verb `archs`."""
    parser = Parser(
        f"{PROG} archs",
        "List the architectures: parameters and the paper's rounded number, inputs in training and "
        "test and their seconds of video, FLOPs per input (a multiplication and an addition are "
        "two), and the smallest input.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list, one object per network"
    )
    parser.add_common()
    return parser


def _train(arguments: argparse.Namespace) -> int:
    stream = _stream(arguments.arch, arguments.stream)
    _require_shards(arguments.data)
    from kinetics_bench.device import open_machine
    from kinetics_bench.inference.networks import Request
    from kinetics_bench.run import train_and_evaluate

    request = Request(
        arch=arguments.arch,
        stream=stream,
        recipe=arguments.recipe,
        data=_absolute_data(arguments.data),
        train_split=arguments.train_split,
        test_split=arguments.test_split,
        flow=arguments.flow,
        protocol=arguments.protocol,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        splits=arguments.splits and arguments.splits.absolute(),
        seed=arguments.seed,
        num_workers=arguments.workers,
        init=_absolute(arguments.init),
        finetune=arguments.finetune,
        cache_bytes=arguments.cache_bytes,
    )
    name = "-".join((arguments.arch, stream, arguments.recipe))
    work_dir = arguments.work_dir or RUNS / "+".join((name, *_overrides(arguments)))
    placed = open_machine(
        arguments.device, arguments.amp, activation_checkpointing=arguments.checkpoint_activations
    )
    with _locked(work_dir), placed as machine:
        results = train_and_evaluate(
            request,
            work_dir,
            machine,
            before="resume" if arguments.resume else "force" if arguments.force else "keep",
            saving=_saving(arguments),
            cache=arguments.cache_dir,
        )
        return _print_results(results, work_dir) if machine.is_main else Exit.COMPLETE


def _evaluate(arguments: argparse.Namespace) -> int:
    _require_init(arguments, "arch", "work_dir")
    if arguments.init:
        _require_shards(arguments.data or DATA)
    from kinetics_bench.device import open_machine
    from kinetics_bench.inference.networks import Request
    from kinetics_bench.run import evaluate_again, evaluate_weights

    given = {
        "data": arguments.data and _absolute_data(arguments.data),
        "test_split": arguments.test_split,
        "stream": arguments.stream,
        "protocol": arguments.protocol,
        "flow": arguments.flow,
        "splits": arguments.splits and arguments.splits.absolute(),
        "num_workers": arguments.workers,
        "cache_bytes": arguments.cache_bytes,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    work_dir, evaluate = arguments.run, partial(evaluate_again, arguments.run, changes)
    if arguments.init:
        arch, stream = _network(arguments)
        request = Request(
            arch=arch,
            stream=stream,
            recipe="paper",
            data=_absolute_data(DATA),
            train_split=None,
            test_split=TEST_SPLIT,
            init=_absolute(arguments.init),
        )
        work_dir = arguments.work_dir or RUNS / "-".join((arch, stream, _short(arguments.init)))
        evaluate = partial(evaluate_weights, replace(request, **changes), work_dir)
    with _locked(work_dir), open_machine(arguments.device, arguments.amp) as machine:
        results, folder = evaluate(
            machine, cache=arguments.cache_dir, allow_overlap=arguments.allow_overlap
        )
        return _print_results(results, folder) if machine.is_main else Exit.COMPLETE


def _report(arguments: argparse.Namespace) -> int:
    from kinetics_bench.evaluation.report import write_report

    # A mistyped command leaves a folder with only a lock in it.
    remove_leftovers(arguments.out.parent, deep=False)
    runs = arguments.runs or sorted({path.parent for path in RUNS.glob("*/[!.]*")})
    print(write_report(runs, arguments.out))
    return Exit.COMPLETE


def _predict(arguments: argparse.Namespace) -> int:
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


def _features(arguments: argparse.Namespace) -> int:
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

    _require_init(arguments, "arch")
    cache = arguments.cache_dir
    if arguments.run:
        return networks_of_run(arguments.run, arguments.stream, cache=cache)
    return networks_of_weights(arguments.init, *_network(arguments), cache=cache, whole=whole)


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


def _verify_weights(arguments: argparse.Namespace) -> int:
    given = {stream: getattr(arguments, stream) for stream in CHANNELS}
    clips = {stream: path for stream, path in given.items() if path is not None}
    if not clips:
        raise KineticsError("give the arrays of the example: --rgb NPY, --flow NPY, or both")
    from kinetics_bench.device import open_machine
    from kinetics_bench.weights.published_example import LOGIT_TOLERANCE, verify, worst

    with open_machine(arguments.device, "none") as machine:
        checks = verify(arguments.path, clips, machine)
    print(console.text_table([check.cells() for check in checks], left_aligned=("class", "")))
    num_passed = sum(check.passed for check in checks)
    largest = worst(checks)
    print(
        f"{num_passed} of {len(checks)} numbers agree within {LOGIT_TOLERANCE:g}; the largest "
        f"difference is {abs(largest.found - largest.expected):.3g} ({largest.stream}, "
        f"{largest.what})"
    )
    return Exit.COMPLETE if num_passed == len(checks) else Exit.PERMANENT_GAPS


def _archs(arguments: argparse.Namespace) -> int:
    from kinetics_bench.archs.table import table

    rows = table()
    if arguments.json:
        print(json.dumps([row.as_json() for row in rows], indent=1))
    else:
        words = ("stream", "train input", "test input", "smallest input")
        print(console.text_table([row.cells() for row in rows], left_aligned=words))
    return Exit.COMPLETE


VERBS: Final[Mapping[str, Any]] = {
    "evaluate": (evaluate_parser, _evaluate),
    "report": (report_parser, _report),
    "archs": (archs_parser, _archs),
    "predict": (predict_parser, _predict),
    "features": (features_parser, _features),
    "verify-weights": (verify_weights_parser, _verify_weights),
}


def _add_start(parser: Parser) -> None:
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


def _add_networks(parser: Parser, run: str, **options: Any) -> None:
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


def _add_data(parser: Parser, data: Path | None, test_split: str | None) -> None:
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
        help=f"{_known(PROTOCOLS)}, or another CLIPSxCROPS (default: the recipe's)",
    )


def _protocol(name: str) -> str:
    try:
        return protocol_named(name).name
    except UnknownNameError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_span(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--start",
        type=_seconds,
        metavar="S",
        help="begin here, in seconds from the video's start (default: 0)",
    )
    parser.add_argument(
        "--duration", type=_duration, metavar="D", help=f"duration in seconds (default: {default})"
    )


def _add_machine(parser: Parser, *, workers: bool = True) -> None:
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
        choices=("auto", "none", "bfloat16"),
        help="mixed precision; auto: bfloat16 if the hardware supports it",
    )


def _known(table: Mapping[str, Any]) -> str:
    return "one of: " + ", ".join(table)


def _stream(arch: str, asked: str | None) -> str:
    """The stream that was asked for, or the first one of the architecture."""
    streams = ARCHS[arch].streams
    stream = asked or streams[0]
    if stream not in streams:
        raise UnknownNameError(unknown_name(f"stream of {arch}", stream, streams))
    return stream


def _network(arguments: argparse.Namespace) -> tuple[str, str]:
    """Architecture and stream of --init, from the options of `_add_networks`."""
    arch = arguments.arch or ARCH
    return arch, _stream(arch, arguments.stream)


def _absolute(init: str) -> str:
    """The value of --init with an absolute path."""
    return init if init in INITS or not init.strip() else str(Path(init).absolute())


def _short(init: str) -> str:
    """The value of --init as part of a folder's name."""
    if init in INITS:
        return init
    path, word = split_word(init)
    return "-".join(filter(None, (path.stem, word)))


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """Options that override the recipe, for the name of the folder."""
    words = [f"batch-{arguments.batch_size}"] if arguments.batch_size else []
    words += [f"epochs-{arguments.epochs}"] if arguments.epochs else []
    if arguments.init != INITS[0]:
        words.append(_short(arguments.init))
    return words + (["last"] if arguments.finetune == "last" else [])


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


def _require_init(arguments: argparse.Namespace, *names: str) -> None:
    """Raise KineticsError if a run is given together with options that need --init."""
    for name in names:
        if arguments.run and getattr(arguments, name) is not None:
            raise KineticsError(
                f"--{name.replace('_', '-')} is for --init; {arguments.run} is a run, which has "
                "its own: leave one of them out"
            )


def _add_saving(parser: Parser) -> None:
    """Add the options that `_saving` reads."""
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


def _saving(arguments: argparse.Namespace) -> Saving:
    from kinetics_bench.training.occasions import Saving

    text, keep = arguments.checkpoint_every, arguments.keep_checkpoints
    if text.endswith("min"):
        return Saving(seconds=60 * float(text.removesuffix("min")), keep=keep)
    return Saving(steps=int(text), keep=keep)


def _data(text: str) -> Path | str:
    """The value of --data: a path, or an address, of which a slash at the end says nothing."""
    return re.sub("(?<=[^:/])/+$", "", text) if is_address(text) else Path(text)


def _absolute_data(data: Path | str) -> str:
    return data if isinstance(data, str) else str(data.absolute())


def _require_shards(data: Path | str) -> None:
    if isinstance(data, str):
        return  # a store is asked once, later
    if not (data / "dataset.json").exists():
        raise KineticsError(
            f"{data} holds no shards; make them with: kinetics-download MANIFEST.csv clips, then "
            f"extract-flow clips {data} (or give --data DIR)"
        )


@contextlib.contextmanager
def _locked(work_dir: Path) -> Iterator[None]:
    """Hold the lock of a work-dir for the block, without what killed runs left in it.

    With torchrun the first process holds it for all.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with hold_lock(work_dir):
        remove_leftovers(work_dir)
        yield


def _print_results(results: Sequence[Result], folder: Path) -> int:
    from kinetics_bench.evaluation.report import write_report
    from kinetics_bench.evaluation.results import cells

    report = write_report([folder], folder / REPORT)
    print(console.text_table([cells(result) for result in results]))
    print(f"report: {report}")
    return Exit.COMPLETE


def _print_classes(video: Path, shares: Sequence[tuple[str, float]], *, as_json: bool) -> None:
    if as_json:
        classes = [{"label": label, "probability": share} for label, share in shares]
        print(json.dumps({"video": str(video), "classes": classes}))
        return
    print(video)
    for label, share in shares:
        print(f"  {share:7.2%}  {label}")


if __name__ == "__main__":
    main()
