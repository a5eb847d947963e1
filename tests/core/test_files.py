"""Files are complete when they exist, folders have one owner, scratch files do not pile up."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_tools.core import files
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import below
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


def test_a_folder_or_a_link_to_nothing_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        files.write_text(tmp_path / "clip.mp4", "new")
    assert caught.value.filename == str(tmp_path / "clip.mp4")  # not the scratch file
    (tmp_path / "lost").symlink_to("nothing")
    with pytest.raises(OutError, match="lost is a link to nothing; remove it"):
        files.require_file(tmp_path / "lost")
    with pytest.raises(FileNotFoundError):
        files.require_file(tmp_path / "never")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "lost"]


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


@given(st.lists(st.text(max_size=3) | st.sampled_from(["..", ".", "/", "a/..", "\0"]), max_size=3))
def test_a_path_of_names_is_below_its_root_or_an_error(names: list[str]) -> None:
    root = Path("/a/b")
    try:
        path = below(root, *names)
    except ValueError as error:
        assert "is not the name of a file or folder" in str(error)
    else:
        assert Path(os.path.normpath(path)) == path
        assert path.relative_to(root).parts == tuple(names)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    victim = tmp_path / "elsewhere" / "victim.txt"
    victim.parent.mkdir()
    victim.write_text("precious")
    return victim


@pytest.mark.parametrize("name", [files.PARTS_LOCK, ".lock-0-of-1"])
def test_a_lock_that_is_a_link_or_a_pipe_is_refused(
    name: str, tmp_path: Path, victim: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(victim)
    told = f"{name} is a link, through which another file would be written; remove it"
    for locked in (files.hold_lock(out), files.hold_lock_if_any(out)):
        with pytest.raises(OutError, match=told), locked:
            pass
    with pytest.raises(OutError, match=told):
        files.require_free(out)
    (out / name).unlink()
    os.mkfifo(out / name)
    with pytest.raises(OutError, match="not a file of ours"), files.hold_lock(out):
        pass
    assert victim.read_text() == "precious"


def test_a_scratch_path_or_folder_that_is_a_link_is_not_followed(
    tmp_path: Path, victim: Path
) -> None:
    out = tmp_path / "out"
    with files.publish(out / "a.txt") as scratch:
        pass_on = scratch
        scratch.touch()
    pass_on.symlink_to(victim)
    files.write_text(out / "a.txt", "new")
    assert tree(out) == {"a.txt": b"new"}
    (out / ".scratch").symlink_to(victim.parent)
    with pytest.raises(OutError, match="scratch is a link"), files.scratch_folder(out):
        pass
    assert tree(victim.parent) == {"victim.txt": b"precious"}


@pytest.mark.parametrize("place", ["clips", "clips/train", "clips/train/a label", ".scratch"])
def test_a_folder_that_is_a_link_to_one_elsewhere_is_refused(
    place: str, tmp_path: Path, victim: Path
) -> None:
    out = tmp_path / "out"
    (out / place).parent.mkdir(parents=True)
    (out / place).symlink_to(victim.parent)
    with pytest.raises(OutError, match="is a link to a folder elsewhere"), files.hold_lock(out):
        pass
    with files.hold_lock_if_any(out):  # a reader does not write there
        pass
    assert tree(victim.parent) == {"victim.txt": b"precious"}


def test_a_log_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OutError, match="not a file of ours"), files.open_own(tmp_path / "log", "a"):
        pass
    with pytest.raises(OutError, match="is not a file"):
        files.require_file(tmp_path / "log")


def test_out_itself_and_folders_in_it_may_be_links(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "clips").mkdir(parents=True)
    (disk / "same").symlink_to("clips")
    (disk / "loop").symlink_to(disk / "loop")
    (tmp_path / "out").symlink_to(disk)
    with files.hold_lock(tmp_path / "out"):
        pass
