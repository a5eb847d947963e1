"""Digests of clips are kept: a file that did not change is not read again."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from kinetics_tools.extract import digests
from kinetics_tools.extract.digests import FILE, DigestStore
from support import run_command, tree
from tiny import tiny_clips

OTHER = "0" * 64


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", 0)


def files(folder: Path, num: int = 3) -> dict[str, Path]:
    paths = {f"a/{at}.mp4": folder / f"{at}.mp4" for at in range(num)}
    for name, path in paths.items():
        path.write_text(name)
    return paths


def of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def kept_as(folder: Path, digest: str) -> None:
    """Change every digest that is kept, so that one which is not read again shows."""
    entries = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({name: [*e[:-1], digest] for name, e in entries.items()}))


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    paths = files(tmp_path, num=100)  # more than a thread takes at once
    store = DigestStore(tmp_path)
    assert store.find(paths) == {name: of(name) for name in paths}
    store.write()
    kept_as(tmp_path, OTHER)
    assert set(DigestStore(tmp_path).find(paths).values()) == {OTHER}
    again = DigestStore(tmp_path, distrust=True)
    assert again.find(paths) == {name: of(name) for name in paths}
    again.write()
    assert DigestStore(tmp_path).find(paths)["a/7.mp4"] == of("a/7.mp4")


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    paths = files(tmp_path)
    store = DigestStore(tmp_path)
    store.find(paths)
    store.write()
    kept_as(tmp_path, OTHER)
    name, path = next(iter(paths.items()))
    before = path.stat()
    path.write_text(name.upper())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    found = DigestStore(tmp_path).find(paths)
    assert found == {**dict.fromkeys(paths, OTHER), name: of(name.upper())}


def test_a_file_of_just_now_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED_NS", 3600 * 10**9)
    store = DigestStore(tmp_path)
    store.find(files(tmp_path))
    store.write()
    assert json.loads((tmp_path / FILE).read_text()) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"a/0.mp4": [1, 2]}', '{"a/0.mp4": [1,1,1,1,"x"]}'])
def test_a_store_that_is_damaged_is_left_out(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(text)
    paths = files(tmp_path)
    assert DigestStore(tmp_path).find(paths) == {name: of(name) for name in paths}
    assert "is left out, all clips are read again" in caplog.text


def test_what_is_not_there_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "folder").mkdir()
    store = DigestStore(tmp_path)
    assert store.find({"x": tmp_path / "gone", "y": tmp_path / "folder"}) == {"x": None, "y": None}
    store.write()
    assert not (tmp_path / FILE).exists()
    assert caplog.text == ""


def test_an_unreadable_clip_costs_itself_and_is_made_when_it_can_be_read(tmp_path: Path) -> None:
    for name in ("left/ann_left.mp4", "left/ben_left.mp4", "right/ann_right.mp4"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tiny_clips() / name).read_bytes())
    locked = tmp_path / "clips" / "left" / "ben_left.mp4"
    locked.chmod(0)
    words = (
        *(tmp_path / "clips", tmp_path / "out", "--method", "opencv-tvl1"),
        *("--jobs", 1, "--short-side", "keep"),
    )
    done = run_command("extract-flow", *words, is_root=False)
    assert done.returncode == 4, done.stderr
    told = f"1 clips cannot be read and count as missing, such as {locked} (Permission denied)"
    assert told in done.stderr
    assert "2 of 3 samples" in done.stdout
    (sidecar,) = (tmp_path / "out" / "all").glob("rgb-*.json")
    failed = json.loads(sidecar.read_text())["failed"]
    assert failed["ben_left"]["detail"] == "cannot read left/ben_left.mp4"
    locked.chmod(0o644)
    done = run_command("extract-flow", *words, is_root=False)
    assert (done.returncode, done.stderr.count("cannot be read")) == (0, 0), done.stderr
    assert "3 of 3 samples" in done.stdout
    before = tree(tmp_path / "out")
    assert run_command("extract-flow", *words, "--check-all").returncode == 0
    assert tree(tmp_path / "out") == before
