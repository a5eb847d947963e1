"""A dry run ends as its real run would begin: the same refusal, the same exit code, no change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import MakeVideo
from kinetics_tools.core.errors import Reason
from kinetics_tools.core.files import hold_lock
from kinetics_tools.dataset import ledger
from outs import failed, segment, tell
from support import MediaServer, run_command
from tiny import copy_of_shards, tiny_clips


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is there, locks too, with times."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def refused_alike(name: str, *words: object, home: Path) -> str:
    """The line with which both end; nothing below `home` is changed by the dry run."""
    before = everything(home)
    dry = run_command(name, *words, "--dry-run")
    assert everything(home) == before
    real = run_command(name, *words)
    assert (dry.returncode, real.returncode) == (2, 2), dry.stderr + real.stderr
    last = dry.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert last == real.stderr.splitlines()[-1]
    assert dry.stdout == ""
    return last


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# extract-flow

TINY = ("--method", "opencv-tvl1", "--short-side", "keep", "--jobs", 1)
Break = Callable[[Path], object]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def damage_records(shards: Path) -> None:
    cut_off(shards / "recipe.json")
    cut_off(shards / "dataset.json")


def lose_records(shards: Path) -> None:
    (shards / "recipe.json").unlink()
    (shards / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("breaking", "options", "words"),
    [
        (None, ("--short-side", 32), "short_side = None, in this run: short_side = 32"),
        (None, ("--bound", 5), "bound = 20.0, in this run: bound = 5.0"),
        (None, ("--samples-per-shard", 3), "samples_per_shard = 64, in this run"),
        (None, ("--seed", 1, "--force"), "seed = 0, in this run: seed = 1"),
        (lambda s: cut_off(s / "all" / "rgb-000000.json"), (), "is not JSON"),
        (lose_records, (), "recipe.json is gone"),
        (damage_records, (), "recipe.json is damaged"),
        (lambda s: edit(s / "dataset.json", schema_version=9), (), "schema version 9"),
        (lambda s: edit(s / "recipe.json", labels=["left"]), (), "another label list (1 labels)"),
    ],
)
def test_shards_that_a_run_refuses_its_dry_run_refuses(
    breaking: Break | None, options: tuple[object, ...], words: str, tmp_path: Path
) -> None:
    shards = copy_of_shards(tmp_path)
    if breaking is not None:
        breaking(shards)
    line = refused_alike("extract-flow", tiny_clips(), shards, *TINY, *options, home=tmp_path)
    assert words in line


def test_clips_that_are_named_no_more_are_refused_alike(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    clips = Path(shutil.copytree(tiny_clips(), tmp_path / "clips"))
    (clips / "left" / "ann_left.mp4").unlink()
    line = refused_alike("extract-flow", clips, shards, *TINY, home=tmp_path)
    assert "also hold 1 clips that CLIPS does not name now, such as ann_left" in line
    dry = run_command("extract-flow", clips, shards, *TINY, "--force", "--dry-run")
    assert dry.returncode == 0, dry.stderr


@pytest.mark.parametrize("part", ["0-of-1", "1-of-2"])
def test_a_folder_in_use_is_refused_alike(part: str, tmp_path: Path) -> None:
    for name in ("extract-flow", "kinetics-download"):
        out = tmp_path / name
        words: tuple[object, ...] = (tiny_clips(), out, *TINY)
        if name == "kinetics-download":
            table = tmp_path / "list.csv"
            table.write_text("label,youtube_id,time_start,time_end,split\na,abc,0,2,val\n")
            words = (table, out, "--source", f"dir:{tmp_path}")
        with hold_lock(out, part):
            line = refused_alike(name, *words, home=tmp_path)
            assert f"error: {out} is in use by " in line
            free = run_command(name, *words, "--task", "0/2", "--dry-run")
            assert free.returncode == (0 if part == "1-of-2" else 2), free.stderr
        assert run_command(name, *words, "--dry-run").returncode == 0


@pytest.mark.parametrize("out", ["file", "file/out", "x" * 300, "loop", "loop/out", "/proc/out"])
def test_a_folder_that_cannot_be_is_refused_alike(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    table = tmp_path / "list.csv"
    table.write_text("label,youtube_id,time_start,time_end,split\na,abc,0,2,val\n")
    refused_alike("extract-flow", tiny_clips(), tmp_path / out, *TINY, home=tmp_path)
    source = ("--source", f"dir:{tmp_path}")
    refused_alike("kinetics-download", table, tmp_path / out, *source, home=tmp_path)


def test_an_extraction_with_nothing_to_do_ends_alike(tmp_path: Path) -> None:
    clips = Path(shutil.copytree(tiny_clips(), tmp_path / "clips"))
    (clips / "left" / "ann_left.mp4").write_bytes(b"torn")
    words = (clips, tmp_path / "out", *TINY)
    assert run_command("extract-flow", *words, "--dry-run").returncode == 0
    assert run_command("extract-flow", *words).returncode == 3
    dry = run_command("extract-flow", *words, "--dry-run")
    assert (dry.returncode, dry.stdout.splitlines()[1]) == (
        3,
        "to do: 0, of 0 samples, about 0 pairs",
    )


# kinetics-download

Prepare = Callable[[Path], object]


@pytest.fixture
def made(media_server: MediaServer, make_video: MakeVideo, tmp_path: Path) -> tuple[object, ...]:
    """The words of a run that is finished: one clip, and one that is gone."""
    media_server.put("whole000001", make_video(seconds=4))
    table = tmp_path / "list.csv"
    rows = ("a,whole000001,0,2,val", "a,gone0000001,3,5,val")
    table.write_text("\n".join(("label,youtube_id,time_start,time_end,split", *rows, "")))
    cache = ("--cache-dir", tmp_path / "cache")
    words = (table, tmp_path / "out", "--source", media_server.template, *cache)
    done = run_command("kinetics-download", *words)
    assert done.returncode == 3, done.stderr
    return words


def damage_ledger(out: Path) -> None:
    path = out / "ledger-0-of-1.jsonl"
    path.write_text("{}\n" + path.read_text())


def edit_row(out: Path) -> None:
    path = out / "manifest.csv"
    path.write_text(path.read_text().replace("a,whole000001", "chess,whole000001"))
    (out / "labels.txt").write_text("a\nchess\n")


@pytest.mark.parametrize(
    ("prepare", "options", "words"),
    [
        (None, ("--short-side", 32), "this run has short_side = 32"),
        (lambda out: cut_off(out / "recipe.json"), (), "recipe.json is not JSON"),
        (damage_ledger, (), "not a ledger line"),
        (damage_ledger, ("--force",), "not a ledger line"),
        (lambda out: (out / "labels.txt").write_text("chess\n"), (), "are not this run's 1"),
        (edit_row, (), "has another row for whole000001_000000_000002"),
        (None, ("--source", "cvdf"), "the mirror has no path list for split 'val'"),
    ],
)
def test_an_out_that_a_download_refuses_its_dry_run_refuses(
    prepare: Prepare | None,
    options: tuple[object, ...],
    words: str,
    made: tuple[object, ...],
    tmp_path: Path,
) -> None:
    if prepare is not None:
        prepare(tmp_path / "out")
    assert words in refused_alike("kinetics-download", *made, *options, home=tmp_path)


def test_a_download_with_nothing_to_do_ends_alike(made: tuple[object, ...]) -> None:
    dry = run_command("kinetics-download", *made, "--dry-run")
    assert (dry.returncode, dry.stdout) == (3, "2 segments, 0 still to do\n")
    again = run_command("kinetics-download", *made, "--retry", "permanent", "--dry-run")
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, "2 segments, 1 still to do")


def test_a_download_that_a_site_blocks_stops_alike(
    media_server: MediaServer, tmp_path: Path
) -> None:
    table = tmp_path / "list.csv"
    rows = [f"a,status-429-{n},0,2,val" for n in range(4)]
    table.write_text("\n".join(("label,youtube_id,time_start,time_end,split", *rows, "")))
    more = ("--cache-dir", tmp_path / "cache", "--jobs", 1)
    words = (table, tmp_path / "out", "--source", media_server.template, *more)
    first = run_command("kinetics-download", *words)
    assert first.returncode == 75, first.stderr
    before = everything(tmp_path)

    dry = run_command("kinetics-download", *words, "--dry-run")

    assert everything(tmp_path) == before
    real = run_command("kinetics-download", *words)
    assert (dry.returncode, real.returncode) == (75, 75)
    assert dry.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]
    assert dry.stdout.startswith("4 segments, 4 still to do")


@pytest.mark.parametrize("closed", ["deep", "deep/abc.mp4"])
def test_what_cannot_be_read_in_a_folder_of_videos_is_refused_alike(
    tmp_path: Path, closed: str
) -> None:
    table, videos = tmp_path / "list.csv", tmp_path / "videos"
    table.write_text("label,youtube_id,time_start,time_end,split\na,abc,0,2,val\n")
    (videos / "deep").mkdir(parents=True)
    (videos / "deep" / "abc.mp4").touch()
    mode = (videos / closed).stat().st_mode
    (videos / closed).chmod(0)
    words = (table, tmp_path / "out", "--source", f"dir:{videos}")
    ends = [
        run_command("kinetics-download", *words, *more, is_root=False)
        for more in (["--dry-run"], [])
    ]
    (videos / closed).chmod(mode)
    for done in ends:
        assert done.returncode == 2, done.stderr
        assert f"{videos / closed} cannot be read" in done.stderr.splitlines()[-1]


def test_permanent_gaps_of_the_other_part_are_not_this_parts(tmp_path: Path) -> None:
    out, table = tmp_path / "out", tmp_path / "list.csv"
    rows = ("a,gone0000001,3,5,val", "a,gone0000002,3,5,val")
    table.write_text("\n".join(("label,youtube_id,time_start,time_end,split", *rows, "")))
    out.mkdir()
    source = f"dir:{tmp_path}"
    tell(out, [failed(segment("gone0000001", "a"), source, Reason.GONE)])
    assert ledger.read(out)
    codes = [
        run_command(
            *("kinetics-download", table, out, "--source", source),
            *("--task", f"{part}/2", "--dry-run"),
        ).returncode
        for part in (0, 1)
    ]
    assert codes == [3, 0]
