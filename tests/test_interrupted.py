"""Whatever stops a command, nothing that it started is left when it has ended, and no scratch."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import MakeVideo
from kinetics_bench.archs import build
from support import command, environment, wait_until
from tiny import key_file, tiny_clips, tiny_shards

# An ffmpeg that cannot be asked to end, and that makes files, and their folder, until it is killed.
# To give back so much memory takes a moment, in which it is still there.
STUBBORN = """#!{python} -IS
import os, pathlib, signal, sys
if "-version" in sys.argv:
    os.execv("{ffmpeg}", ["ffmpeg", "-version"])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)
ballast = b"x" * 2**27
for _ in range({forks}):
    if os.fork() == 0:
        break
places = {{pathlib.Path(word).parent for word in sys.argv}} | {{pathlib.Path.cwd()}}
(folder,) = {{place for place in places if ".scratch" in place.parts}}
number = 0
while True:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{{os.getpid()}}-{{number % 50}}").write_bytes(b"x" * 1000)
    number += 1
"""


def stubborn_ffmpeg(folder: Path, ffmpeg: Path, *, forks: int = 0) -> Path:
    path = folder / "stubborn-ffmpeg"
    path.write_text(STUBBORN.format(python=sys.executable, ffmpeg=ffmpeg, forks=forks))
    path.chmod(0o755)
    return path


def processes_of(session: int, words: str) -> set[int]:
    """The session's living processes with these words, after NUL, in their command line."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            is_ours = int(fields[3]) == session and fields[0] != "Z"
            if is_ours and words in (path / "cmdline").read_text():
                found.add(int(path.name))
    return found


def scratch_of_ffmpegs(root: Path) -> set[Path]:
    """The folders in which they make files."""
    return {path.parent for path in root.glob(".scratch/*/**/[0-9]*-[0-9]*")}


def default_signals() -> None:
    """In a new process: nohup, and a shell that runs the tests in the background, ignore some."""
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def at_work(
    words: list[str], program: Path, root: Path, *, jobs: int
) -> Iterator[subprocess.Popen[str]]:
    """A command, from when so many of its ffmpegs are making files."""
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"IMAGEIO_FFMPEG_EXE": str(program)},
        start_new_session=True,
        preexec_fn=default_signals,
    ) as running:
        try:
            wait_until(
                lambda: running.poll() is not None or len(scratch_of_ffmpegs(root)) >= jobs,
                seconds=120,
            )
            yield running
        finally:
            for pid in processes_of(running.pid, ""):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def ffmpegs(running: subprocess.Popen[str]) -> set[int]:
    return processes_of(running.pid, "-IS\0")


def workers(running: subprocess.Popen[str]) -> set[int]:
    return processes_of(running.pid, "multiprocessing.spawn")


def require_nothing_left(running: subprocess.Popen[str], root: Path) -> None:
    assert ffmpegs(running) == set()
    assert workers(running) == set()
    assert not (root / ".scratch").exists()


FORKS = 10  # of each ffmpeg
STOPS = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (143, "terminated"),
    signal.SIGHUP: (129, "hung up"),
    signal.SIGQUIT: (131, "quit"),
}


def require_clean_stop(
    told: signal.Signals, words: list[str], program: Path, root: Path, *, jobs: int
) -> str:
    """Stop a command at work, as a terminal or a batch system does; return what it says."""
    with at_work(words, program, root, jobs=jobs) as running:
        os.killpg(running.pid, told)
        _, said = running.communicate(timeout=60)
        require_nothing_left(running, root)
    assert running.returncode == STOPS[told][0], said
    return said


@pytest.fixture
def download(make_video: MakeVideo, tmp_path: Path) -> list[str]:
    """The words of a run that needs an ffmpeg for each of 20 clips."""
    videos = tmp_path / "videos"
    videos.mkdir()
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number in range(20):
        (videos / f"v{number}.mp4").symlink_to(make_video())
        rows.append(f"a,v{number},0,2,val")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    table, out = tmp_path / "list.csv", tmp_path / "out"
    return command("kinetics-download", table, out, "--source", f"dir:{videos}", "--jobs", 3)


@pytest.mark.parametrize("told", STOPS)
def test_a_stopped_download_leaves_nothing(
    told: signal.Signals, download: list[str], ffmpeg: Path, tmp_path: Path
) -> None:
    out, program = tmp_path / "out", stubborn_ffmpeg(tmp_path, ffmpeg, forks=FORKS)
    said = require_clean_stop(told, [*download, "--ffmpeg", str(program)], program, out, jobs=3)
    assert said == f"{STOPS[told][1]}; the same command continues where this one stopped\n"


@pytest.mark.full
@pytest.mark.parametrize("told", STOPS)
def test_a_download_that_is_stopped_under_ray_leaves_nothing(
    told: signal.Signals, download: list[str], ffmpeg: Path, tmp_path: Path
) -> None:
    out, program = tmp_path / "out", stubborn_ffmpeg(tmp_path, ffmpeg, forks=FORKS)
    words = [*download, "--ffmpeg", str(program), "--engine", "ray"]
    with at_work(words, program, out, jobs=2) as running:
        os.kill(running.pid, told)
        _, said = running.communicate(timeout=120)
    assert running.returncode == STOPS[told][0], said
    assert not (out / ".scratch").exists(), said


def test_who_presses_ctrl_c_often_leaves_nothing(
    download: list[str], ffmpeg: Path, tmp_path: Path
) -> None:
    out, program = tmp_path / "out", stubborn_ffmpeg(tmp_path, ffmpeg, forks=FORKS)
    with at_work([*download, "--ffmpeg", str(program)], program, out, jobs=3) as running:
        while running.poll() is None:
            os.killpg(running.pid, signal.SIGINT)
            time.sleep(0.005)
        _, said = running.communicate(timeout=60)
        require_nothing_left(running, out)
    assert running.returncode == 130, said
    assert said == "interrupted; the same command continues where this one stopped\n"


def test_a_killed_download_ends_what_it_started_and_the_next_one_cleans(
    download: list[str], ffmpeg: Path, tmp_path: Path
) -> None:
    out, program = tmp_path / "out", stubborn_ffmpeg(tmp_path, ffmpeg, forks=FORKS)
    with at_work([*download, "--ffmpeg", str(program)], program, out, jobs=3) as running:
        running.kill()
        running.wait()
        wait_until(lambda: not ffmpegs(running) | workers(running))
    assert (out / ".scratch").exists()
    subprocess.run(download, check=True, capture_output=True, env=environment())
    assert not (out / ".scratch").exists()


def test_a_worker_that_dies_takes_what_it_started_with_it(
    download: list[str], ffmpeg: Path, tmp_path: Path
) -> None:
    out, program = tmp_path / "out", stubborn_ffmpeg(tmp_path, ffmpeg, forks=FORKS)
    with at_work([*download, "--ffmpeg", str(program)], program, out, jobs=3) as running:
        orphans = ffmpegs(running)
        for worker in workers(running):
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not orphans & ffmpegs(running))
        assert running.poll() is None  # it goes on with other units


@pytest.mark.parametrize("told", STOPS)
def test_a_stopped_extraction_leaves_nothing(
    told: signal.Signals, ffmpeg: Path, tmp_path: Path
) -> None:
    out, program = tmp_path / "out", stubborn_ffmpeg(tmp_path, ffmpeg, forks=FORKS)
    words = command(
        *("extract-flow", tiny_clips(), out, "--method", "opencv-tvl1", "--device", "cpu"),
        *("--jobs", 3, "--samples-per-shard", 1),
    )
    require_clean_stop(told, words, program, out, jobs=3)


@pytest.mark.parametrize("told", STOPS)
def test_a_stopped_prediction_leaves_nothing(
    told: signal.Signals, ffmpeg: Path, tmp_path: Path
) -> None:
    weights, program = tmp_path / "rgb.pt", stubborn_ffmpeg(tmp_path, ffmpeg)
    torch.save(build("i3d", "rgb").state_dict(), weights)
    words = command(
        *("run-benchmark", "predict", tiny_clips() / "left" / "ann_left.mp4"),
        *("--init", weights, "--stream", "rgb", "--device", "cpu", "--tmp-dir", tmp_path),
    )
    require_clean_stop(told, words, program, tmp_path, jobs=1)


@pytest.mark.full
@pytest.mark.parametrize("told", STOPS)
def test_a_training_whose_readers_are_signalled_too_says_one_line(
    told: signal.Signals, tmp_path: Path
) -> None:
    train = key_file(tmp_path, "train.txt", "ann_*", "ben_*")
    test = key_file(tmp_path, "test.txt", "dan_*")
    words = command(
        *("run-benchmark", "--arch", "i3d", "--stream", "rgb", "--recipe", "small"),
        *("--data", tiny_shards(), "--train-split", train, "--test-split", test, "--epochs", 50),
        *("--work-dir", tmp_path / "run", "--device", "cpu", "--workers", 2),
    )
    with subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        preexec_fn=default_signals,
    ) as running:
        try:
            wait_until(
                lambda: running.poll() is not None or len(processes_of(running.pid, "")) > 2,
                seconds=120,
            )
            os.killpg(running.pid, told)
            _, said = running.communicate(timeout=60)
            wait_until(lambda: not processes_of(running.pid, ""))
        finally:
            for pid in processes_of(running.pid, ""):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    code, word = STOPS[told]
    assert running.returncode == code, said
    assert said.splitlines()[-1].startswith(word), said
    assert not re.search("Traceback|Exception|Error", said), said


def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    """Python prints and drops what a finalizer raises."""
    code = (
        "import signal, time; from kinetics_tools.core import cli\n"
        "class Thing:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGQUIT)\n"
        "def main():\n"
        "    Thing()\n"
        "    time.sleep(60)\n"
        "    return 0\n"
        "cli.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )
    assert done.returncode == 131
    assert done.stderr == "quit; the same command continues where this one stopped\n"


def test_a_command_that_ignores_a_closed_terminal_goes_on() -> None:
    """As nohup asks."""
    code = (
        "import signal, sys; from kinetics_tools.core import cli\n"
        "def main():\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "    return 0\n"
        "signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))\n"
        "cli.run(main)"
    )
    codes = {"SIG_IGN": 0, "SIG_DFL": 129}
    for before, expected in codes.items():
        words = [sys.executable, "-c", code, before]
        assert subprocess.run(words, env=environment(), check=False).returncode == expected
