"""Files are complete when they exist, folders have one owner, scratch files do not pile up."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kinetics_tools.core import files
from kinetics_tools.core.errors import OutError
from support import environment, tree


def test_a_file_appears_only_when_its_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "clip.mp4"
    with pytest.raises(ZeroDivisionError), files.publish(path) as scratch:
        scratch.write_bytes(b"half")
        assert scratch.suffix == ".mp4"
        _ = 1 / 0
    assert tree(tmp_path) == {}

    with files.publish(path) as scratch:
        scratch.write_bytes(b"whole")
        assert not path.exists()
    assert tree(tmp_path) == {"deep/clip.mp4": b"whole"}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    files.write_json(path, {"a": 1})

    def write_too_much() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            files.write_text(path, "x" * 1000)
        except OSError as error:
            os._exit(7 if error.errno in files.STORAGE_ERRNOS else 1)

    child = multiprocessing.get_context("fork").Process(target=write_too_much)
    child.start()
    child.join()
    assert child.exitcode == 7
    assert files.read_json(path) == {"a": 1}
    assert list(tree(tmp_path)) == ["index.json"]


def test_a_folder_in_use_is_refused_and_the_message_says_by_whom(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from kinetics_tools.core import files\n"
        "with files.hold_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        said = f"in use by process {other.pid} on"
        with pytest.raises(OutError, match=said), files.hold_lock(tmp_path):
            pass
        said = "in use by a job of 1 parts, this one is of 2"
        with pytest.raises(OutError, match=said), files.hold_lock(tmp_path, "1-of-2"):
            pass
        other.kill()
    with files.hold_lock(tmp_path):
        pass  # the lock died with its holder


def test_parts_of_one_job_run_together(tmp_path: Path) -> None:
    with files.hold_lock(tmp_path, "0-of-2"), files.hold_lock(tmp_path, "1-of-2"):
        pass


def test_scratch_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    with files.publish(tmp_path / "clips" / "a.mp4") as mine:
        mine.touch()
        dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-99999999-"))
        dead.touch()
        files.remove_leftovers(tmp_path)
        assert mine.exists()
        assert not dead.exists()


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.touch()
    with pytest.raises(OutError, match="is not a folder"), files.hold_lock(path):
        pass


def test_scratch_folders_of_ended_processes_are_removed(tmp_path: Path) -> None:
    with files.scratch_folder(tmp_path) as mine:
        (mine / "video.mp4").touch()
        dead = mine.with_name(mine.name + "9")  # the same host, another process
        dead.mkdir()
        (dead / ".owner").touch()
        (dead / "half.mp4").touch()
        files._remove_if_abandoned(dead)
        files._remove_if_abandoned(mine)
        assert not dead.exists()
        assert (mine / "video.mp4").exists()
    assert tree(tmp_path) == {}
    assert not (tmp_path / ".scratch").exists()


def test_a_digest_does_not_depend_on_the_order_of_names() -> None:
    # printf '{"a":[1,2],"b":"é"}' | sha256sum
    golden = "d902c5ef87c42c33059e8d7b7aa30485809a5c0ff84b8d0d285616d5b03f23ea"
    assert files.digest({"b": "é", "a": [1, 2]}) == golden
