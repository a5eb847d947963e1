"""Reading clips for a network: ours, peers and libavcodec alone; each line of output is JSON.

    pip install spdl decord torchcodec
    OMP_NUM_THREADS=1 python benchmarks/speed/loader.py DATA

SPDL and TorchCodec need FFmpeg's libraries on the system (`LD_LIBRARY_PATH`); a side that cannot be
imported is a line that says why.

DATA has the clips of `CLIPS`. They become clips and shards as the commands make them. Every side
reads the same views: 64 frames in a row, from a random start, and a crop of 224x224 pixels at a
random place, as uint8; `libavcodec rgb` and `flow codes` only decode the frames of the views, from
the keyframe before them, with PyAV and one thread. Sides take turns; a figure is the median of the
rounds. `cpu_ms_a_clip` is processor time of all threads, `wall_ms_a_clip` what a clock shows.
`spdl crop` crops by its filter, in the middle, as it takes no other place; `spdl` crops the array.

The lines after those: the ratios that the goals are about; clips per second of one and two
processes of ours, and the processor time of the process that they read for; the time until the
first views of 250,000 samples are read, in a process of its own, and the memory of the samples; the
memory of a process after each of ten epochs.

With --shards DIR the shards are made there, and used the next time.
"""

import argparse
import importlib
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from kinetics_bench.data.loader import BatchPlan, ClipDataset, Reader, train_batches
from kinetics_bench.data.views import View, crop_of, seeded_rng, train_view
from kinetics_bench.recipes import recipe_for
from kinetics_tools.media.clips import conform, cut
from kinetics_tools.media.encode import find_ffmpeg
from kinetics_tools.media.recipe import ClipRecipe
from kinetics_tools.shards.reader import Sample, ShardFolder

Frames = npt.NDArray[np.uint8]
CLIPS: Mapping[str, int | None] = {  # name -> start of ten seconds of it; None: all
    "clips/R6llTwEh07w.mp4": None,
    "clips/WUzgd7C1pWA.mp4": None,
    "clips/arm_wrestling.mp4": None,
    "clips/bikes.mp4": None,
    "clips/long_1080p.mp4": 60,
}
CUT_S = 10
CROP_PX = 224
NUM_SAMPLES = 250_000
NUM_EPOCHS = 10


@dataclass(frozen=True)
class Clip:
    """A view of a sample.

    Attributes:
        sample: the clip.
        view: its frames and its crop; not flipped, as that is done on the device.
        path: of its RGB as a file, for those who read files only.
    """

    sample: Sample
    view: View
    path: Path

    @property
    def first(self) -> int:
        """The number of the first frame or field."""
        return int(next(iter(self.view.indices.values()))[0])

    @property
    def last(self) -> int:
        """The number of the last frame or field."""
        return int(next(iter(self.view.indices.values()))[-1])

    def data(self, stream: str = "rgb") -> bytes:
        """The member of the shard, as it is stored."""
        place = self.sample.rgb_at if stream == "rgb" else self.sample.flow_at
        assert place is not None
        return place.read()

    def crop(self, frames: Frames) -> Frames:
        """The crop of frames (T, H, W, 3)."""
        rows, columns = crop_of(self.view, frames.shape[1], frames.shape[2], CROP_PX)
        return np.ascontiguousarray(frames[:, rows, columns])


def make_shards(data: Path, folder: Path) -> None:
    """Clips as kinetics-download makes them, and their shards."""
    clips = folder / "clips" / "a"
    clips.mkdir(parents=True)
    recipe, binary = ClipRecipe(), find_ffmpeg()
    for name, start in CLIPS.items():
        clip = clips / f"{Path(name).stem}.mp4"
        if start is None:
            conform(data / name, clip, recipe=recipe, binary=binary)
        else:
            ends = {"start_s": Fraction(start), "end_s": Fraction(start + CUT_S)}
            cut(data / name, clip, **ends, recipe=recipe, binary=binary)
    words = ["extract-flow", str(clips.parent), str(folder / "shards"), "--method", "tvl1"]
    code = "import sys; from kinetics_tools.extract.cli import main; sys.argv[:1] = []; main()"
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=sys.stderr)


def make_views(shards: ShardFolder, stream: str, folder: Path, num: int) -> list[Clip]:
    """Views of all samples, `num` of each."""
    reader = make_reader(stream)
    views = []
    for sample in shards.samples("all", ("rgb", "flow")):
        path = folder / f"{sample.key}.mp4"
        assert sample.rgb_at is not None
        path.write_bytes(sample.rgb_at.read())
        for number in range(num):
            random = seeded_rng(0, number, sample.key)
            view = train_view(sample.num_frames, reader.framing, random)
            views.append(Clip(sample, View(view.indices, view.top, view.left), path))
    return views


def make_reader(stream: str) -> Reader:
    """The paper's input: 64 frames or fields of 224x224 pixels."""
    if stream != "joint":
        return Reader(recipe_for("paper", "i3d", stream), bound=20.0)
    rgb, flow = (recipe_for("paper", "i3d", each) for each in ("rgb", "flow"))
    return Reader(replace(rgb, sampling={**rgb.sampling, **flow.sampling}), bound=20.0)


def ours(stream: str) -> Callable[[Clip], object]:
    """Our reader."""
    reader = make_reader(stream)
    return lambda clip: reader.clips(clip.sample, clip.view)


def libavcodec(stream: str) -> Callable[[Clip], object]:
    """Decoding alone."""

    def read(clip: Clip) -> None:
        for _ in _decoded(clip, clip.data(stream)):
            pass

    return read


def _decoded(clip: Clip, data: bytes) -> Iterator[Any]:
    """The frames of a view, decoded from the keyframe before them."""
    opened: Any = av.open(io.BytesIO(data))
    with opened as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        per_tick = float(stream.average_rate * stream.time_base)
        if clip.first > 0:
            container.seek(int(clip.first / per_tick), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts * per_tick)
            if number >= clip.first:
                yield frame
            if number >= clip.last:
                return


def pyav(clip: Clip) -> Frames:
    """PyAV as its documentation has it, with one thread for the conversion."""
    frames = [f.to_ndarray(format="rgb24", threads=1) for f in _decoded(clip, clip.data())]
    return clip.crop(np.stack(frames))


def make_spdl(*, crop: bool) -> Callable[[Clip], object]:
    """SPDL, with its own crop or with that of the array."""
    spdl: Any = importlib.import_module("spdl.io")
    side = {"crop_width": CROP_PX, "crop_height": CROP_PX} if crop else {}

    def read(clip: Clip) -> Frames:
        begin, end = Fraction(2 * clip.first - 1, 50), Fraction(2 * clip.last + 1, 50)
        span = (max(begin, Fraction(0)), end)
        words = spdl.get_video_filter_desc(timestamp=tuple(map(float, span)), **side)
        frames = spdl.to_numpy(spdl.load_video(clip.data(), span, filter_desc=words))
        return np.array(frames) if crop else clip.crop(frames)

    return read


def make_decord() -> Callable[[Clip], object]:
    """Decord, with one thread."""
    reader: Any = importlib.import_module("decord").VideoReader

    def read(clip: Clip) -> Frames:
        video = reader(io.BytesIO(clip.data()), num_threads=1)
        return clip.crop(video.get_batch(range(clip.first, clip.last + 1)).asnumpy())

    return read


def make_opencv() -> Callable[[Clip], object]:
    """OpenCV's VideoCapture, which reads files, with one thread."""
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    one = [cv2.CAP_PROP_N_THREADS, 1]

    def read(clip: Clip) -> Frames:
        video = cv2.VideoCapture(str(clip.path), cv2.CAP_FFMPEG, one)
        video.set(cv2.CAP_PROP_POS_FRAMES, clip.first)
        frames = [
            cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB)
            for _ in range(clip.last - clip.first + 1)
        ]
        video.release()
        return clip.crop(np.stack(frames))

    return read


def make_torchcodec() -> Callable[[Clip], object]:
    """TorchCodec, with one thread."""
    decoders: Any = importlib.import_module("torchcodec.decoders")

    def read(clip: Clip) -> Frames:
        video = decoders.VideoDecoder(
            clip.data(), num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="approximate"
        )
        return clip.crop(video.get_frames_in_range(clip.first, clip.last + 1).data.numpy())

    return read


# side -> stream of its views, and what makes its reader.
SIDES: Mapping[str, tuple[str, Callable[[], Callable[[Clip], object]]]] = {
    "libavcodec rgb": ("rgb", lambda: libavcodec("rgb")),
    "ours rgb": ("rgb", lambda: ours("rgb")),
    "spdl": ("rgb", lambda: make_spdl(crop=False)),
    "spdl crop": ("rgb", lambda: make_spdl(crop=True)),
    "pyav": ("rgb", lambda: pyav),
    "decord": ("rgb", make_decord),
    "opencv": ("rgb", make_opencv),
    "torchcodec": ("rgb", make_torchcodec),
    "flow codes": ("flow", lambda: libavcodec("flow")),
    "ours flow": ("flow", lambda: ours("flow")),
    "ours joint": ("joint", lambda: ours("joint")),
}
EXACT = ("pyav", "spdl", "decord", "opencv", "torchcodec")  # their pixels are compared with ours


def measure_sides(views: Mapping[str, Sequence[Clip]], rounds: int) -> Iterator[dict[str, Any]]:
    """A line for each side, then the ratios."""
    readers: dict[str, Callable[[Clip], object]] = {}
    for side, (_, make) in SIDES.items():
        try:
            readers[side] = make()
            readers[side](views[SIDES[side][0]][0])
        except (ImportError, OSError, RuntimeError) as error:
            readers.pop(side, None)
            said = str(error).strip().splitlines() or [type(error).__name__]
            yield {"side": side, "missing": said[0][:200]}
    differences = {side: _difference(readers, side, views["rgb"]) for side in EXACT}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in readers}
    for _ in range(rounds):
        for side, read in readers.items():
            clips = views[SIDES[side][0]]
            cpu, wall = time.process_time(), time.perf_counter()
            for clip in clips:
                read(clip)
            spent = time.process_time() - cpu, time.perf_counter() - wall
            times[side].append((spent[0] / len(clips) * 1e3, spent[1] / len(clips) * 1e3))
    cpu_ms = {side: statistics.median(each for each, _ in own) for side, own in times.items()}
    for side, own in times.items():
        line = {
            "side": side,
            "cpu_ms_a_clip": round(cpu_ms[side], 2),
            "least_cpu_ms_a_clip": round(min(each for each, _ in own), 2),
            "wall_ms_a_clip": round(statistics.median(each for _, each in own), 2),
        }
        if differences.get(side) is not None:
            line["mean_difference_to_ours"] = differences[side]
        yield line
    peers = [cpu_ms[side] for side in ("spdl", "spdl crop") if side in cpu_ms]
    yield {
        "part": "ratios",
        "rgb_of_libavcodec": round(cpu_ms["libavcodec rgb"] / cpu_ms["ours rgb"], 3),
        "rgb_times_best_spdl": round(min(peers) / cpu_ms["ours rgb"], 3) if peers else None,
        "flow_of_its_codes": round(cpu_ms["flow codes"] / cpu_ms["ours flow"], 3),
        "joint_of_both": round(
            (cpu_ms["ours rgb"] + cpu_ms["ours flow"]) / cpu_ms["ours joint"], 3
        ),
    }


def _difference(
    readers: Mapping[str, Callable[[Clip], Any]], side: str, clips: Sequence[Clip]
) -> float | None:
    """Mean difference in grey values of a side's crops to ours: that it does the same work."""
    if side not in readers:
        return None
    total = 0.0
    for clip in clips:
        mine = readers["ours rgb"](clip).streams["rgb"][0].numpy().astype(int)
        theirs = readers[side](clip)
        total += float(np.abs(theirs.astype(int) - mine).mean())
    return round(total / len(clips), 3)


def measure_processes(shards: ShardFolder, rounds: int) -> Iterator[dict[str, Any]]:
    """Clips per second that one and two processes hand over, by turns."""
    reader = make_reader("rgb")
    samples = shards.samples("all", ("rgb",))
    dataset = ClipDataset.for_training(samples, reader, seed=0)
    plan = BatchPlan(len(samples), recipe_for("paper", "i3d", "rgb"), 0)
    rates: dict[int, list[float]] = {1: [], 2: []}
    spent: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for num, own in rates.items():
            batches = train_batches(dataset, plan, range(1000), num_workers=num)
            for _ in range(4):
                next(batches)  # all processes have begun
            cpu, wall, read = time.process_time(), time.perf_counter(), 0
            while time.perf_counter() - wall < 4:
                read += len(next(batches).label_ids)
            own.append(read / (time.perf_counter() - wall))
            spent[num].append((time.process_time() - cpu) / read * 1e3)
            batches.close()
    for num, own in rates.items():
        yield {
            "part": "processes",
            "num_processes": num,
            "clips_per_s": round(statistics.median(own), 2),
            "cpu_ms_a_clip_of_the_reader": round(statistics.median(spent[num]), 2),
            "times_one": round(statistics.median(own) / statistics.median(rates[1]), 3),
        }


def measure_index(shards: ShardFolder, folder: Path) -> dict[str, Any]:
    """The start of a training on many samples, in a new process."""
    large = folder / "large"
    shutil.copytree(shards.folder, large)  # type: ignore[arg-type]
    path = large / "all" / "index.parquet"
    table = pd.read_parquet(path)
    rows = pd.concat([table] * -(-NUM_SAMPLES // len(table)), ignore_index=True)[:NUM_SAMPLES]
    random = np.random.default_rng(0)
    for name in rows:
        if str(name).endswith("sha256"):  # else they would be compressed to nothing
            more = [random.bytes(8).hex() for _ in range(len(rows) - len(table))]
            rows[name] = [*table[name], *more]
    keys = [f"{number:011d}_000000_000010" for number in range(len(rows) - len(table))]
    rows["key"] = [*table["key"], *keys]
    rows.to_parquet(path, index=False)
    words = [sys.executable, __file__, "--first-batch", str(large)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    line: dict[str, Any] = json.loads(done.stdout)
    return line


def first_batch(folder: Path) -> dict[str, Any]:
    """Seconds and memory from opening shards to the first views."""
    before, began = _resident(), time.perf_counter()
    samples = ShardFolder(folder).samples("all", ("rgb", "flow"))
    opened, after = time.perf_counter(), _resident()
    ClipDataset.for_training(samples, make_reader("rgb"), seed=0)[0, 0]
    return {
        "part": "first batch",
        "samples": len(samples),
        "seconds": round(time.perf_counter() - began, 2),
        "seconds_of_the_index": round(opened - began, 2),
        "bytes_a_sample": round((after - before) / len(samples)),
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_memory(shards: ShardFolder) -> dict[str, Any]:
    """Memory of this process after each of ten epochs that it reads itself."""
    reader = make_reader("joint")
    samples = shards.samples("all", ("rgb", "flow"))
    dataset = ClipDataset.for_training(samples, reader, seed=0)
    mib = []
    for epoch in range(NUM_EPOCHS):
        for number in range(len(samples)):
            dataset[epoch, number]
        mib.append(round(_resident() / 2**20))
    return {"part": "memory", "mib_after_epochs": mib, "growth": round(mib[-1] / mib[0] - 1, 3)}


def main() -> None:
    """Measure, and print a line each."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of real data")
    parser.add_argument("--shards", type=Path, help="folder of the clips and shards, kept")
    parser.add_argument("--views", type=int, default=3, help="of each clip")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--first-batch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.first_batch is not None:
        print(json.dumps(first_batch(options.first_batch)))
        return
    if options.data is None:
        parser.error("DATA is missing")
    packages = ("av", "torch", "numpy", "opencv-contrib-python-headless", "spdl", "decord")
    print(json.dumps({"part": "machine", "cpu": platform.machine(), **_versions(packages)}))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        made = options.shards or scratch
        if not (made / "shards" / "dataset.json").exists():
            make_shards(options.data, made)
        shards = ShardFolder(made / "shards")
        views = {
            stream: make_views(shards, stream, scratch, options.views)
            for stream in ("rgb", "flow", "joint")
        }
        for line in measure_sides(views, options.rounds):
            print(json.dumps(line), flush=True)
        for line in measure_processes(shards, max(options.rounds // 2, 1)):
            print(json.dumps(line), flush=True)
        print(json.dumps(measure_index(shards, scratch)), flush=True)
        print(json.dumps(measure_memory(shards)), flush=True)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


if __name__ == "__main__":
    main()
