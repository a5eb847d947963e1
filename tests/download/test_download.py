"""From a manifest to verified clips: the chain, the record, resume, and what users get wrong."""

import contextlib
import csv
import http.server
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from conftest import MakeVideo
from kinetics_tools.core.units import Part
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.run import DownloadPlan
from kinetics_tools.download.run import download as make_clips_of
from kinetics_tools.download.sources.folder import Folder
from kinetics_tools.media import decode
from kinetics_tools.media.clips import conform
from kinetics_tools.media.recipe import ClipRecipe
from support import (
    DAMAGES,
    MediaServer,
    command,
    damage_file,
    environment,
    run_command,
    tree,
    wait_until,
)

Row = tuple[str, str, float, float, str]


def write_manifest(path: Path, rows: Iterable[Row]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
        writer.writerows(rows)
    return path


def download(manifest: Path, out: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return run_command("kinetics-download", manifest, out, *options)


def reasons(out: Path) -> dict[str, str | None]:
    """Each key's reason, or None where its clip is done."""
    return {
        key: None if history.done else history.main_reason
        for key, history in ledger.read(out).items()
    }


@pytest.fixture
def manifest(media_server: MediaServer, make_video: MakeVideo, tmp_path: Path) -> Path:
    """Three good clips (two of one video, one of an id that begins with a dash) and five gaps."""
    media_server.put("-abcdefghij", make_video(seconds=4))
    media_server.put("twice", make_video(seconds=4, fps="24"))
    media_server.put("page", b"<html></html>")
    media_server.put("empty", b"")
    rows: list[Row] = [
        ("up, down", "-abcdefghij", 1, 3, "train"),
        ("up, down", "twice", 0, 2, "train"),
        ("round", "twice", 1.5, 3.5, "validate"),
        ("round", "twice", 3, 9, "val"),
        ("round", "absent", 0, 2, "val"),
        ("round", "page", 0, 2, "val"),
        ("round", "empty", 0, 2, "val"),
        ("round", "half-of-twice", 0, 2, "val"),
    ]
    return write_manifest(tmp_path / "list.csv", rows)


@pytest.mark.parametrize("place", ["clips", "clips/train", "ledger-0-of-1.jsonl", ".lock-0-of-1"])
def test_nothing_is_written_through_a_link(
    place: str, manifest: Path, media_server: MediaServer, tmp_path: Path
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    (out / place).parent.mkdir(parents=True)
    if place.startswith("clips"):
        victim.mkdir()
    else:
        victim.write_text("precious, and no line feed")
    before = {} if victim.is_dir() else {"victim": victim.read_bytes()}
    (out / place).symlink_to(victim)
    done = download(manifest, out, "--source", media_server.template)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = (each for each in done.stderr.splitlines() if each.startswith("error:"))
    assert f"{out / place} is a link" in line
    assert {name: each for name, each in tree(tmp_path).items() if "victim" in name} == before


class _Endless(http.server.BaseHTTPRequestHandler):
    """Sends a video's first bytes, then zeros without end, or a byte now and then."""

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom")
            for _ in range(100_000):
                if "drips" in self.path:
                    time.sleep(0.1)
                self.wfile.write(bytes(1 if "drips" in self.path else 2**16))


def test_a_server_that_never_ends_costs_its_clips_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = [("a", name, 0, 2, "val") for name in ("endless", "drips")]
    manifest = write_manifest(tmp_path / "endless.csv", rows)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{{youtube_id}}.mp4"
    monkeypatch.setenv("KINETICS_TOOLS_MAX_BYTES", "1e7")
    options = ("--ytdlp-option", "socket-timeout=2")
    done = download(manifest, tmp_path / "out", "--source", f"url:{address}", *options)
    server.shutdown()
    server.server_close()
    assert done.returncode == 4
    details = {line.key[:7]: line.detail or "" for line in ledger.lines(tmp_path / "out")}
    told = "the server sends more than 10000000 bytes (KINETICS_TOOLS_MAX_BYTES)"
    assert told in details["endless"]
    assert "below minimum throughput" in details["drips_0"]
    monkeypatch.setenv("KINETICS_TOOLS_MIN_BYTES_PER_S", "fast")
    done = download(manifest, tmp_path / "out", "--source", f"url:{address}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: KINETICS_TOOLS_MIN_BYTES_PER_S is 'fast', not a number above 0; unset it"
    )


GOOD = (
    "clips/train/up,_down/-abcdefghij_000001_000003.mp4",
    "clips/train/up,_down/twice_000000_000002.mp4",
    "clips/val/round/twice_000001_000003.mp4",
)


def test_every_row_ends_as_a_clip_or_as_a_line_with_its_reason(
    manifest: Path, media_server: MediaServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = download(manifest, out, "--source", media_server.template)
    assert said.returncode == 4, said.stderr
    assert said.stdout.startswith(f"3 of 8 clips in {out}\n")
    assert sorted(tree(out)) == sorted(
        [*GOOD, "labels.txt", "ledger-0-of-1.jsonl", "manifest.csv", "recipe.json"]
    )
    for name in GOOD:
        assert decode.count_frames(out / name) == 50
    assert (out / "labels.txt").read_text() == "round\nup, down\n"
    assert reasons(out) == {
        "-abcdefghij_000001_000003": None,
        "twice_000000_000002": None,
        "twice_000001_000003": None,
        "twice_000003_000009": "too-short",
        "absent_000000_000002": "gone",
        "page_000000_000002": "no-formats",
        "empty_000000_000002": "damaged",
        "half-of-twice_000000_000002": "damaged",
    }
    # Looked at once, a section asked for (this server knows none), fetched once.
    assert media_server.requests.count("/twice.mp4") == 3


def test_running_again_does_only_what_may_now_succeed(
    manifest: Path, media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    download(manifest, out, "--source", media_server.template)
    before = {name: (out / name).stat().st_mtime_ns for name in GOOD}
    media_server.requests.clear()
    media_server.put("absent", make_video(seconds=3))
    media_server.put("empty", make_video(seconds=3))
    (out / GOOD[0]).unlink()
    (out / GOOD[1]).write_bytes(b"cut off")

    download(manifest, out, "--source", media_server.template)
    assert {path for path in media_server.requests if "half" not in path} == {
        "/-abcdefghij.mp4",
        "/twice.mp4",
        "/page.mp4",
        "/empty.mp4",
    }
    assert (out / GOOD[2]).stat().st_mtime_ns == before[GOOD[2]]
    assert reasons(out)["empty_000000_000002"] is None
    assert reasons(out)["absent_000000_000002"] == "gone"

    said = download(manifest, out, "--source", media_server.template, "--retry", "gone")
    assert reasons(out)["absent_000000_000002"] is None
    assert said.stdout.startswith("5 of 8 clips")


def test_a_complete_run_exits_with_0_and_permanent_gaps_with_3(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    media_server.put("good", make_video())
    rows: list[Row] = [("a", "good", 0, 2, "val"), ("b", "absent", 0, 2, "train")]
    table = write_manifest(tmp_path / "list.csv", rows)
    out = tmp_path / "out"
    said = download(table, out, "--source", media_server.template, "--split", "val")
    assert (said.returncode, said.stderr) == (0, "")
    said = download(table, out, "--source", media_server.template)
    assert said.returncode == 3
    assert "gone           1" in said.stdout


def test_the_chain_asks_the_next_source_and_records_each_answer(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    key = "abc_000000_000010"
    (first / "abc.mp4").write_bytes(b"not a video")
    (second / f"{key}.avi").write_bytes(
        make_video(seconds=3, options="-c:v mpeg4", suffix=".avi").read_bytes()
    )
    (second / "short_000000_000010.mp4").write_bytes(make_video(seconds=1).read_bytes())
    table = write_manifest(
        tmp_path / "list.csv", [("a", "abc", 0, 10, "val"), ("a", "short", 0, 10, "val")]
    )
    out = tmp_path / "out"
    chain = [f"dir:{first}", f"dir:{second}", media_server.template]
    said = download(table, out, *(word for source in chain for word in ("--source", source)))
    assert said.returncode == 4, said.stderr

    lines = [json.loads(line) for line in (out / "ledger-0-of-1.jsonl").read_text().splitlines()]
    assert [(x["key"], x["source"], x.get("reason")) for x in lines if x["key"] == key] == [
        (key, chain[0], "damaged"),
        (key, chain[1], None),
    ]
    (done,) = (x for x in lines if x["status"] == "done")
    assert (done["detail"], done["frames"]) == ("as-found", 75)
    assert decode.count_frames(out / "clips" / "val" / "a" / f"{key}.mp4") == 75
    assert [x["reason"] for x in lines if x["key"] != key] == ["absent", "too-short", "gone"]


def test_a_broken_file_of_a_folder_hides_no_good_one(make_video: MakeVideo, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    video = make_video(seconds=6).read_bytes()
    files = {
        "one_000001_000003.mp4": b"",  # an empty clip beside a good video
        "one.mp4": video,
        "a/two_000001_000003.mp4": video[: len(video) // 2],  # a good clip in another folder
        "b/two_000001_000003.mp4": video,
        "three.mp4": video[: len(video) // 2],  # a video that is cut off beside a good one
        "three.webm": make_video(seconds=6, options="-c:v libvpx", suffix=".webm").read_bytes(),
        "four.mp4/note.txt": b"a folder with the name of a video",
        "sub/four.mkv": video,
        os.fsdecode(b"caf\xe9/eight.mp4"): video,  # a name that is not UTF-8
        "five.mp4": make_video(seconds=2).read_bytes(),  # a video that ends too early
        "five.mkv": video,
        "six_000001_000003.mp4": b"",
        "six.mp4": make_video(seconds=2).read_bytes(),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    names = ("one", "two", "three", "four", "five", "six", "seven", "eight")
    table = write_manifest(tmp_path / "list.csv", [("a", name, 1, 3, "val") for name in names])
    out = tmp_path / "out"
    said = download(table, out, "--source", f"dir:{folder}")
    assert said.returncode == 4, said.stderr
    lines = {line.key.partition("_")[0]: line for line in ledger.lines(out)}
    made = {name: line.detail for name, line in lines.items() if line.status == "done"}
    assert made.pop("two") == "as-found"
    assert made == dict.fromkeys(("one", "three", "four", "five", "eight"), "")
    assert decode.count_frames(clip_of(out, "two")) == 150
    assert {decode.count_frames(clip_of(out, name)) for name in ("one", "three", "four")} == {50}
    assert (lines["seven"].reason, lines["seven"].detail) == (
        "absent",
        f"no file seven.* below {folder}",
    )
    assert lines["six"].reason == "damaged"  # the clip may be replaced
    assert lines["six"].detail.startswith(f"{folder}/six_000001_000003.mp4: cannot be decoded")
    assert f"; {folder}/six.mp4: ends at 2.00 s, the segment at 3.00 s" in lines["six"].detail

    # What was absent is found by the next run; what 0.1 took for gone, if that is asked for again.
    ledger_file = out / "ledger-0-of-1.jsonl"
    ledger_file.write_text(ledger_file.read_text().replace('"absent"', '"gone"'))
    (folder / "seven.mp4").write_bytes(video)
    (folder / "six_000001_000003.mp4").write_bytes(video)
    words = (table, out, "--source", f"dir:{folder}")
    assert download(*words).returncode == 3
    assert download(*words, "--retry", "gone").returncode == 0
    assert ledger.read(out)["seven_000001_000003"].done is not None


def clip_of(out: Path, youtube_id: str) -> Path:
    return out / "clips" / "val" / "a" / f"{youtube_id}_000001_000003.mp4"


def test_the_ledger_says_which_clips_have_no_sound(make_video: MakeVideo, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mute.mp4").write_bytes(make_video(seconds=4).read_bytes())
    (folder / "loud.mp4").write_bytes(make_video(seconds=4, sound=True).read_bytes())
    (folder / "ready_000001_000003.mp4").write_bytes(make_video(seconds=4).read_bytes())
    names = ("mute", "loud", "ready")
    table = write_manifest(tmp_path / "list.csv", [("a", name, 1, 3, "val") for name in names])
    out = tmp_path / "out"
    assert download(table, out, "--source", f"dir:{folder}", "--keep-audio").returncode == 0
    assert {line.key.partition("_")[0]: line.detail for line in ledger.lines(out)} == {
        "mute": "no sound",
        "loud": "",
        "ready": "as-found, no sound",
    }


def test_a_ready_clip_that_already_conforms_keeps_its_bytes(
    make_video: MakeVideo,
    ffmpeg: Path,
    recipe: ClipRecipe,
    tmp_path: Path,
) -> None:
    ready = tmp_path / "ready"
    ready.mkdir()
    key = "abc_000000_000010"
    conform(make_video(), ready / f"{key}.mp4", recipe=recipe, binary=ffmpeg)
    table = write_manifest(tmp_path / "list.csv", [("a", "abc", 0, 10, "val")])
    download(table, tmp_path / "out", "--source", f"dir:{ready}")
    clip = tmp_path / "out" / "clips" / "val" / "a" / f"{key}.mp4"
    assert clip.read_bytes() == (ready / f"{key}.mp4").read_bytes()


def test_clips_do_not_depend_on_jobs_or_parts(
    manifest: Path, media_server: MediaServer, tmp_path: Path
) -> None:
    source = ("--source", media_server.template)
    download(manifest, tmp_path / "one", *source, "--jobs", 1)
    for task in ("0/2", "1/2"):
        download(manifest, tmp_path / "parts", *source, "--jobs", 3, "--task", task)
    assert tree(tmp_path / "one", without=("ledger",)) == tree(
        tmp_path / "parts", without=("ledger",)
    )
    assert reasons(tmp_path / "one") == reasons(tmp_path / "parts")


def kill_after(words: list[str], seconds: float) -> bool:
    """Start a command and kill it with -9; whether it was still running."""
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    ) as running:
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.kill()
            return True
    return False


def check_kills(server: MediaServer, video: Path, folder: Path, moments: list[float]) -> None:
    """Kill a download at moments of its life, as shares of it; the finished tree is the same."""
    rows: list[Row] = [("a", f"video{n}", 0.5 * n, 0.5 * n + 2, "val") for n in range(8)]
    for row in rows:
        server.put(row[1], video)
    table = write_manifest(folder / "list.csv", rows)
    source = ("--source", server.template, "--tmp-dir", folder / "tmp")
    start = time.monotonic()
    assert download(table, folder / "whole", *source).returncode == 0
    life_s = time.monotonic() - start
    killed = [
        kill_after(command("kinetics-download", table, folder / "torn", *source), moment * life_s)
        for moment in moments
    ]
    assert any(killed)
    assert download(table, folder / "torn", *source).returncode == 0
    assert tree(folder / "torn", without=("ledger",)) == tree(folder / "whole", without=("ledger",))
    assert tree(folder / "tmp") == {}
    assert reasons(folder / "torn") == reasons(folder / "whole")


def test_a_killed_run_is_finished_by_the_next_one(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    check_kills(media_server, make_video(seconds=8, size="320x240"), tmp_path, [0.6])


@pytest.mark.full
def test_ten_kills_do_no_harm(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    draw = random.Random(0)
    moments = [draw.uniform(0.2, 0.9) for _ in range(10)]
    check_kills(media_server, make_video(seconds=8, size="640x480"), tmp_path, moments)


def test_a_refused_video_is_asked_once_in_a_run_and_last_in_the_next(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    """One that is always refused would else hold up all others, run after run."""
    refused: list[Row] = [("a", "status-429", n, n + 2, "val") for n in range(3)]
    absent: list[Row] = [("a", f"absent{n}", 0, 2, "val") for n in range(4)]
    out = tmp_path / "out"
    words = ("--source", media_server.template, "--jobs", 1)
    said = download(write_manifest(tmp_path / "list.csv", [*refused, *absent]), out, *words)
    assert said.returncode == 4, said.stderr
    assert media_server.requests.count("/status-429.mp4") == 1
    assert list(reasons(out).values()) == ["rate-limited"] * 3 + ["gone"] * 4
    media_server.requests.clear()
    media_server.put("good", make_video())
    rows: list[Row] = [*refused, *absent, ("a", "good", 0, 2, "val")]
    assert download(write_manifest(tmp_path / "list.csv", rows), out, *words).returncode == 4
    assert reasons(out)["good_000000_000002"] is None
    assert [path for path in media_server.requests if "absent" in path] == []
    assert media_server.requests.index("/status-429.mp4") == len(media_server.requests) - 1


def test_a_failed_attempt_at_a_finished_clip_leaves_it_finished(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    media_server.put("good", make_video())
    table = write_manifest(tmp_path / "list.csv", [("a", "good", 0, 2, "val")])
    out = tmp_path / "out"
    source = ("--source", media_server.template)
    assert download(table, out, *source).returncode == 0
    media_server.files.clear()
    assert download(table, out, *source, "--force").returncode == 0


def test_a_ready_clip_in_another_container_is_made_again(
    make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    ready.mkdir()
    key = "abc_000000_000010"
    conform(make_video(), ready / f"{key}.mkv", recipe=recipe, binary=ffmpeg)
    table = write_manifest(tmp_path / "list.csv", [("a", "abc", 0, 10, "val")])
    download(table, tmp_path / "out", "--source", f"dir:{ready}")
    clip = tmp_path / "out" / "clips" / "val" / "a" / f"{key}.mp4"
    assert "mp4" in decode.probe(clip).container


def processes_of(session: int) -> list[str]:
    """The command lines of a session's living processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((path / "cmdline").read_text())
    return found


@pytest.mark.parametrize(
    ("told", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_what_is_told_to_stop_leaves_a_whole_ledger_and_no_process(
    media_server: MediaServer,
    make_video: MakeVideo,
    tmp_path: Path,
    told: signal.Signals,
    code: int,
    word: str,
) -> None:
    rows: list[Row] = [("a", f"v{n}", 0, 10, "val") for n in range(30)]
    for row in rows:
        media_server.put(row[1], make_video(seconds=10, size="640x480"))
    table = write_manifest(tmp_path / "list.csv", rows)
    out = tmp_path / "out"
    words = command("kinetics-download", table, out, "--source", media_server.template)
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    ) as running:
        while not list(out.glob("clips/*/*/*.mp4")):
            time.sleep(0.05)
        os.killpg(running.pid, told)  # as a terminal or a batch system does
        _, words_said = running.communicate(timeout=30)
    assert running.returncode == code
    assert words_said.decode().startswith(f"{word}; the same command continues")
    assert all(history.done for history in ledger.read(out).values())
    assert not (out / ".scratch").exists()
    wait_until(lambda: not processes_of(running.pid))  # what is being killed takes a moment


def test_a_visitor_who_is_locked_out_asks_nothing_more_and_no_clip_is_blamed(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    media_server.put("good", make_video())
    rows: list[Row] = [("a", f"status-429-{n}", 0, 2, "val") for n in range(20)]
    table = write_manifest(tmp_path / "list.csv", [*rows, ("a", "good", 0, 2, "val")])
    out = tmp_path / "out"
    words = (table, out, "--source", media_server.template, "--jobs", 1)
    for _ in range(2):
        said = download(*words)
        assert said.returncode == 75
        assert re.search("rate-limited: .*locked out until", said.stderr)
        assert "not tried      18" in said.stdout
        assert media_server.requests == [f"/status-429-{n}.mp4" for n in range(3)]
        assert reasons(out) == {f"status-429-{n}_000000_000002": "rate-limited" for n in range(3)}


def test_workers_that_are_locked_out_together_record_what_they_asked_and_no_more(
    media_server: MediaServer, tmp_path: Path
) -> None:
    rows: list[Row] = [("a", f"status-429-{n}", 0, 2, "val") for n in range(20)]
    table = write_manifest(tmp_path / "list.csv", rows)
    out = tmp_path / "out"
    said = download(table, out, "--source", media_server.template, "--jobs", 4)
    assert said.returncode == 75
    asked = {path.removesuffix(".mp4").strip("/") for path in media_server.requests}
    assert 3 <= len(asked) <= 6
    assert {key.removesuffix("_000000_000002") for key in reasons(out)} == asked


def test_a_run_whose_last_video_locks_the_visitor_out_says_so(
    media_server: MediaServer, tmp_path: Path
) -> None:
    rows: list[Row] = [("a", f"status-429-{n}", 0, 2, "val") for n in range(3)]
    table = write_manifest(tmp_path / "list.csv", rows)
    said = download(table, tmp_path / "out", "--source", media_server.template)
    assert said.returncode == 75
    assert "locked out until" in said.stderr


def test_whether_a_ready_clip_is_too_short_is_a_matter_of_seconds(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    folder = tmp_path / "ready"
    folder.mkdir()
    slides = "-c:v libx264 -vf select=lt(t\\,0.3)+gt(t\\,2.5) -fps_mode vfr"
    for name, seconds, fps, options in (
        ("slow", 3, "10", "-c:v libx264"),
        ("fast", 1, "60", "-c:v libx264"),
        ("slides", 3, "25", slides),
    ):
        content = make_video(seconds=seconds, fps=fps, options=options).read_bytes()
        (folder / f"{name}_000000_000010.mp4").write_bytes(content)
    rows: list[Row] = [("a", name, 0, 10, "val") for name in ("slow", "fast", "slides")]
    table = write_manifest(tmp_path / "list.csv", rows)
    out = tmp_path / "out"
    assert download(table, out, "--source", f"dir:{folder}", "--keep-original").returncode == 3
    assert reasons(out) == {
        "slow_000000_000010": None,
        "fast_000000_000010": "too-short",
        "slides_000000_000010": None,
    }


def test_a_network_that_is_down_ends_the_run_and_not_the_list(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rows: list[Row] = [("a", f"v{n}", 0, 2, "val") for n in range(60)]
    table = write_manifest(tmp_path / "list.csv", rows)
    source = f"url:http://127.0.0.1:{port}/{{youtube_id}}.mp4"
    words = (table, tmp_path / "out", "--source", source, "--retries", 0, "--jobs", 2)
    said = download(*words, "--source", f"dir:{tmp_path}")
    assert said.returncode == 4
    assert "stopped: network: 10 videos in a row got no answer" in said.stderr
    assert set(reasons(tmp_path / "out").values()) == {"network"}
    assert 10 <= len(ledger.read(tmp_path / "out")) <= 14


BAD_CALLS = {
    "no manifest": (["{tmp}/none.csv", "{tmp}/out"], "No such file"),
    "unknown source": (["{csv}", "{tmp}/out", "--source", "yotube"], "Did you mean 'youtube'"),
    "unknown reason": (["{csv}", "{tmp}/out", "--retry", "transent"], "Did you mean 'transient'"),
    "unknown split": (["{csv}", "{tmp}/out", "--split", "vall"], "Did you mean 'val'"),
    "bad task": (["{csv}", "{tmp}/out", "--task", "3/3"], "I/N"),
    "bad number": (["{csv}", "{tmp}/out", "--jobs", "0"], "whole number from 1"),
    "out is a file": (["{csv}", "{csv}"], "not a folder"),
    "out cannot be made": (["{csv}", "/proc/out"], "/proc/out cannot be made"),
    "mistyped verb": (["reprot", "{tmp}/out"], "did you mean 'report'"),
    "mistyped list": (["kinetics40", "{tmp}/out"], "did you mean 'kinetics400'"),
    "no argument": ([], "required: MANIFEST, OUT"),
    "no such option": (["{csv}", "{tmp}/out", "--resume"], "unrecognized arguments: --resume"),
    "no cookies": (["{csv}", "{tmp}/out", "--cookies", "{tmp}/c.txt"], "no such file"),
    "no cookies, and no yt-dlp": (
        ["{csv}", "{tmp}/out", "--source", "dir:{tmp}", "--cookies", "{tmp}/c.txt", "--dry-run"],
        "no such file",
    ),
    "an option that runs programs": (
        ["{csv}", "{tmp}/out", "--source", "dir:{tmp}", "--ytdlp-option", "exec=rm"],
        "exec",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_wrong_call_is_one_line_and_exit_2(manifest: Path, tmp_path: Path, case: str) -> None:
    words, expected = BAD_CALLS[case]
    places = {"csv": str(manifest), "tmp": str(tmp_path)}
    said = run_command("kinetics-download", *(word.format(**places) for word in words))
    assert said.returncode == 2
    assert said.stderr.startswith("error: ")
    assert len(said.stderr.splitlines()) == 1
    assert expected in said.stderr
    assert said.stdout == ""
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_another_recipe_or_a_second_run_in_one_out_is_refused(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    media_server.put("good", make_video())
    table = write_manifest(tmp_path / "list.csv", [("a", "good", 0, 2, "val")])
    out = tmp_path / "out"
    download(table, out, "--source", media_server.template)
    before = tree(out)
    said = download(table, out, "--source", media_server.template, "--fps", "30")
    assert said.returncode == 2
    assert "made with fps = 25, this run has fps = 30" in said.stderr
    assert tree(out) == before

    from kinetics_tools.core import files

    with files.hold_lock(out):
        said = download(table, out, "--source", media_server.template)
        parted = download(table, out, "--source", media_server.template, "--task", "0/2")
    assert said.returncode == parted.returncode == 2
    assert f"in use by process {os.getpid()}" in said.stderr
    assert "in use by a job of 1 parts, this one is of 2" in parted.stderr


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_recipe_is_one_line_that_says_what_to_do(
    kind: str, media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    media_server.put("good", make_video())
    table = write_manifest(tmp_path / "list.csv", [("a", "good", 0, 2, "val")])
    out = tmp_path / "out"
    download(table, out, "--source", media_server.template)
    before = tree(out)
    damage_file(out / "recipe.json", kind)
    said = download(table, out, "--source", media_server.template)
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"error: {out / 'recipe.json'} is not ")
    assert line.endswith("that made the clips there, move it away, else choose another folder")
    (out / "recipe.json").unlink()
    assert download(table, out, "--source", media_server.template).returncode == 0
    assert tree(out) == before


def test_bad_rows_are_left_out_only_when_asked(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    media_server.put("good", make_video())
    rows: list[Row] = [("a", "good", 0, 2, "val"), ("a", "../etc", 0, 2, "val")]
    table = write_manifest(tmp_path / "list.csv", rows)
    out = tmp_path / "out"
    said = download(table, out, "--source", media_server.template)
    assert said.returncode == 2
    assert not out.exists()
    said = download(table, out, "--source", media_server.template, "--skip-bad-rows")
    assert said.returncode == 0
    listed = (out / "bad-rows.csv").read_text().splitlines()
    assert listed[1].startswith("3,\"youtube_id '../etc' may have only letters")


def test_a_disk_that_fills_stops_the_run_and_no_clip_is_blamed(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    media_server.put("good", make_video(seconds=8, size="640x480"))
    table = write_manifest(tmp_path / "list.csv", [("a", "good", 0, 2, "val")])
    out = tmp_path / "out"
    words = command("kinetics-download", table, out, "--source", media_server.template)
    limited = 'ulimit -f 20; exec "$@"'  # 20 blocks of 1024 bytes
    said = subprocess.run(
        ["/bin/bash", "-c", limited, "bash", *words],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert said.returncode == 2, said.stderr
    assert "File too large; make room" in said.stderr
    assert ledger.read(out) == {}
    assert not list(out.rglob("*.mp4"))


def test_a_dry_run_writes_nothing(manifest: Path, tmp_path: Path) -> None:
    said = download(manifest, tmp_path / "out", "--dry-run")
    assert said.returncode == 0
    assert said.stdout.startswith("8 segments, 8 still to do\n")
    rows = [line.split() for line in said.stdout.splitlines()]
    assert ["val", "6", "5", "1"] in rows  # split, segments, videos, classes
    assert ["all", "8", "6", "2"] in rows
    assert not (tmp_path / "out").exists()


def test_videos_are_kept_when_asked(
    media_server: MediaServer, make_video: MakeVideo, tmp_path: Path
) -> None:
    media_server.put("good", make_video())
    table = write_manifest(tmp_path / "list.csv", [("a", "good", 0, 2, "val")])
    download(table, tmp_path / "out", "--source", media_server.template, "--keep-videos")
    assert (tmp_path / "out" / "videos" / "good.mp4").read_bytes() == make_video().read_bytes()


@pytest.mark.full
def test_real_videos_end_as_exact_clips_or_with_their_reason_even_when_killed(
    shared_data: Path, media_server: MediaServer, ffmpeg: Path, tmp_path: Path
) -> None:
    clips = shared_data / "clips"
    turned = tmp_path / "turned.mp4"
    turn = [str(ffmpeg), "-loglevel", "error", "-display_rotation", "90"]
    subprocess.run([*turn, "-i", str(clips / "bikes.mp4"), "-c", "copy", str(turned)], check=True)
    hmdb = "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi"
    cases: list[tuple[str, Path | bytes | None, int, int, str | None]] = [
        ("R6llTwEh07w", clips / "R6llTwEh07w.mp4", 0, 10, None),
        ("WUzgd7C1pWA", clips / "WUzgd7C1pWA.mp4", 0, 10, None),
        ("-M8qt69nljE", clips / "arm_wrestling.mp4", 0, 10, None),
        ("turned", turned, 0, 10, None),
        ("long", clips / "long_1080p.mp4", 100, 110, None),
        ("hevc", clips / "h265_video.mp4", 0, 1, None),
        ("av1", clips / "av1_video.mkv", 0, 1, None),
        ("hmdb", clips / hmdb, 0, 2, None),
        ("bikes", clips / "bikes.mp4", 5, 15, "too-short"),
        ("missing0000", None, 0, 10, "gone"),
        ("corrupted", clips / "corrupted.mp4", 0, 5, "damaged"),
        ("page", b"<html><body>no video here</body></html>", 0, 10, "no-formats"),
        ("empty", b"", 0, 10, "damaged"),
    ]
    for name, content, *_ in cases:
        if content is not None:
            media_server.put(name, content)
    rows: list[Row] = [("a", name, start, end, "val") for name, _, start, end, _ in cases]
    table = write_manifest(tmp_path / "list.csv", rows)
    source = ("--source", media_server.template)

    start = time.monotonic()
    assert download(table, tmp_path / "whole", *source).returncode == 4
    life_s = time.monotonic() - start
    words = command("kinetics-download", table, tmp_path / "torn", *source)
    assert kill_after(words, life_s / 2)
    assert download(table, tmp_path / "torn", *source).returncode == 4
    for out in (tmp_path / "torn", tmp_path / "whole"):
        for name, _, start, end, reason in cases:
            key = f"{name}_{start:06d}_{end:06d}"
            assert reasons(out)[key] == reason, name
            if reason is None:
                path = out / "clips" / "val" / "a" / f"{key}.mp4"
                assert decode.count_frames(path) == (end - start) * 25, name
                assert decode.probe(path).fps == 25
    assert tree(tmp_path / "torn", without=("ledger",)) == tree(
        tmp_path / "whole", without=("ledger",)
    )
    assert not (tmp_path / "torn" / ".scratch").exists()


SEGMENT = Segment(youtube_id="v", start_s=Fraction(0), end_s=Fraction(2), label="a", split="val")


def test_out_is_a_runs_own_before_any_source_is_tried_and_its_lines_are_pulled(
    recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = DownloadPlan(out=out, sources=(Folder(tmp_path),), recipe=recipe, binary=ffmpeg, jobs=0)
    with make_clips_of([SEGMENT], ("a",), plan) as run:
        assert (out / "manifest.csv").exists()
        assert ledger.read(out) == {}
        (attempts,) = run.by_source()
    assert (attempts.source, attempts.num_wanted) == (f"dir:{tmp_path}", 1)
    assert list(attempts.lines) == []  # the block has ended, and with it the run
    with make_clips_of([SEGMENT], ("a",), plan) as run:
        for line in run:
            assert ledger.read(out)[line.key].main_reason == line.reason == "absent"
        assert (run.summary().num_expected, run.summary().gaps) == (1, {"absent": 1})


def test_a_run_that_is_left_leaves_no_worker_and_no_scratch_file(
    recipe: ClipRecipe, ffmpeg: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    asked = []
    for number in range(6):
        (videos / f"v{number}.mp4").write_bytes(make_video(seconds=4).read_bytes())
        asked.append(replace(SEGMENT, youtube_id=f"v{number}"))
    plan = DownloadPlan(out=out, sources=(Folder(videos),), recipe=recipe, binary=ffmpeg, jobs=2)
    with make_clips_of(asked, ("a",), plan) as run:
        lines = iter(run)
        first = next(lines)
    assert multiprocessing.active_children() == []
    assert not (out / ".scratch").exists()
    assert first.key in ledger.read(out)
    with make_clips_of(asked, ("a",), plan) as run:
        assert first.key not in {line.key for line in run}
        assert run.summary().num_done == 6


def test_a_run_left_at_a_line_has_recorded_every_clip_that_it_made(
    recipe: ClipRecipe, ffmpeg: Path, make_video: MakeVideo, tmp_path: Path
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    (videos / "v0.mp4").write_bytes(make_video(seconds=4).read_bytes())
    asked = [
        replace(SEGMENT, youtube_id="v0", start_s=Fraction(at), end_s=Fraction(at + 1))
        for at in range(3)
    ]
    plan = DownloadPlan(out=out, sources=(Folder(videos),), recipe=recipe, binary=ffmpeg, jobs=0)
    with make_clips_of(asked, ("a",), plan) as run:
        next(iter(run))
        assert run.summary().num_done == 3
    done = [history.done for history in ledger.read(out).values()]
    assert len([line for line in done if line is not None]) == len(list(out.rglob("*.mp4"))) == 3


def test_a_run_of_one_part_reads_the_ledger_once(
    recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250,000 clips take seconds to read; a part of several must see what the others wrote."""
    read = ledger.read
    outs = []

    def counted(out: Path) -> dict[str, ledger.History]:
        outs.append(out)
        return read(out)

    monkeypatch.setattr(ledger, "read", counted)
    for part, times in ((Part(0, 1), 1), (Part(0, 2), 2)):
        out = tmp_path / str(part)
        plan = DownloadPlan(
            out=out,
            sources=(Folder(tmp_path),),
            recipe=recipe,
            binary=ffmpeg,
            jobs=0,
            part=part,
        )
        with make_clips_of([SEGMENT], ("a",), plan) as run:
            assert [line.reason for line in run] == ["absent"]
            assert run.summary().gaps == {"absent": 1}
        assert outs == [out] * times
        outs.clear()
