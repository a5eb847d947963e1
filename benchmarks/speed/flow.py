"""Speed of TV-L1, and how close its flow is to OpenCV's; each line of output is JSON.

    python benchmarks/speed/flow.py DATA
    python benchmarks/speed/flow.py DATA --part pairs --pairs 10,14,18

DATA is a folder with `clips`, `weizmann` and `flow` (Middlebury pairs with ground truth). Parts:

    pairs       real pairs against OpenCV's DualTVL1OpticalFlow at its defaults, one thread each
    shares      the time of each step of the algorithm, for some of these pairs
    threads     two threads against one
    middlebury  end-point errors and seconds: ours, OpenCV's DIS and scikit-image's TV-L1
    command     extract-flow against the flow alone, on the same frames and processors
    backends    differences between the numba and torch backends, and of both to float64
    cuda        pairs per second by batch size, if there is a GPU

The alternatives run in turns, after one turn that is not counted; a ratio is the median of the
ratios per turn. `command` limits both to as many processors as there are jobs; its ratios are with
the seconds that the command needs to start, without them, and of processor time.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_tools.core.system import num_processors
from kinetics_tools.flow.methods import compute, quantise, stream
from kinetics_tools.flow.tvl1 import torch_reference
from kinetics_tools.flow.tvl1.numba_cpu import Workspace
from kinetics_tools.flow.tvl1.parameters import TVL1Params
from kinetics_tools.media import decode, encode, opencv
from kinetics_tools.media.clips import conform
from kinetics_tools.media.recipe import ClipRecipe

Gray = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]

TURNS = 3
REPEATS = 5
COMMAND_TURNS = 2
SHARES_TURNS = 12
CLIPS = (
    "clips/R6llTwEh07w.mp4",
    "clips/v_SoccerJuggling_g23_c01.avi",
    "clips/RATRACE_wave_f_nm_np1_fr_goo_37.avi",
    "weizmann/jack/daria_jack.avi",
)
COMMAND_CLIPS = (
    "clips/arm_wrestling.mp4",
    "clips/v_SoccerJuggling_g23_c01.avi",
    "clips/RATRACE_wave_f_nm_np1_fr_goo_37.avi",
    "weizmann/jack/daria_jack.avi",
)
COPIES = 3  # of each of them: the run must be long compared with its start and end
STREAMED_FRAMES = 129  # an even number of pairs, so that both threads have work to the end
BACKENDS_PAIRS = (
    ("clips/arm_wrestling.mp4", 40),
    ("weizmann/run/denis_run.avi", 12),
    ("clips/R6llTwEh07w.mp4", 10),
    ("clips/R6llTwEh07w.mp4", 14),
    ("clips/v_SoccerJuggling_g23_c01.avi", 10),
)
# The defaults, and a fixed amount of work per pair.
BACKENDS_PARAMETERS = {
    "stopping": TVL1Params(),
    "fixed": TVL1Params(epsilon=1e-9, inner_iterations=8, outer_iterations=2),
}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("data", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append", help="(default: all)")
    parser.add_argument("--pairs", default="10,14,18", help="numbers of first frames")
    parser.add_argument("--jobs", default="1,2", help="numbers of jobs of the command")
    options = parser.parse_args()
    for part in options.part or PARTS:
        for result in PARTS[part](options):
            print(json.dumps({"part": part} | result | _machine()), flush=True)


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def _machine() -> dict[str, Any]:
    return {"processors": num_processors(), "machine": platform.machine()}


def take_turns(
    sides: Mapping[str, Callable[[], object]], turns: int = TURNS
) -> dict[str, list[float]]:
    """Seconds of each side in each turn, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def _frames(path: Path, num: int | None = None) -> Gray:
    return opencv.gray(decode.read_frames(path)[:num])


def measure_pairs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Pairs of frames t and t + 1: times of ours and OpenCV's, and their difference."""
    numbers = [int(number) for number in options.pairs.split(",")]
    ratios = []
    for name in CLIPS:
        frames = _frames(options.data / name, max(numbers) + 2)
        height, width = frames.shape[1:]
        space = Workspace(height, width, TVL1Params())
        theirs = opencv.make_solver("tvl1")
        for number in numbers:
            pair = frames[number], frames[number + 1]
            seconds = take_turns(
                {
                    "ours": lambda pair=pair, space=space: [  # type: ignore[misc]  # of this turn
                        space.solve(*pair) for _ in range(REPEATS)
                    ],
                    "opencv": partial(theirs, *pair),
                }
            )
            ratios.append(REPEATS * _ratio(seconds["opencv"], seconds["ours"]))
            found, wanted = space.solve(*pair), theirs(*pair)
            codes = abs(quantise(found).astype(int) - quantise(wanted))
            ours_s = statistics.median(seconds["ours"]) / REPEATS
            yield {
                "clip": name,
                "size": f"{width}x{height}",
                "pair": number,
                "times_opencv": round(ratios[-1], 1),
                "pairs_per_s": round(1 / ours_s, 1),
                "opencv_pairs_per_s": round(1 / statistics.median(seconds["opencv"]), 2),
                "million_pixel_steps": round(space.work / 1e6, 1),
                "codes_within_1_percent": round(100 * float((codes <= 1).mean()), 2),
                "mean_difference_px": round(float(abs(found - wanted).mean()), 4),
            }
    yield {
        "pairs": len(ratios),
        "times_opencv_geometric_mean": round(statistics.geometric_mean(ratios), 1),
        "times_opencv_least": round(min(ratios), 1),
    }


def measure_shares(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Nanoseconds per pixel of each part, from runs that differ in one count, and their shares.

    The time of a pair is rest + warps (warp + outer iterations (median + steps step)).
    """
    for name in CLIPS:
        for number in (int(number) for number in options.pairs.split(",")):
            before, after = _frames(options.data / name, number + 2)[number:]
            height, width = before.shape
            spaces = [
                Workspace(
                    height,
                    width,
                    TVL1Params(num_warps=w, outer_iterations=o, inner_iterations=i, epsilon=1e-9),
                )
                for w, o, i in ((1, 1, 1), (1, 1, 31), (1, 11, 1), (11, 1, 1))
            ]
            usual = Workspace(height, width, TVL1Params())
            sides = {
                str(n): partial(s.solve, before, after) for n, s in enumerate((*spaces, usual))
            }
            seconds = [min(turns) for turns in take_turns(sides, SHARES_TURNS).values()]
            pixels = spaces[0].work  # of all levels, with one step each
            step = (seconds[1] - seconds[0]) / 30
            median = (seconds[2] - seconds[0]) / 10 - step
            warp = (seconds[3] - seconds[0]) / 10 - step - median
            rest = seconds[0] - step - median - warp
            steps = usual.work / pixels
            parts = {"step": step, "median": median, "warp": warp, "rest": rest}
            shares = {"step": step * steps, "warp": warp * TVL1Params().num_warps, "rest": rest}
            shares["median"] = seconds[4] - sum(shares.values())
            yield {
                "clip": name,
                "size": f"{width}x{height}",
                "pair": number,
                "steps": round(steps),
                "ns_per_pixel": {k: round(v / pixels * 1e9, 2) for k, v in parts.items()},
                "percent": {k: round(100 * v / seconds[4]) for k, v in shares.items()},
            }


def measure_threads(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A stream of frames, with one thread and with two."""
    for name in CLIPS[1::2]:
        frames = _frames(options.data / name, STREAMED_FRAMES)
        seconds = take_turns(
            {
                str(threads): partial(compute, frames, threads=threads, backend="numba")
                for threads in (1, 2)
            }
        )
        yield {
            "clip": name,
            "pairs": len(frames) - 1,
            "pairs_per_s": round((len(frames) - 1) / statistics.median(seconds["1"]), 1),
            "two_threads_times_one": round(_ratio(seconds["1"], seconds["2"]), 2),
        }


def measure_middlebury(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Pairs with known flow: ours, OpenCV's two, and scikit-image's TV-L1 (the extra `speed`)."""
    for name in ("RubberWhale", "Dimetrodon"):
        folder = options.data / "flow" / name
        pair = [
            opencv.gray(decode.read_frames(folder / f"frame{n}.png", None)[0]) for n in (10, 11)
        ]
        height, width = pair[0].shape
        stored = np.fromfile(folder / "flow10.flo", np.float32, offset=12)
        truth = stored.reshape(height, width, 2)
        known = (abs(truth) < 1e9).all(axis=2)
        methods: dict[str, Callable[[Gray, Gray], Flow]] = {
            "tvl1": Workspace(height, width, TVL1Params()).solve,
            "opencv-tvl1": opencv.make_solver("tvl1"),
            "opencv-dis-medium": opencv.make_solver("dis"),
            "scikit-image-tvl1": _scikit_image,
        }
        seconds = take_turns({m: partial(solve, *pair) for m, solve in methods.items()})
        for method, solve in methods.items():
            error = np.linalg.norm(solve(*pair) - truth, axis=2)[known].mean()
            yield {
                "pair": name,
                "method": method,
                "end_point_error_px": round(float(error), 3),
                "seconds": round(statistics.median(seconds[method]), 3),
            }


def _scikit_image(before: Gray, after: Gray) -> Flow:
    from skimage import registration

    solve: Callable[..., Any] = registration.optical_flow_tvl1
    rows, columns = solve(before / np.float32(255), after / np.float32(255))
    return np.stack([columns, rows], axis=2).astype(np.float32)


def measure_command(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """extract-flow on clips as kinetics-download makes them, against the flow of their frames."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "clips"
        made = [_as_downloaded(options.data / clip, source) for clip in COMMAND_CLIPS]
        for clip, copy in itertools.product(made, range(1, COPIES)):
            shutil.copy(clip, clip.with_stem(f"{clip.stem}-{copy}"))
        clips = [_frames(clip) for clip in made] * COPIES
        for jobs in map(int, options.jobs.split(",")):
            outs = [Path(name) / f"out-{jobs}-{turn}" for turn in range(COMMAND_TURNS + 1)]
            with _on_processors(jobs):
                yield _measure_command(source, clips, outs, jobs)


def _measure_command(
    source: Path, clips: list[Gray], outs: list[Path], jobs: int
) -> dict[str, Any]:
    num_pairs = sum(len(frames) - 1 for frames in clips)
    fresh = iter(outs)
    spent: dict[str, list[float]] = {"flow": [], "command": []}

    def flow() -> None:
        with _processor_time(spent["flow"]):
            _drain(clips, jobs)

    def command() -> None:
        with _processor_time(spent["command"]):
            _extract(source, next(fresh), jobs)

    seconds = take_turns({"flow": flow, "command": command}, COMMAND_TURNS)
    start = time.perf_counter()
    _extract(source, outs[0], jobs)  # finds all shards done
    start_s = time.perf_counter() - start
    working = [each - start_s for each in seconds["command"]]
    return {
        "jobs": jobs,
        "pairs": num_pairs,
        "pairs_per_s": round(num_pairs / statistics.median(seconds["command"]), 1),
        "start_s": round(start_s, 1),
        "flow_alone_pairs_per_s": round(num_pairs / statistics.median(seconds["flow"]), 1),
        "command_by_flow_alone": round(_ratio(seconds["flow"], seconds["command"]), 3),
        "the_same_once_started": round(_ratio(seconds["flow"], working), 3),
        "of_processor_time": round(_ratio(spent["flow"][1:], spent["command"][1:]), 3),
    }


@contextmanager
def _on_processors(num: int) -> Iterator[None]:
    """Limit what is started in the block to `num` processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:num])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _processor_time(spent: list[float]) -> Iterator[None]:
    """Append the processor seconds of this process and its children in the block."""
    before = sum(os.times()[:4])
    yield
    spent.append(sum(os.times()[:4]) - before)


def _as_downloaded(video: Path, folder: Path) -> Path:
    """Convert a video to a clip in a class folder, as kinetics-download does."""
    clip = folder / "some" / f"{video.stem}.mp4"
    clip.parent.mkdir(parents=True, exist_ok=True)
    binary = encode.find_ffmpeg()
    recipe = ClipRecipe(ffmpeg=encode.ffmpeg_version(binary))
    conform(video, clip, recipe=recipe, binary=binary)
    return clip


def _drain(clips: list[Gray], threads: int) -> None:
    for frames in clips:
        for _ in stream(frames, threads=threads, backend="numba"):
            pass


def _extract(source: Path, out: Path, jobs: int) -> None:
    code = "from kinetics_tools.extract.cli import main; main()"
    words = [str(source), str(out), "--short-side", "keep", "--samples-per-shard", "1"]
    subprocess.run(
        [sys.executable, "-c", code, *words, "--jobs", str(jobs), "--device", "cpu"],
        check=True,
        capture_output=True,
    )


def measure_backends(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """99.9th percentiles, in pixels, of the differences between Numba, torch, and float64."""
    for name, number in BACKENDS_PAIRS:
        before, after = _frames(options.data / name, number + 2)[number:]
        height, width = before.shape
        for stops, parameters in BACKENDS_PARAMETERS.items():
            flows = {
                "numba": Workspace(height, width, parameters).solve(before, after),
                "torch": _readable(before, after, parameters, np.float32),
                "float64": _readable(before, after, parameters, np.float64),
            }
            yield {"clip": name, "pair": number, "iterations": stops} | {
                f"{a}_{b}_px": round(float(np.percentile(abs(flows[a] - flows[b]), 99.9)), 4)
                for a, b in (("numba", "torch"), ("numba", "float64"), ("torch", "float64"))
            }


def _readable(
    before: Gray, after: Gray, parameters: TVL1Params, kind: type[np.floating[Any]]
) -> Any:
    import torch

    first, second = (torch.from_numpy(image.astype(kind)[None]) for image in (before, after))
    return torch_reference.between(first, second, parameters)[0].permute(1, 2, 0).numpy()


def measure_cuda(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A stream on the GPU, by number of frames."""
    import torch

    if not torch.cuda.is_available():
        return
    frames = _frames(options.data / CLIPS[0])
    for num in (32, 128, len(frames)):
        seconds = take_turns({"gpu": partial(compute, frames[:num], device="cuda")})
        yield {
            "gpu": torch.cuda.get_device_name(),
            "pairs": num - 1,
            "pairs_per_s": round((num - 1) / statistics.median(seconds["gpu"]), 1),
        }


PARTS: Mapping[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "pairs": measure_pairs,
    "shares": measure_shares,
    "threads": measure_threads,
    "middlebury": measure_middlebury,
    "command": measure_command,
    "backends": measure_backends,
    "cuda": measure_cuda,
}

if __name__ == "__main__":
    main()
