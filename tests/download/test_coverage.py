"""The report: what became of every segment, the same as a run would say; page and lists."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from kinetics_tools.core import console
from kinetics_tools.core.errors import ManifestError, OutError, Reason
from kinetics_tools.core.units import Part
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.ledger import VERIFY, Line
from kinetics_tools.dataset.manifest import Segment, read_manifest
from kinetics_tools.download.cli import report_main
from kinetics_tools.download.coverage import State, share, split_table, survey
from kinetics_tools.download.report import MAX_BINS, rebin, write_report
from outs import ask, done, failed, put, segment, tell
from support import tree

GIVEN = segment("-given-0001", "up, down")
TOPPED_UP = segment("_topped-up1", "up, down", "train")
HOSTILE = segment("hostile0001", "<script>alert(1)")
GONE = segment("gone0000001", r"=cost $x^$")
LATER = segment("later000001")
UNTRIED = segment("untried0001")
LOST = segment("lost0000001", "yoga", "train")
DAMAGED = segment("damaged0001", "yoga", "train")
WORN = segment("worn0000001", "yoga", "train")
EVERY = (GIVEN, TOPPED_UP, HOSTILE, GONE, LATER, UNTRIED, LOST, DAMAGED, WORN)


def test_a_report_is_not_written_through_a_link(tmp_path: Path) -> None:
    ask(tmp_path / "out", EVERY)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutError, match="report is a link"):
        write_report(tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """One segment in each state that there is."""
    folder = tmp_path / "out"
    ask(folder, EVERY)
    tell(
        folder,
        [
            done(folder, GIVEN, "cvdf", b"0123456789"),
            failed(TOPPED_UP, "cvdf", Reason.GONE),
            done(folder, TOPPED_UP, "youtube", b"01234", time="2026-01-03"),
            done(folder, HOSTILE, "cvdf", b"01"),
            failed(GONE, "cvdf", Reason.GONE),
            failed(GONE, "youtube", Reason.TERMINATED, "2026-02-01", "=1+1\n<img src=x>"),
            failed(LATER, "cvdf", Reason.GONE),
            done(folder, LOST, "cvdf", b"012345"),
        ],
        Part(0, 2),
    )
    tell(
        folder,
        [
            failed(LATER, "youtube", Reason.NETWORK, "2026-01-05", "first"),
            failed(LATER, "youtube", Reason.RATE_LIMITED, "2026-01-06", "then"),
            done(folder, DAMAGED, "cvdf", b"0123456"),
            failed(DAMAGED, VERIFY, Reason.DAMAGED, "2026-01-07", "has 7 bytes, not 8"),
            *[failed(WORN, "cvdf", Reason.DAMAGED)] * ledger.MAX_DAMAGED,
        ],
        Part(1, 2),
    )
    put(folder, LOST, b"shorter")
    return folder


def test_every_segment_stands_as_the_ledger_and_its_file_say(out: Path) -> None:
    found = {s.segment: s for s in survey(out).statuses}
    assert {s: (found[s].state.name, found[s].reason, found[s].source) for s in EVERY} == {
        GIVEN: ("PRESENT", "", "cvdf"),
        TOPPED_UP: ("PRESENT", "", "youtube"),
        HOSTILE: ("PRESENT", "", "cvdf"),
        GONE: ("PERMANENT", "terminated", "youtube"),
        LATER: ("RETRYABLE", "rate-limited", "youtube"),
        UNTRIED: ("NOT_TRIED", "not tried", ""),
        LOST: ("RETRYABLE", "missing", "cvdf"),
        DAMAGED: ("RETRYABLE", "damaged", "verify"),
        WORN: ("PERMANENT", "damaged", "cvdf"),
    }
    assert (found[LATER].detail, found[LATER].time[:10]) == ("then", "2026-01-06")
    assert found[LOST].detail == "its file has another size"
    assert (found[GIVEN].frames, found[GIVEN].bytes) == (50, 10)


def test_sources_and_times_are_summed(out: Path) -> None:
    coverage = survey(out)
    assert list(coverage.source_stats) == ["cvdf", "youtube"]
    assert coverage.source_stats["cvdf"].attempts == 10
    assert coverage.source_stats["youtube"].failures == Counter(
        {"terminated": 1, "network": 1, "rate-limited": 1}
    )
    assert coverage.source_stats["youtube"].seconds == 5.0
    assert coverage.given == {"cvdf": (2, 12), "youtube": (1, 5)}
    assert coverage.made == {"2026-01-02T00:00": 4, "2026-01-03T00:00": 1}
    assert coverage.blocked == {"2026-01-06T00:00": 1}
    assert coverage.until.startswith("2026-02-01")
    assert (coverage.num_files, coverage.num_bytes) == (5, 10 + 5 + 2 + 7 + 7)


def test_the_table_counts_each_segment_once(out: Path) -> None:
    rows = {row["split"]: row for row in split_table(survey(out))}
    assert rows["all"] == {
        "split": "all",
        "expected": "9",
        "clips": "3",
        "retryable gaps": "3",
        "permanent gaps": "2",
        "not tried": "1",
        "coverage %": "33.3",
    }
    assert [rows[split]["expected"] for split in ("train", "val")] == ["4", "5"]


def test_the_lists_are_what_trainers_read(out: Path) -> None:
    write_report(out)
    labels = (out / "labels.txt").read_text().splitlines()
    for split, clips in {"train": [TOPPED_UP], "val": [GIVEN, HOSTILE]}.items():
        lines = (out / "report" / f"{split}.txt").read_text().splitlines()
        assert len(lines) == len(clips)
        for line, clip in zip(lines, clips, strict=True):
            path, number = line.split(" ")
            assert (out / path).is_file()
            assert path.endswith(f"/{clip.key}.mp4")
            assert labels[int(number)] == clip.label


def test_both_tables_are_manifests_with_exact_fields(out: Path) -> None:
    write_report(out)
    clips, missing = out / "report" / "clips.csv", out / "report" / "missing.csv"
    assert set(read_manifest(clips).segments) == {GIVEN, TOPPED_UP, HOSTILE}
    assert set(read_manifest(missing).segments) == set(EVERY) - {GIVEN, TOPPED_UP, HOSTILE}
    with clips.open(newline="") as file:
        rows = {row["youtube_id"]: row for row in csv.DictReader(file)}
    row = rows[GIVEN.youtube_id]
    assert (row["path"], row["frames"], row["bytes"], row["source"]) == (
        "clips/val/up,_down/-given-0001_000003_000005.mp4",
        "50",
        "10",
        "cvdf",
    )
    with missing.open(newline="") as file:
        rows = {row["youtube_id"]: row for row in csv.DictReader(file)}
    row = rows[GONE.youtube_id]
    assert (row["label"], row["state"], row["class"]) == (GONE.label, "permanent", "permanent")
    assert (row["detail"], row["time"][:10]) == ("'=1+1 <img src=x>", "2026-02-01")
    assert missing.read_text().count("\n") == 7


def test_a_page_tells_everything_and_needs_no_other_file(out: Path) -> None:
    write_report(out)
    page = (out / "report" / "report.html").read_text()
    assert "33.3 %" in page
    assert page.count("<img ") == 6
    assert set(re.findall(r'src="([^;]*);', page)) == {"data:image/svg+xml"}
    assert all(re.findall(r'<img alt="([^"]*)"', page))
    assert "val 40.0 % of 5" in page
    assert not re.search(r'src="(?!data:)|href="(?!\./)', page)
    assert page.count("<script") == 1  # ours
    assert "&lt;script&gt;alert(1)" in page


def test_the_same_folder_gives_the_same_bytes_and_nothing_else_is_touched(out: Path) -> None:
    before = tree(out)
    write_report(out)
    first = tree(out)
    assert {name: first[name] for name in before} == before
    write_report(out)
    assert tree(out) == first


def test_many_classes_have_a_histogram(tmp_path: Path) -> None:
    segments = [segment(f"v{at:03}", f"class {at % 40:02}") for at in range(80)]
    ask(tmp_path, segments)
    tell(tmp_path, [done(tmp_path, s, "cvdf", b"x") for s in segments[:50]])
    write_report(tmp_path)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Number of classes by coverage: 30 with 50 to 55 %, 10 with 95 to 100 %" in page
    assert page.count("<tr>") > 40


def test_a_run_that_has_just_begun_and_one_that_is_writing_are_told(tmp_path: Path) -> None:
    segments: list[Segment] = [segment("a", None), segment("b", None)]
    ask(tmp_path, segments)
    coverage, _ = write_report(tmp_path)
    assert coverage.total == {State.NOT_TRIED: 2}
    assert "nothing was tried yet" in (tmp_path / "report" / "report.html").read_text()
    path = tell(tmp_path, [done(tmp_path, segments[0], "youtube", b"x")])
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    (tmp_path / "clips" / "val" / "unlabelled" / ".part-host-1-b.mp4").write_bytes(b"half")
    coverage, _ = write_report(tmp_path)
    assert coverage.total == {State.PRESENT: 1, State.NOT_TRIED: 1}
    assert coverage.num_files == 1
    # Nobody knows the label's id: none is made up.
    text = (tmp_path / "report" / "val.txt").read_text()
    assert text == "clips/val/unlabelled/a_000003_000005.mp4\n"


def test_the_command_prints_tables_and_what_it_wrote(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_main([str(out), "--absolute"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^all +9 +3 +3 +2 +1 +33.3$", shown, re.MULTILINE)
    assert re.search(r"^terminated +permanent +1 +0$", shown, re.MULTILINE)
    assert re.search(r"^youtube +4 +3 +1 +5 B +5 ", shown, re.MULTILINE)
    for line in shown.partition("written:\n")[2].splitlines():
        assert Path(line.strip()).is_file()
    paths = [line.split(" ")[0] for line in (out / "report" / "val.txt").read_text().splitlines()]
    assert paths
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in paths)


def test_what_cannot_be_reported_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds no manifest\.csv; give a folder that"):
        survey(tmp_path)
    spaced = tmp_path / "my clips"
    ask(spaced, [LATER])
    with pytest.raises(OutError, match="has a space, at which readers of such lists split"):
        write_report(spaced, absolute=True)
    write_report(spaced)
    tell(spaced, [Line(key=LATER.key, status="done", source="cvdf", time="yesterday")])
    with pytest.raises(OutError, match="line 1: not a ledger line"):
        write_report(spaced)


@pytest.mark.parametrize(
    ("last", "step_s"),
    [
        ("2026-01-01T00:30", 60),
        ("2026-01-01T03:00", 600),
        ("2026-01-04", 3600),
        ("2026-02-10T10:00", 24 * 3600),
        ("2036-01-01", 31 * 24 * 3600),
    ],
)
def test_time_is_divided_so_that_it_can_be_seen(last: str, step_s: int) -> None:
    step, (made, blocked) = rebin({"2026-01-01T00:00": 3, last: 4}, {})
    assert (step.total_seconds(), sum(made.values()), blocked) == (step_s, 7, {})
    assert (max(made) - min(made)) / step <= MAX_BINS


def test_numbers_do_not_flatter() -> None:
    assert [share(0, 0), share(1, 3), share(246_533, 246_534), share(2, 2)] == [
        "-",
        "33.3",
        "99.9",
        "100.0",
    ]
    assert [console.size_text(n) for n in (0, 999, 1500, 98_200_000_000, 2.5e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "98 GB",
        "2.5 TB",
    ]
    assert console.text_table([{"a": "long", "b": "1"}]) == "a     b\nlong  1"
