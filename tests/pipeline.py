"""What fixed inputs give, from videos to predictions; run as a script it records that.

    PYTHONPATH=.:benchmarks python tests/pipeline.py

Only the three commands are called, as processes: the record holds for any layout of the code. A
change of the record is a change of results: say why in the commit that makes it.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pandas as pd

from support import command, environment

GOLDEN = Path(__file__).with_name("golden") / "pipeline.json"
# What decides the bytes of clips, shards and tables.
PACKAGES = ("av", "imageio-ffmpeg", "numpy", "opencv-contrib-python-headless", "numba", "torch")
LABELS = ("going left", "going right")
VERBS = {
    "kinetics-download": ("", "report", "verify"),
    "extract-flow": ("", "show", "index", "export"),
    "run-benchmark": (
        *("", "evaluate", "report", "archs", "predict", "features", "verify-weights"),
    ),
}
TRAINING = (
    *("--arch", "i3d", "--recipe", "small", "--epochs", 1, "--batch-size", 4, "--seed", 3),
    *("--amp", "none"),  # "auto" depends on the processor
)


def machine() -> str:
    """The kind of processor and the versions, on which floats are equal to the last bit."""
    flags = set()
    if Path("/proc/cpuinfo").exists():
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    vectors = next((name for name in ("avx512f", "avx2", "asimd") if name in flags), "none")
    return f"{platform.machine()} {vectors}"


def versions() -> dict[str, str]:
    """Of the packages that decide bytes."""
    return {name: version(name) for name in PACKAGES}


def call(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """One of the three commands, on one thread, away from the user's cache."""
    surroundings = environment() | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run(
        command(name, *arguments),
        cwd=cwd,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )


def _must(name: str, *arguments: object, cwd: Path) -> None:
    done = call(name, *arguments, cwd=cwd)
    if done.returncode != 0:
        raise RuntimeError(f"{name} {arguments} ended with {done.returncode}: {done.stderr}")


def make_inputs(folder: Path) -> None:
    """Eight videos of ffmpeg's own pictures in two classes and two splits, and their manifest."""
    (folder / "videos").mkdir()
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number in range(8):
        name = f"{'-_'[number % 2]}golden{number:04d}"
        rate, size = ("25", "30", "24000/1001")[number % 3], ("96x64", "64x80")[number % 2]
        picture = f"{('testsrc2', 'rgbtestsrc')[number == 5]}=size={size}:rate={rate}"
        video = folder / "videos" / f"{name}.mp4"
        subprocess.run(
            [
                *(imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"),
                *("-f", "lavfi", "-i", picture, "-t", "3", "-threads", "1"),
                *("-vf", f"hue=h={40 * number}", "-c:v", "libx264", "-fflags", "+bitexact"),
                str(video),
            ],
            check=True,
        )
        start = 1 if number % 4 else 0.5
        rows.append(
            f"{LABELS[number % 2]},{name},{start},{start + 1},{('train', 'val')[number > 3]}"
        )
    (folder / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def run_pipeline(folder: Path) -> None:
    """The three commands, one after the other, in `folder`."""
    make_inputs(folder)
    _must("kinetics-download", "list.csv", "clips", "--source", "dir:videos", cwd=folder)
    for method in ("tvl1", "opencv-tvl1"):
        options = ("--method", method, "--short-side", "keep", "--samples-per-shard", 3)
        _must("extract-flow", "clips", "shards", *options, cwd=folder)
    for name in ("tvl1", "opencv-tvl1"):
        run = ("--data", "shards", "--flow", name, "--work-dir", f"run-{name}")
        streams = () if name == "tvl1" else ("--stream", "flow")
        _must("run-benchmark", *TRAINING, *run, *streams, cwd=folder)


def digests(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the files, by path."""
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def index_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The indices of the shards, as rows."""
    return {
        split: json.loads(
            pd.read_parquet(folder / "shards" / split / "index.parquet").to_json(orient="records")
        )
        for split in ("train", "val")
    }


def predictions(folder: Path) -> dict[str, Any]:
    """What the trainings predict for each clip: the columns as they are stored, floats rounded."""
    found = {}
    for path in sorted(folder.glob("run-*/*/predictions.parquet")):
        rows = json.loads(pd.read_parquet(path).to_json(orient="records", double_precision=6))
        found[path.relative_to(folder).as_posix()] = rows
    return found


def results(folder: Path) -> dict[str, Any]:
    """What each training says of itself in result.json, without times, folders and texts."""
    found = {}
    for path in sorted(folder.glob("run-*/*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        data = {name: value for name, value in result["data"].items() if name != "folder"}
        found[path.relative_to(folder).as_posix()] = {
            **{name: result[name] for name in ("arch", "stream", "failed", "score")},
            "data": data,
            "protocol": result["protocol"]["hash"],
            "recipes": {name: each["hash"] for name, each in result["recipes"]["training"].items()},
            "shards": {
                name: result["recipes"][name]["hash"]
                for name in result["recipes"]
                if name != "training"
            },
        }
    return found


def options() -> dict[str, list[str]]:
    """Every option and every word of usage that each --help names."""
    found = {}
    for name, verbs in VERBS.items():
        for verb in verbs:
            words = [verb] if verb else []
            shown = call(name, *words, "--help", cwd=Path.cwd())
            named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown.stdout))
            found[" ".join((name, *words))] = sorted(named)
    return found


def exit_codes(folder: Path) -> dict[str, int]:
    """The exit codes of unusable input, of gaps, of finished work."""
    (folder / "bad.csv").write_text("label,youtube_id,time_start,time_end,split\na,b,3,1,val\n")
    (folder / "gone.csv").write_text(
        "label,youtube_id,time_start,time_end,split\ngoing left,nowhere0000,1,2,val\n"
    )
    (folder / "empty").mkdir()
    (folder / "broken.mp4").write_bytes(b"no video")
    calls = (
        ("kinetics-download", "none.csv", "out"),
        ("kinetics-download", "bad.csv", "out"),
        ("kinetics-download", "list.csv", "out", "--source", "dir:nowhere"),
        ("kinetics-download", "list.csv", "out", "--source", "what:x"),
        ("kinetics-download", "list.csv", "out", "--task", "3/2"),
        ("kinetics-download", "list.csv", "out", "--jobs", "x"),
        ("kinetics-download", "list.csv", "clips", "--source", "dir:videos"),
        ("kinetics-download", "list.csv", "clips", "--source", "dir:videos", "--fps", "20"),
        ("kinetics-download", "gone.csv", "gaps", "--source", "dir:videos"),
        ("kinetics-download", "report", "empty"),
        ("kinetics-download", "report", "clips"),
        ("kinetics-download", "verify", "clips"),
        ("kinetics-download", "verify", "nowhere"),
        ("extract-flow", "nowhere", "out"),
        ("extract-flow", "empty", "out"),
        ("extract-flow", "clips", "out", "--method", "tvl2"),
        ("extract-flow", "clips", "out", "--device", "cuda:9"),
        ("extract-flow", "clips", "shards", "--short-side", "keep", "--samples-per-shard", "5"),
        ("extract-flow", "clips", "shards", "--short-side", "keep", "--samples-per-shard", "3"),
        ("extract-flow", "show", "broken.mp4", "picture.png"),
        ("extract-flow", "index", "empty"),
        ("extract-flow", "export", "shards", "exported"),
        ("extract-flow", "export", "empty", "other"),
        ("run-benchmark", "--arch", "i4d"),
        ("run-benchmark", "--arch", "i3d", "--data", "empty"),
        ("run-benchmark", "--arch", "c3d", "--stream", "flow", "--data", "shards"),
        ("run-benchmark", "--arch", "i3d", "--data", "shards", "--test-split", "none"),
        ("run-benchmark", "--arch", "i3d", "--data", "shards", "--init", "nowhere.pt"),
        ("run-benchmark", "evaluate", "nowhere"),
        ("run-benchmark", "report", "empty", "--out", "page.html"),
        ("run-benchmark", "predict", "broken.mp4", "--work-dir", "run-tvl1"),
        ("run-benchmark", "features", "broken.mp4", "--work-dir", "nowhere"),
        ("run-benchmark", "verify-weights", "nowhere"),
        ("run-benchmark", "archs"),
    )
    return {" ".join(words): call(*words, cwd=folder).returncode for words in calls}


def record(folder: Path) -> dict[str, Any]:
    """Everything that the golden file holds, from a new and empty folder."""
    run_pipeline(folder)
    portable = ("clips/clips/**/*.mp4", "clips/*.csv", "clips/labels.txt", "clips/recipe.json")
    return {
        "versions": versions(),
        "machine": machine(),
        "clips": digests(folder, portable),
        "rgb": digests(folder, ("shards/*/rgb-*", "shards/recipe.json")),
        "flow": digests(folder, ("shards/*/flow-*", "shards/dataset.json")),
        "index": index_rows(folder),
        "predictions": predictions(folder),
        "results": results(folder),
        "options": options(),
        "exit codes": exit_codes(folder),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MPLBACKEND"] = "agg"
        kept = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
        kept.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(record(kept), indent=1, sort_keys=True) + "\n")
