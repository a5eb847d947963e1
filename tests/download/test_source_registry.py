"""The whole chain on stand-ins of the mirror and of YouTube: who gave each clip, and resume."""

import csv
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mirror
import youtube_standin
from conftest import MakeVideo
from kinetics_tools.core.errors import Reason
from kinetics_tools.dataset import ledger
from kinetics_tools.media import decode
from mirror import MirrorServer, tarball
from support import command, environment, run_command, tree
from youtube_standin import ANSWERS, YouTubeStandIn

IDS = {name: name * 10 + "_" for name in "abcdefgh"}
DASHED = "-1234567890"
LIST = "/400/val/k400_val_path.txt"


def key(youtube_id: str, start_s: int = 0, end_s: int = 2) -> str:
    return f"{youtube_id}_{start_s:06d}_{end_s:06d}"


@dataclass
class World:
    """Servers, a folder, and the words of the command that asks them in turn."""

    mirror: MirrorServer
    youtube: YouTubeStandIn
    manifest: Path
    folder: Path
    cache: Path

    def words(self, out: Path, *options: object) -> list[str]:
        chain = ("--source", "cvdf", "--source", "youtube", "--source", f"dir:{self.folder}")
        return command(
            *("kinetics-download", self.manifest, out, *chain, "--labels", "kinetics400"),
            *("--cvdf-base", self.mirror.address, "--cache-dir", self.cache, "--jobs", 2),
            *("--videos-per-hour", 3_600_000, *self.youtube.options, *options),
        )

    def run(self, out: Path, *options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(out, *options),
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
        )


@pytest.fixture
def world(make_video: MakeVideo, tmp_path: Path) -> Iterator[World]:
    """Three parts of a mirror, one of them with a corrupt clip that has a replacement; a YouTube
    that has other videos; a folder with another one; one clip that nobody has."""
    clip = make_video(seconds=3, fps="30", sound=True).read_bytes()
    video = make_video(seconds=20, options="-c:v libx264 -preset ultrafast -g 50 -bf 2")
    rows = [
        ("abseiling", IDS["a"], 0, 2),
        ("abseiling", IDS["b"], 0, 2),
        ("yoga", DASHED, 8, 10),
        ("yoga", IDS["d"], 1, 3),
        ("yoga", IDS["e"], 0, 2),
        ("zumba", IDS["f"], 2, 4),
        ("zumba", IDS["f"], 12, 14),
        ("zumba", IDS["g"], 0, 2),
    ]
    manifest = tmp_path / "list.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("label", "youtube_id", "time_start", "time_end", "split", "is_cc"))
        writer.writerows((*row, "val", 0) for row in rows)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"{IDS['d']}.mp4").write_bytes(video.read_bytes())
    with mirror.serve() as parts, youtube_standin.serve() as youtube:
        parts.put(LIST, b"part_0.tar.gz\npart_1.tar.gz\npart_2.tar.gz\n", kind="text/plain")
        inside = {
            "part_0": [(f"val/{key(IDS['a'])}.mp4", clip), ("val/._x.mp4", b"apple")],
            "part_1": [(f"{key(IDS['b'])}.mp4", clip[: len(clip) // 2]), ("../../x.mp4", clip)],
            "part_2": [(f"{key(IDS['g'])}.mp4", clip)],
        }
        for name, members in inside.items():
            parts.put(f"/400/val/{name}.tar.gz", tarball(members, compressed=name != "part_2"))
        parts.put(
            "/400/replacement_for_corrupted_k400.tgz",
            tarball([(f"replacement_for_corrupted_k400/{key(IDS['b'])}.mp4", clip)]),
        )
        youtube.put(DASHED, video, seconds=20)
        youtube.put(IDS["f"], video, seconds=20)
        youtube.put(IDS["d"], refusal="removed")
        yield World(parts, youtube, manifest, folder, tmp_path / "cache")


GIVEN = {
    key(IDS["a"]): "cvdf",
    key(IDS["b"]): "cvdf-replacement",
    key(DASHED, 8, 10): "youtube",
    key(IDS["d"], 1, 3): "dir",
    key(IDS["f"], 2, 4): "youtube",
    key(IDS["f"], 12, 14): "youtube",
    key(IDS["g"]): "cvdf",
}
LOST = key(IDS["e"])


def givers(out: Path) -> dict[str, str]:
    return {
        name: history.done.source.partition(":")[0]
        for name, history in ledger.read(out).items()
        if history.done is not None
    }


def test_each_clip_comes_from_the_first_source_that_has_it(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = world.run(out)
    assert said.returncode == 4, said.stderr  # a folder may have it next time
    assert givers(out) == GIVEN
    lost = ledger.read(out)[LOST]
    assert [failure.source.partition(":")[0] for failure in lost.failures] == [
        "cvdf",
        "youtube",
        "dir",
    ]
    clips = sorted(path.stem for path in out.glob("clips/val/*/*.mp4"))
    assert clips == sorted(GIVEN)
    for path in out.glob("clips/val/*/*.mp4"):
        ready = path.stem in (key(IDS["a"]), key(IDS["b"]), key(IDS["g"]))
        assert decode.count_frames(path) == (75 if ready else 50), path
    assert world.youtube.num_asked(IDS["f"]) == 1, "two segments of one video: asked for once"
    assert world.youtube.num_asked(IDS["a"]) == 0
    assert not (tmp_path / "x.mp4").exists()
    made_of = {line.key: line.detail for line in ledger.lines(out) if line.status == "done"}
    assert made_of[key(IDS["a"])] == "as-found"
    assert made_of[key(IDS["f"], 2, 4)] == "section of 133, 426x240"
    assert not (out / ".scratch").exists()
    again = world.run(out)
    assert again.returncode == 4
    assert world.youtube.num_asked(IDS["f"]) == 1


def test_an_empty_clip_of_the_mirror_is_damage_and_the_next_source_is_asked(
    world: World, make_video: MakeVideo, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    empty = tarball([(f"{key(IDS['a'])}.mp4", b"")])
    world.mirror.put("/400/val/part_0.tar.gz", empty)
    world.youtube.put(IDS["a"], make_video(seconds=20), seconds=20)
    assert world.run(out, "--fetch", "full").returncode == 4
    said = [(line.source, line.reason) for line in ledger.lines(out) if line.key == key(IDS["a"])]
    assert said == [("cvdf", "damaged"), ("cvdf-replacement", "gone"), ("youtube", None)]
    made_of = {line.key: line.detail for line in ledger.lines(out) if line.status == "done"}
    assert made_of[key(IDS["a"])] == "all of 133, 426x240"


def test_a_tar_that_came_over_a_broken_line_gives_the_same(world: World, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    world.run(whole)
    for path, served in world.mirror.files.items():
        if path.startswith("/400/val/part"):
            served.breaks = [len(served.content) // 2]
    world.cache = tmp_path / "another-cache"
    assert world.run(torn).returncode == 4
    assert tree(whole, without=("ledger",)) == tree(torn, without=("ledger",))


@pytest.mark.full
def test_tasks_share_the_parts_of_the_mirror_and_leave_the_same_tree(
    world: World, tmp_path: Path
) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    world.run(whole)
    world.cache = tmp_path / "another-cache"
    world.mirror.requests.clear()
    codes = [world.run(shared, "--task", f"{task}/2").returncode for task in (0, 1, 0)]
    assert codes[-1] in (0, 4)
    assert tree(whole, without=("ledger",)) == tree(shared, without=("ledger",))
    assert givers(shared) == GIVEN
    for part in range(3):
        assert len(world.mirror.gets(f"/400/val/part_{part}.tar.gz")) == 1


def test_a_visitor_who_is_refused_stops_and_comes_back_no_earlier_than_told(
    world: World, make_video: MakeVideo, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for youtube_id in (DASHED, IDS["f"], IDS["d"], IDS["e"]):
        world.youtube.put(youtube_id, refusal="bot-check")
    # One asks at a time: of two who ask at once both refusals are one, and four videos are asked
    # before there are three in a row.
    said = world.run(out, "--jobs", 1)
    assert said.returncode == 75, said.stderr
    assert "bot-check: " in said.stderr
    assert "locked out until" in said.stderr
    assert givers(out) == {name: who for name, who in GIVEN.items() if who.startswith("cvdf")}
    num_asked = len(world.youtube.requests)
    assert num_asked <= 6, "three in a row"
    early = world.run(out)
    assert early.returncode == 75
    assert "locked out until" in early.stderr
    assert len(world.youtube.requests) == num_asked

    for state in world.cache.glob("pace/*.json"):  # an hour passes
        state.unlink()
    for youtube_id in (DASHED, IDS["f"]):
        world.youtube.put(youtube_id, make_video(seconds=20), seconds=20)
    for youtube_id in (IDS["d"], IDS["e"]):
        world.youtube.put(youtube_id, refusal="removed")
    assert world.run(out).returncode == 4
    assert givers(out) == GIVEN


@pytest.mark.full
def test_what_is_said_of_the_visitor_stops_the_run_and_loses_nothing(
    world: World, make_video: MakeVideo, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ids = [f"video{number:06d}" for number in range(12)]
    rows = "".join(f"yoga,{youtube_id},0,2,val\n" for youtube_id in ids)
    world.manifest.write_text(f"label,youtube_id,time_start,time_end,split\n{rows}")
    for youtube_id, answer in zip(ids, ANSWERS[Reason.REFUSED], strict=False):
        world.youtube.put(youtube_id, refusal=answer)

    def run() -> subprocess.CompletedProcess[str]:
        for state in world.cache.glob("pace/*.json"):  # an hour passes
            state.unlink()
        words = world.words(out, "--jobs", 1)
        for other in ("cvdf", f"dir:{world.folder}"):
            at = words.index(other)
            del words[at - 1 : at + 1]
        return subprocess.run(words, capture_output=True, text=True, check=False, env=environment())

    for num_asked in (3, 6, 9, 12):  # those not asked yet come first
        said = run()
        assert said.returncode == 75, said.stderr
        assert "refused: " in said.stderr
        assert "locked out until" in said.stderr
        assert len({path for path in world.youtube.requests if "player" in path}) == num_asked
    assert all(history.is_retryable for history in ledger.read(out).values())
    video = make_video(seconds=3)
    for youtube_id in ids:
        world.youtube.put(youtube_id, video, seconds=3)
    assert run().returncode == 0
    assert {world.youtube.num_asked(youtube_id) for youtube_id in ids} == {2}


def test_one_refused_video_holds_up_no_other(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.youtube.put(DASHED, refusal="bot-check")
    said = world.run(out)
    assert said.returncode == 4, said.stderr
    assert givers(out) == {name: who for name, who in GIVEN.items() if name != key(DASHED, 8, 10)}
    assert world.youtube.num_asked(DASHED) == 1
    assert [
        (failure.source.partition(":")[0], failure.reason)
        for failure in ledger.read(out)[key(DASHED, 8, 10)].failures
    ] == [("cvdf", "gone"), ("youtube", "bot-check"), ("dir", "absent")]
    assert world.run(out).returncode == 4
    assert world.youtube.num_asked(DASHED) == 2


def test_a_mirror_that_has_no_list_for_a_set_is_one_line(world: World, tmp_path: Path) -> None:
    world.manifest.write_text(
        f"label,youtube_id,time_start,time_end,split\na new class,{IDS['a']},0,2,val\n"
    )
    said = run_command(
        *("kinetics-download", world.manifest, tmp_path / "out", "--source", "cvdf"),
        *("--cvdf-base", world.mirror.address, "--cache-dir", world.cache),
    )
    assert said.returncode == 2
    assert "--cvdf-list val=ADDRESS" in said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.full
def test_killed_at_ten_moments_the_tree_is_that_of_an_undisturbed_run(
    world: World, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    start = time.monotonic()
    assert world.run(whole).returncode == 4
    life_s = time.monotonic() - start
    moments = random.Random(4)
    num_killed = 0
    for number in range(10):
        torn = tmp_path / f"torn{number}"
        world.cache = tmp_path / f"cache{number}"
        process = subprocess.Popen(
            world.words(torn),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        try:
            process.wait(moments.uniform(0.3, 0.95) * life_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            num_killed += 1
        assert world.run(torn).returncode == 4
        assert tree(whole, without=("ledger",)) == tree(torn, without=("ledger",))
        assert givers(torn) == GIVEN
        assert not (torn / ".scratch").exists()
    assert num_killed > 5


@pytest.mark.full
def test_a_ray_cluster_leaves_the_tree_of_one_machine(world: World, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert world.run(whole).returncode == 4
    world.cache = tmp_path / "another-cache"
    said = world.run(shared, "--engine", "ray")
    assert said.returncode == 4, said.stderr
    assert tree(whole, without=("ledger",)) == tree(shared, without=("ledger",))
    assert givers(shared) == GIVEN


@pytest.mark.full
def test_a_day_of_twenty_thousand_rows_needs_bounded_memory(
    shared_data: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    manifest = shared_data / "annotations" / "kinetics400" / "val.csv"
    rows = manifest.read_text().splitlines()[1:]
    there = [row.split(",")[-5] for row in rows[::2000]]
    video = make_video(seconds=500, fps="5", size="64x48")
    out = tmp_path / "out"
    with youtube_standin.serve() as youtube:
        for youtube_id in there:
            youtube.put(youtube_id, video, seconds=500)
        words = command(
            *("kinetics-download", manifest, out, "--cache-dir", tmp_path / "cache", "--jobs", 2),
            *("--videos-per-hour", 10_000_000, *youtube.options),
        )
        peaks: dict[int, int] = {}
        with subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                for pid in (process.pid, *children_of(process.pid)):
                    peaks[pid] = max(peaks.get(pid, 0), peak_kib(pid))
                time.sleep(0.2)
    assert process.returncode == 3
    histories = ledger.read(out)
    assert len(histories) == len(rows)
    assert sum(history.main_reason == "gone" for history in histories.values()) >= len(rows) - 20
    assert sum(history.done is not None for history in histories.values()) >= 8
    # The leading process, the spawner of workers, and a worker each: none holds the list twice.
    assert max(peaks.values()) < 250 * 1024, peaks


def children_of(pid: int) -> list[int]:
    try:
        return [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def peak_kib(pid: int) -> int:
    """The most memory that a process has held; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) if found else 0
