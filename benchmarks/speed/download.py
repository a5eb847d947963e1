"""How fast kinetics-download works, beside what it replaces; each line of output is JSON.

    python benchmarks/speed/download.py cutting VIDEO --start 60 --start 80 --start 100
    python benchmarks/speed/download.py mirror CLIP... --copies 30
    python benchmarks/speed/download.py section --kbps 500

`cutting` cuts 10 s segments and does the same with the command of the ActivityNet crawler, which
decodes from the video's beginning. `mirror` serves a part of the mirror on this machine, builds
its clips, and lets as many ffmpeg processes encode the same clips from the disk. `section` fetches
10 s of a ten-minute video and counts the bytes that the server sent: for ranges of the video, and
for the look at the address by which yt-dlp finds out that it is a video (YouTube's media are not
looked at so). Sides take turns, after one turn that is not counted.
"""

import argparse
import http.server
import itertools
import json
import multiprocessing
import platform
import re
import socket
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any
from unittest import mock

from kinetics_tools.core.system import num_processors
from kinetics_tools.dataset.ledger import DONE
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.run import DownloadPlan, download
from kinetics_tools.download.sources.base import SourceUnit
from kinetics_tools.download.sources.registry import Settings, make_sources
from kinetics_tools.media import decode
from kinetics_tools.media.clips import cut
from kinetics_tools.media.encode import ffmpeg_version, find_ffmpeg
from kinetics_tools.media.recipe import ClipRecipe

TURNS = 3
SEGMENT_S = 10
VIDEO_S = 600
KEYFRAMES_S = 2


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    verbs = parser.add_subparsers(required=True)
    cutting_parser = verbs.add_parser("cutting")
    cutting_parser.add_argument("video", type=Path)
    cutting_parser.add_argument("--start", type=int, action="append", required=True, metavar="S")
    cutting_parser.set_defaults(measure=lambda o: measure_cutting(o.video, o.start))
    mirror = verbs.add_parser("mirror")
    mirror.add_argument("clips", type=Path, nargs="+")
    mirror.add_argument("--copies", type=int, default=30, help="of each clip in the tar")
    mirror.set_defaults(measure=lambda o: measure_mirror(o.clips, o.copies))
    section = verbs.add_parser("section")
    section.add_argument("--kbps", type=int, default=500)
    section.add_argument("--sound", action="store_true", help="a sound track in the file as well")
    section.set_defaults(measure=lambda o: measure_section(o.kbps, sound=o.sound))
    options = parser.parse_args()
    for result in options.measure(options):
        print(json.dumps(result | _machine()), flush=True)


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def _machine() -> dict[str, Any]:
    return {
        "processors": num_processors(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "ffmpeg": ffmpeg_version(find_ffmpeg()),
    }


def take_turns(sides: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each side in each of TURNS turns, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median of the turns' ratios."""
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def measure_cutting(video: Path, starts_s: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Segments of a long video: ours, the crawler's command, and that with our encoding."""
    binary = find_ffmpeg()
    recipe = ClipRecipe(ffmpeg=ffmpeg_version(binary))
    facts = decode.probe(video)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for start_s in starts_s:
            ours = folder / "ours.mp4"
            crawler = [
                *(str(binary), "-y", "-loglevel", "error", "-i", str(video.absolute())),
                *("-ss", str(start_s), "-t", str(SEGMENT_S), "-c:v", "libx264", "-threads", "1"),
            ]
            seconds = take_turns(
                {
                    "ours": partial(_cut, video, ours, start_s, recipe, binary),
                    "crawler": partial(_run, [*crawler, str(folder / "crawler.mp4")]),
                    "crawler, our encoding": partial(
                        _run,
                        [*crawler, *_encoding(facts, recipe), str(folder / "same.mp4")],
                    ),
                }
            )
            yield {
                "what": "cutting",
                "video": f"{facts.width}x{facts.height}",
                "start_s": start_s,
                "frames": decode.count_frames(ours),
                "exact": _is_exact(video, ours, folder / "zero.mp4", start_s, recipe, binary),
                "clips_per_s": round(1 / statistics.median(seconds["ours"]), 3),
                "times_crawler": _ratio(seconds["crawler"], seconds["ours"]),
                "times_crawler_with_our_encoding": _ratio(
                    seconds["crawler, our encoding"], seconds["ours"]
                ),
            }


def _cut(video: Path, clip: Path, start_s: int, recipe: ClipRecipe, binary: Path) -> None:
    cut(
        video,
        clip,
        start_s=Fraction(start_s),
        end_s=Fraction(start_s + SEGMENT_S),
        recipe=recipe,
        binary=binary,
    )


def _is_exact(
    video: Path, clip: Path, again: Path, start_s: int, recipe: ClipRecipe, binary: Path
) -> bool:
    """Whether a cut that decodes from the video's beginning has the same bytes."""
    with mock.patch("kinetics_tools.media.clips.SEEK_FROM_S", VIDEO_S * 1000):
        _cut(video, again, start_s, recipe, binary)
    return again.read_bytes() == clip.read_bytes()


def _encoding(facts: decode.Video, recipe: ClipRecipe) -> list[str]:
    """Our size, rate and quality as options of ffmpeg."""
    short = recipe.short_side or min(facts.width, facts.height)
    size = f"-2:{short}" if facts.width >= facts.height else f"{short}:-2"
    picture = f"fps={recipe.fps},scale={size}:flags={recipe.scaler}"
    return [
        *("-vf", picture, "-pix_fmt", "yuv420p", "-an"),
        *("-preset", recipe.preset, "-crf", str(recipe.crf), "-g", str(recipe.keyframe_interval)),
    ]


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)


def measure_mirror(clips: Sequence[Path], copies: int) -> Iterator[dict[str, Any]]:
    """A part of the mirror to clips, against ffmpeg alone on as many processors."""
    binary = find_ffmpeg()
    recipe = ClipRecipe(ffmpeg=ffmpeg_version(binary))
    jobs = num_processors()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served = folder / "served" / "400" / "val"
        served.mkdir(parents=True)
        segments = []
        with tarfile.open(served / "part_0.tar.gz", "w:gz", compresslevel=1) as tar:
            for number, clip in enumerate(itertools.chain(*[clips] * copies)):
                segment = Segment(
                    youtube_id=f"id{number:09d}",
                    start_s=Fraction(0),
                    end_s=Fraction(SEGMENT_S),
                    label=None,
                    split="val",
                )
                tar.add(clip, f"val/{segment.key}{clip.suffix}")
                segments.append(segment)
        (served / "k400_val_path.txt").write_text("part_0.tar.gz\n")
        outs = (folder / f"out{turn}" for turn in itertools.count())
        with serving(folder / "served") as (address, _):
            seconds = take_turns(
                {
                    "ours": lambda: _build(
                        segments,
                        Settings(
                            cache_dir=folder / "cache",
                            out=folder / "out",
                            cvdf_base=address,
                            dataset="kinetics400",
                        ),
                        DownloadPlan(
                            out=next(outs), sources=(), recipe=recipe, binary=binary, jobs=jobs
                        ),
                    ),
                    "ffmpeg": lambda: _encode_all([*clips] * copies, folder, recipe, binary, jobs),
                }
            )
    yield {
        "what": "mirror",
        "clips": len(segments),
        "clips_per_s": round(len(segments) / statistics.median(seconds["ours"]), 3),
        "ffmpeg_alone_clips_per_s": round(len(segments) / statistics.median(seconds["ffmpeg"]), 3),
        "share_of_ffmpeg_alone": _ratio(seconds["ffmpeg"], seconds["ours"]),
    }


def _build(segments: Sequence[Segment], settings: Settings, plan: DownloadPlan) -> None:
    chain = make_sources(["cvdf"], settings)
    with download(segments, (), replace(plan, sources=chain)) as run:
        lines = list(run)
    assert [line.status for line in lines] == [DONE] * len(segments), lines


def _encode_all(
    clips: Sequence[Path], folder: Path, recipe: ClipRecipe, binary: Path, jobs: int
) -> None:
    def encode(numbered: tuple[int, Path]) -> None:
        number, clip = numbered
        command = [str(binary), "-y", "-loglevel", "error", "-threads", "1", "-i", str(clip)]
        encoding = [*_encoding(decode.probe(clip), recipe), "-threads", "1"]
        _run([*command, "-c:v", "libx264", *encoding, str(folder / f"alone{number % jobs}.mp4")])

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(encode, enumerate(clips)))


def measure_section(kbps: int, *, sound: bool) -> Iterator[dict[str, Any]]:
    """Bytes that a server sends for ten seconds of a ten-minute video."""
    binary = find_ffmpeg()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = folder / "served" / "video00000a.mp4"
        video.parent.mkdir()
        rate = 25
        _run(
            [
                *(str(binary), "-loglevel", "error", "-f", "lavfi"),
                *("-i", f"testsrc2=size=340x256:rate={rate},noise=alls=12:allf=t"),
                *(("-f", "lavfi", "-i", "sine") if sound else ()),
                *("-t", str(VIDEO_S), "-c:v", "libx264", "-preset", "ultrafast"),
                *("-b:v", f"{kbps}k", "-maxrate", f"{kbps}k", "-bufsize", f"{kbps}k"),
                *("-g", str(rate * KEYFRAMES_S), "-keyint_min", str(rate * KEYFRAMES_S)),
                *("-pix_fmt", "yuv420p", "-movflags", "+faststart", str(video)),
            ]
        )
        segment = Segment(
            youtube_id=video.stem,
            start_s=Fraction(301),
            end_s=Fraction(301 + SEGMENT_S),
            label=None,
            split="val",
        )
        with serving(video.parent) as (address, sent):
            (source,) = make_sources(
                [f"url:{address}/{{youtube_id}}.mp4"],
                Settings(cache_dir=folder / "cache", out=folder / "out", fetch="section"),
            )
            into = folder / "into"
            into.mkdir()
            footage = next(source.open(SourceUnit((segment,)), into).footage(segment))
            num_looked, num_sent = sent[0], sent[1]
        num_bytes = video.stat().st_size
        part = num_bytes * SEGMENT_S / VIDEO_S
        yield {
            "what": "section",
            "video_s": VIDEO_S,
            "video_bytes": num_bytes,
            "kbps": round(num_bytes * 8 / VIDEO_S / 1000),
            "keyframes_s": KEYFRAMES_S,
            "sound": sound,
            "section_begins_s": float(footage.zero_s),
            "bytes_sent": num_sent,
            "bytes_sent_for_the_look": num_looked,
            "segment_share_bytes": round(part),
            "times_share": round(num_sent / part, 2),
        }


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, "SynchronizedArray[int]"]]:
    """Serve a folder over HTTP from another process.

    Yields:
        its address, and the bytes that it sent for whole files and for ranges of files.
    """
    context = multiprocessing.get_context("spawn")
    sent = context.Array("q", 2)
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(folder, sent, theirs), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}", sent
    finally:
        server.terminate()
        server.join()


def _serve(folder: Path, sent: "SynchronizedArray[int]", pipe: Any) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = folder / self.path.lstrip("/")
            size = path.stat().st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2]), size - 1) if asked and asked[2] else size - 1
            self.send_response(206 if asked else 200)
            kind = {".mp4": "video/mp4", ".txt": "text/plain"}.get(path.suffix)
            self.send_header("Content-Type", kind or "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            if body:
                self._send(path, first, last + 1 - first, is_range=bool(asked))

        def _send(self, path: Path, first: int, left: int, *, is_range: bool) -> None:
            # What waits in buffers of the system was not asked for.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            with path.open("rb") as file:
                file.seek(first)
                while left:
                    block = file.read(min(left, 1 << 16))
                    try:
                        self.wfile.write(block)
                    except ConnectionError:
                        self.close_connection = True
                        return
                    left -= len(block)
                    with sent.get_lock():
                        sent[is_range] += len(block)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    main()
