"""What cheaper decoding costs in bytes and quality; each line of output is JSON.

    python benchmarks/speed/encoding.py DATA

DATA has the clips of `CLIPS`. Each is scaled once as kinetics-download does, without loss: these
frames are the reference. Each candidate encodes them with the ffmpeg of the project. A line is one
candidate and one clip:

`ms_a_view`: to decode 64 frames in a row, from the keyframe before them, with one thread. The
starts are drawn once for each clip. Candidates take turns; it is the median of the turns, and the
mean of the starts. Pixels are not converted to RGB.
`bytes`: of the clip. `ssim`, `psnr`: of ffmpeg's filters, of luma and chroma together.
`encode_s`: to encode the clip.

All times are processor time. Lines of the clip "all" are the means of the clips, as in an epoch
that sees a view of each. `times_views` is views a second and `times_bytes` is bytes, both relative
to today's recipe; `meets` says whether the rule is met: at least 1.4 times the views, at most 1.25
times the bytes, SSIM no worse on any clip. The ffmpeg that encodes has one thread.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kinetics_tools.core.system import num_processors
from kinetics_tools.media import decode
from kinetics_tools.media.clips import conform, cut
from kinetics_tools.media.encode import ffmpeg_version, find_ffmpeg
from kinetics_tools.media.recipe import ClipRecipe

CLIPS: Mapping[str, int | None] = {  # by name, the second where ten are cut; None: all of it
    "clips/R6llTwEh07w.mp4": None,
    "clips/WUzgd7C1pWA.mp4": None,
    "clips/arm_wrestling.mp4": None,
    "clips/bikes.mp4": None,
    "clips/v_SoccerJuggling_g23_c01.avi": None,
    "clips/long_1080p.mp4": 72,
}
CUT_S = 10
VIEW_FRAMES = 64
LEAST_VIEWS, MOST_BYTES = 1.4, 1.25
TODAY = "today"

Options = dict[str, str | int | float]
_CAVLC: Options = {"coder": "vlc"}
_FAST: Options = {"tune": "fastdecode"}  # CAVLC, no deblocking, no weighted prediction
# What is not named is as in today's recipe.
CANDIDATES: Mapping[str, Options] = {
    TODAY: {},
    "no deblocking": {"x264-params": "no-deblock=1"},
    "no B-frames": {"bf": 0},
    "one reference": {"refs": 1},
    "keyframes 32": {"g": 32},
    "keyframes 64": {"g": 64},
    "CAVLC": _CAVLC,
    "CAVLC, crf 17.5": _CAVLC | {"crf": 17.5},
    "CAVLC, crf 17": _CAVLC | {"crf": 17},
    "CAVLC, no deblocking, crf 17": _CAVLC | {"crf": 17, "x264-params": "no-deblock=1"},
    "fastdecode": _FAST,
    "fastdecode, crf 17": _FAST | {"crf": 17},
    "fastdecode, crf 16": _FAST | {"crf": 16},
    "fastdecode, crf 17, keyframes 24": _FAST | {"crf": 17, "g": 24},
    "fastdecode, crf 16.5, keyframes 32": _FAST | {"crf": 16.5, "g": 32},
    "fastdecode, crf 17, no B-frames, keyframes 32": _FAST | {"crf": 17, "bf": 0, "g": 32},
    "fastdecode, no B-frames, one reference": _FAST | {"bf": 0, "refs": 1},
    "fastdecode, preset slow": _FAST | {"preset": "slow"},
    "tune ssim and fastdecode, crf 16.5": {"tune": "ssim,fastdecode", "crf": 16.5},
}


@dataclass(frozen=True)
class Reference:
    """The frames of one clip before they are encoded.

    Attributes:
        name: of the clip.
        path: raw frames, so that reading them costs the encoder nothing.
        num_frames: how many they are.
    """

    name: str
    path: Path
    num_frames: int


def make_reference(data: Path, name: str, start_s: int | None, folder: Path) -> Reference:
    """The frames that today's recipe makes of a clip, as a raw file in `folder`."""
    binary = find_ffmpeg()
    lossless = ClipRecipe(crf=0, preset="ultrafast")
    clip, raw = folder / "lossless.mp4", folder / f"{Path(name).stem}.y4m"
    if start_s is None:
        made = conform(data / name, clip, recipe=lossless, binary=binary)
    else:
        start, end = Fraction(start_s), Fraction(start_s + CUT_S)
        made = cut(data / name, clip, start_s=start, end_s=end, recipe=lossless, binary=binary)
    _run(binary, "-i", clip, raw)
    return Reference(Path(name).stem, raw, made.num_frames)


def _run(binary: Path, *words: object) -> str:
    """Run ffmpeg and return what it said."""
    command = [str(binary), "-hide_banner", "-nostdin", "-y", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def encode(reference: Reference, options: Options, clip: Path) -> float:
    """Encode as ClipWriter does, but for `options`; processor seconds."""
    recipe = ClipRecipe()
    ours: Options = {"preset": recipe.preset, "crf": recipe.crf, "g": recipe.keyframe_interval}
    words = [word for option in (ours | options).items() for word in (f"-{option[0]}", option[1])]
    before = _seconds_of_children()
    _run(
        find_ffmpeg(),
        *("-threads", 1, "-i", reference.path, "-c:v", "libx264", *words, "-threads", 1),
        *("-fps_mode", "passthrough", "-fflags", "+bitexact", "-flags:v", "+bitexact"),
        *("-movflags", "+faststart", clip),
    )
    seconds = _seconds_of_children() - before
    if decode.count_frames(clip) != reference.num_frames:
        raise RuntimeError(f"{clip.name}: frames were lost")
    return seconds


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quality(clip: Path, reference: Reference) -> dict[str, float]:
    """SSIM and PSNR (dB) against the reference, of luma and chroma together."""
    graph = (
        "[0:v]settb=1/25,setpts=N,split[a][b];[1:v]settb=1/25,setpts=N,split[c][d];"
        "[a][c]ssim[s];[b][d]psnr[p]"
    )
    said = _run(
        find_ffmpeg(),
        *("-i", clip, "-i", reference.path, "-lavfi", graph),
        *("-map", "[s]", "-map", "[p]", "-f", "null", "-"),
    )
    return {
        "ssim": float(said.split(" All:")[1].split()[0]),
        "psnr": float(said.split("average:")[1].split()[0]),
    }


def decode_view(data: bytes, start: int) -> float:
    """Decode the frames `start` to `start` + VIEW_FRAMES of a clip; processor seconds."""
    last = start + VIEW_FRAMES - 1
    began = time.process_time()
    with decode.open_video(data) as (container, stream):
        rate = stream.average_rate
        container.seek(int(start / rate / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if round(frame.pts * frame.time_base * rate) >= last:
                break
    return time.process_time() - began


def decode_all(
    clips: Mapping[str, bytes], starts: Sequence[int], rounds: int
) -> dict[str, list[float]]:
    """By candidate the milliseconds of each view. Candidates take turns; the first is not counted.

    Args:
        clips: the same clip by each candidate.
        starts: the first frames of the views.
        rounds: turns of each candidate.
    """
    seconds: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for start in starts:
            for name, data in clips.items():
                took = decode_view(data, start)
                if turn:
                    seconds.setdefault((name, start), []).append(took)
    return {
        name: [1000 * statistics.median(seconds[name, start]) for start in starts] for name in clips
    }


def measure(
    reference: Reference, names: Sequence[str], folder: Path, *, views: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield a line for each candidate."""
    costs: dict[str, dict[str, Any]] = {}
    clips: dict[str, bytes] = {}
    for name in names:
        clip = folder / "candidate.mp4"
        seconds = encode(reference, CANDIDATES[name], clip)
        clips[name] = clip.read_bytes()
        costs[name] = {
            "bytes": len(clips[name]),
            **quality(clip, reference),
            "encode_s": round(seconds, 2),
        }
    draw = random.Random(reference.name)
    starts = [draw.randint(0, reference.num_frames - VIEW_FRAMES) for _ in range(views)]
    decoded = decode_all(clips, starts, rounds)
    for name, cost in costs.items():
        yield {
            "candidate": name,
            "clip": reference.name,
            "frames": reference.num_frames,
            "ms_a_view": round(statistics.fmean(decoded[name]), 2),
            **cost,
        }


def against(line: Mapping[str, Any], today: Mapping[str, Any]) -> dict[str, Any]:
    """A line's figures relative to today's recipe."""
    return {
        "times_views": round(today["ms_a_view"] / line["ms_a_view"], 3),
        "times_bytes": round(line["bytes"] / today["bytes"], 3),
        "times_encode": round(line["encode_s"] / today["encode_s"], 2),
        "more_ssim": round(line["ssim"] - today["ssim"], 6),
        "more_psnr": round(line["psnr"] - today["psnr"], 3),
    }


def together(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of a candidate's lines, and the least of what it gains in SSIM and PSNR."""

    def mean(field: str) -> float:
        return statistics.fmean(line[field] for line in lines)

    return {
        "candidate": lines[0]["candidate"],
        "clip": "all",
        "ms_a_view": round(mean("ms_a_view"), 2),
        "bytes": round(mean("bytes")),
        "ssim": round(mean("ssim"), 6),
        "psnr": round(mean("psnr"), 3),
        "encode_s": round(mean("encode_s"), 2),
        "least_more_ssim": min(line["more_ssim"] for line in lines),
        "least_more_psnr": min(line["more_psnr"] for line in lines),
    }


def meets(line: Mapping[str, Any]) -> bool:
    """Whether the line of all clips keeps the rule."""
    is_faster = line["times_views"] >= LEAST_VIEWS
    is_small = line["times_bytes"] <= MOST_BYTES
    return bool(is_faster and is_small and line["least_more_ssim"] >= 0)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--views", type=int, default=6, help="views of each clip")
    parser.add_argument("--rounds", type=int, default=4, help="turns that are counted")
    parser.add_argument(
        "--candidate", action="append", choices=CANDIDATES, help="only these, and today's"
    )
    options = parser.parse_args()
    names = [n for n in CANDIDATES if n == TODAY or n in (options.candidate or CANDIDATES)]
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, start_s in CLIPS.items():
            reference = make_reference(options.data, name, start_s, Path(folder))
            found = list(
                measure(reference, names, Path(folder), views=options.views, rounds=options.rounds)
            )
            found = [line | against(line, found[0]) for line in found]
            for line in found:
                print(json.dumps(line), flush=True)
            lines += found
            reference.path.unlink()
    wholes = [together([line for line in lines if line["candidate"] == name]) for name in names]
    for whole in wholes:
        whole |= against(whole, wholes[0])
        print(json.dumps(whole | {"meets": meets(whole)} | _machine()), flush=True)


def _machine() -> dict[str, Any]:
    return {
        "load": round(os.getloadavg()[1], 1),
        "processors": num_processors(),
        "python": platform.python_version(),
        "pyav": version("av"),
        "ffmpeg": ffmpeg_version(find_ffmpeg()),
    }


if __name__ == "__main__":
    main()
