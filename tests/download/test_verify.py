"""Verification: every clip decoded again, damage recorded so that the next run makes it again."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import MakeVideo
from kinetics_tools.core.errors import ManifestError, OutError, Reason, UnknownNameError
from kinetics_tools.core.files import hold_lock
from kinetics_tools.core.units import Part
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import clip_path
from kinetics_tools.download.cli import verify_main
from kinetics_tools.download.coverage import State, survey
from kinetics_tools.download.run import DownloadPlan, download
from kinetics_tools.download.sources.folder import Folder
from kinetics_tools.download.verify import Verification, verify
from kinetics_tools.extract.clips import read_clips
from kinetics_tools.media.recipe import ClipRecipe
from outs import ask, done, failed, put, real, segment, tell
from support import environment, run_command, tree

WHOLE = segment("-whole00001")
FLIPPED = segment("flipped0001")
SHORT = segment("short000001", "swim", "train")
LIED = segment("lied0000001", "swim", "train")
ABSENT = segment("absent00001")
NEVER = segment("never000001")
EVERY = (WHOLE, FLIPPED, SHORT, LIED, ABSENT, NEVER)


def flip(clip: Path) -> None:
    """Change one byte in the middle: the size stays."""
    data = bytearray(clip.read_bytes())
    data[len(data) // 2] ^= 0xFF
    clip.write_bytes(data)


@pytest.fixture
def video(make_video: MakeVideo) -> Path:
    return make_video(seconds=2, fps="25")


@pytest.fixture
def out(tmp_path: Path, video: Path) -> Path:
    """Six clips, four of them no longer as the ledger has them; one was never done."""
    folder = tmp_path / "out"
    ask(folder, EVERY)
    tell(folder, [real(folder, s, video) for s in (WHOLE, FLIPPED, SHORT)], Part(1, 4))
    lied = done(folder, LIED, "youtube", video.read_bytes(), frames=49)
    gone = real(folder, ABSENT, video)
    tell(folder, [lied, gone, failed(NEVER, "cvdf", Reason.GONE)])
    flip(clip_path(folder, FLIPPED))
    with clip_path(folder, SHORT).open("ab") as file:
        file.truncate(1000)
    clip_path(folder, ABSENT).unlink()
    return folder


def problems(shown: str) -> dict[str, str]:
    """What was printed of each clip, by its video."""
    lines = re.findall(r"^clips/\w+/\w+/(.+)_000003_000005\.mp4: (.*)$", shown, re.MULTILINE)
    return dict(lines)


def undone(out: Path) -> set[str]:
    return {key for key, history in ledger.read(out).items() if history.done is None}


def test_each_damage_is_named_and_recorded_and_nothing_is_deleted(
    out: Path, capsys: pytest.CaptureFixture[str], video: Path
) -> None:
    put(out, NEVER, b"left by somebody")
    before = tree(out, without=("ledger",))
    assert verify_main([str(out), "--jobs", "2"]) == 4
    shown = capsys.readouterr().out
    assert problems(shown) == {
        "flipped0001": "has other bytes than when it was made (SHA-256)",
        "short000001": f"has 1000 bytes, not {video.stat().st_size}",
        "lied0000001": "has 50 frames, not 49",
        "absent00001": "is not there",
        "never000001": "is not in the ledger as done; left alone",
    }
    assert "\n1 clips are whole, 4 must be made again\n" in shown
    assert tree(out, without=("ledger",)) == before
    read = ledger.read(out)
    for damaged in (FLIPPED, SHORT, LIED):
        history = read[damaged.key]
        assert history.done is None
        assert (history.main_reason, history.is_retryable) == ("damaged", True)
        assert history.may_try("cvdf", frozenset())
    digests = {clip.key: clip.sha256 for clip in read_clips(out).clips}
    assert [key for key, sha256 in digests.items() if sha256] == [WHOLE.key, NEVER.key]
    # The file is looked for by every run: a disk that was not mounted leaves no trace.
    assert read[ABSENT.key].done is not None


def test_a_whole_folder_exits_with_0_and_is_not_written_to(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(tmp_path, [WHOLE])
    tell(tmp_path, [real(tmp_path, WHOLE, video)])
    before = tree(tmp_path)
    assert verify_main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 clips are whole, 0 must be made again\n"
    assert tree(tmp_path) == before


def verified(out: Path, *, splits: Sequence[str] = (), jobs: int = 1) -> Verification:
    """A verification that has come to its end."""
    with verify(out, splits=splits, jobs=jobs) as run:
        assert len(list(run)) == len(run)
    return run


def test_what_decodes_otherwise_than_it_should_is_damaged(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes that were bad when they were written have the right digest: only decoding tells."""
    ask(tmp_path, [WHOLE])
    half = video.read_bytes()
    half = half[: len(half) // 2] + bytes(len(half) - len(half) // 2)
    tell(tmp_path, [done(tmp_path, WHOLE, "cvdf", half)])
    assert verify_main([str(tmp_path)]) == 4
    assert problems(capsys.readouterr().out)["-whole00001"].startswith("cannot be decoded: ")


def test_damage_after_damage_is_found_and_mended_each_time(tmp_path: Path, video: Path) -> None:
    """More often than a source may give damage: it is not the source's."""
    ask(tmp_path, [WHOLE])
    for day in range(1, 3 + ledger.MAX_DAMAGED):
        tell(tmp_path, [real(tmp_path, WHOLE, video, time=f"2026-01-{day:02}")])
        assert verified(tmp_path, jobs=0).num_whole == 1
        flip(clip_path(tmp_path, WHOLE))
        assert verified(tmp_path, jobs=0).num_damaged == 1
        assert ledger.read(tmp_path)[WHOLE.key].may_try("cvdf", frozenset())


def test_the_next_run_makes_again_what_was_damaged(
    tmp_path: Path, make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    shutil.copy(make_video(seconds=6), videos / f"{WHOLE.youtube_id}.mp4")
    plan = DownloadPlan(out=out, sources=(Folder(videos),), recipe=recipe, binary=ffmpeg, jobs=0)

    def run() -> int:
        with download([WHOLE], ("yoga",), plan) as going:
            list(going)
            return going.summary().num_done

    assert run() == 1
    first = tree(out, without=("ledger",))
    flip(clip_path(out, WHOLE))
    assert verified(out, jobs=0).num_damaged == 1
    assert survey(out).total == {State.RETRYABLE: 1}
    assert run() == 1
    assert tree(out, without=("ledger",)) == first
    assert verified(out, jobs=0).num_damaged == 0
    assert survey(out).total == {State.PRESENT: 1}


def test_a_clock_that_runs_ahead_does_not_hide_damage(tmp_path: Path, video: Path) -> None:
    ask(tmp_path, [WHOLE])
    tell(tmp_path, [real(tmp_path, WHOLE, video, time="2099-01-01")], Part(3, 8))
    flip(clip_path(tmp_path, WHOLE))
    verified(tmp_path, jobs=0)
    assert undone(tmp_path) == {WHOLE.key}
    tell(tmp_path, [real(tmp_path, WHOLE, video)], Part(3, 8))
    assert undone(tmp_path) == set()


def test_a_second_verification_says_what_was_not_mended(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify_main([str(out)])
    capsys.readouterr()
    before = tree(out)
    assert verify_main([str(out), "--split", "train"]) == 4
    shown = capsys.readouterr().out
    again = "was found damaged before, and has not been made again since"
    assert problems(shown) == {"short000001": again, "lied0000001": again}
    assert tree(out) == before


def test_a_split_is_checked_alone(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(out, NEVER, b"left by somebody")
    assert verify_main([str(out), "--split", "train"]) == 4
    assert set(problems(capsys.readouterr().out)) == {"short000001", "lied0000001"}
    with pytest.raises(UnknownNameError, match="unknown split 'vall'"):
        verify_main([str(out), "--split", "vall"])


def test_it_and_a_run_keep_out_of_each_others_way(out: Path, tmp_path: Path) -> None:
    with hold_lock(out, "2-of-8"), pytest.raises(OutError, match="in use by a job of 8 parts"):
        verified(out)
    with hold_lock(out), pytest.raises(OutError, match="in use by process"):
        verified(out)
    with pytest.raises(ManifestError, match=r"holds no manifest\.csv"):
        verified(tmp_path)


def test_a_clip_that_cannot_be_reached_stops_it_and_is_not_called_damaged(out: Path) -> None:
    clip = clip_path(out, WHOLE)
    clip.unlink()
    clip.symlink_to(clip)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        verified(out, splits=("val",), jobs=0)
    assert WHOLE.key not in undone(out)


def test_a_killed_verification_loses_nothing(tmp_path: Path, video: Path) -> None:
    segments = [segment(f"video{at:02}") for at in range(40)]
    out = tmp_path / "out"
    ask(out, segments)
    tell(out, [real(out, s, video) for s in segments])
    for each in segments[::2]:
        flip(clip_path(out, each))
    code = (
        "import sys; from kinetics_tools.download.cli import verify_main; verify_main(sys.argv[1:])"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(out), "--jobs", "1"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert started.stdout is not None
    first = started.stdout.readline()
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert problems(first).keys() <= {s.youtube_id for s in segments[::2]}
    assert undone(out) >= {f"{video}_000003_000005" for video in problems(first)}
    assert undone(out) <= {s.key for s in segments[::2]}
    found = verified(out, jobs=1)
    assert (found.num_whole, found.num_damaged) == (20, 20)
    assert undone(out) == {s.key for s in segments[::2]}


def test_a_folder_without_clips_is_told(tmp_path: Path, video: Path) -> None:
    ask(tmp_path, [WHOLE])
    assert verified(tmp_path).num_damaged == 0
    tell(tmp_path, [real(tmp_path, WHOLE, video)])
    shutil.rmtree(tmp_path / "clips")
    assert verified(tmp_path).num_damaged == 1


def test_the_command_has_both_verbs_and_tells_what_it_cannot_do_in_one_line(
    out: Path, tmp_path: Path
) -> None:
    said = run_command("kinetics-download", "verify", out, "--split", "train")
    assert (said.returncode, said.stderr) == (4, "")
    assert said.stdout.endswith("that filled this folder\n")
    said = run_command("kinetics-download", "report", out)
    assert (said.returncode, said.stderr) == (0, "")
    assert re.search(r"^damaged +transient +2 +2$", said.stdout, re.MULTILINE)
    for verb in ("verify", "report"):
        said = run_command("kinetics-download", verb, tmp_path)
        assert said.returncode == 2
        why = "holds no manifest.csv; give a folder that kinetics-download filled"
        assert said.stderr == f"error: {tmp_path} {why}\n"
