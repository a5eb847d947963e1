"""What version 0.1 wrote still reads: its OUT, and its files in the user's cache."""

import json
from pathlib import Path

import pytest

from kinetics_tools.core.errors import OutError, Reason, SourceError
from kinetics_tools.core.http_client import Remote
from kinetics_tools.dataset import ledger
from kinetics_tools.download.official_lists import Origin, read_origins
from kinetics_tools.download.sources.mirror_index import Contents, TarIndex, short_hash
from kinetics_tools.media.encode import ffmpeg_version
from support import run_command, tree, unpack_written_by_0_1


@pytest.fixture
def out(tmp_path: Path, ffmpeg: Path) -> Path:
    """Eight clips of two splits, as version 0.1 left them, as if made with the ffmpeg of now."""
    unpack_written_by_0_1(tmp_path)
    path = tmp_path / "clips" / "recipe.json"
    text = path.read_text()
    then = json.loads(text)["recipe"]["ffmpeg"]
    path.write_text(text.replace(then, ffmpeg_version(ffmpeg)))
    return tmp_path / "clips"


def test_its_clips_are_reported(out: Path) -> None:
    said = run_command("kinetics-download", "report", out)
    assert (said.returncode, said.stderr) == (0, "")
    assert "on disk: 8 clips" in said.stdout
    table = (out / "report" / "clips.csv").read_text()
    histories = ledger.read(out)
    assert len(histories) == 8
    for history in histories.values():
        assert history.done is not None
        assert f",{history.done.frames},{history.done.bytes},{history.done.sha256}," in table


def test_its_clips_are_whole(out: Path) -> None:
    before = tree(out)
    said = run_command("kinetics-download", "verify", out)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == "8 clips are whole, 0 must be made again\n"
    assert tree(out) == before


def test_a_finished_run_has_nothing_to_do(out: Path, tmp_path: Path) -> None:
    before = tree(out)
    empty = tmp_path / "empty"
    empty.mkdir()
    words = ("kinetics-download", out / "manifest.csv", out, "--source", f"dir:{empty}")
    said = run_command(*words, "--scaler", "bicubic")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == f"8 of 8 clips in {out}\n"
    assert tree(out) == before
    said = run_command(*words)
    assert said.returncode == 2
    assert "were made with scaler = bicubic, this run has scaler = bilinear" in said.stderr
    assert tree(out) == before


def test_a_damaged_clip_of_its_is_recorded_as_missing(out: Path, tmp_path: Path) -> None:
    clip = next(out.glob("clips/*/*/*.mp4"))
    clip.write_bytes(clip.read_bytes()[:-1] + b"?")
    assert run_command("kinetics-download", "verify", out).returncode == 4
    empty = tmp_path / "empty"
    empty.mkdir()
    words = ("kinetics-download", out / "manifest.csv", out, "--source", f"dir:{empty}")
    said = run_command(*words, "--scaler", "bicubic")
    assert said.returncode == 4
    assert said.stdout.startswith(f"7 of 8 clips in {out}\n  absent         1\n")


def test_its_origins_read(tmp_path: Path) -> None:
    path = tmp_path / "origin.json"
    assert read_origins(path) == []
    entry = {"address": "http://host/a.csv", "list": "kinetics400/val", "rows": 3, "sha256": "ab"}
    path.write_text(json.dumps([entry]))
    assert read_origins(path) == [Origin("kinetics400/val", "http://host/a.csv", "ab", 3)]
    path.write_text("[1]")
    with pytest.raises(OutError, match=r"origin\.json is not a list of origins"):
        read_origins(path)


def test_its_memory_of_the_mirrors_tars_reads(tmp_path: Path) -> None:
    address = "http://host/400/val/part_0.tar.gz"
    value = {
        "address": address,
        "size": 1000,
        "etag": "e",
        "complete": False,
        "members": ["a_000000_000010", "b_000000_000010"],
        "error": {"reason": "damaged", "detail": "no end mark", "after": 1},
    }
    path = tmp_path / f"{short_hash(address)}.json"
    path.write_text(json.dumps(value))
    read = TarIndex(tmp_path).get(address)
    assert read is not None
    assert (read.remote, read.is_complete, read.num_given) == (Remote(1000, "e"), False, 1)
    assert read.stems == ("a_000000_000010", "b_000000_000010")
    assert str(read.error) == "damaged: no end mark"
    # What is stored again has the same form; errors are of one job, so the cache has none.
    shared = tmp_path / "shared"
    error = SourceError(Reason.DAMAGED, "no end mark")
    TarIndex(tmp_path, shared).update(address, Contents(error=error, num_given=1))
    assert json.loads((shared / path.name).read_text()) == value
    assert json.loads(path.read_text()) == {k: v for k, v in value.items() if k != "error"}
