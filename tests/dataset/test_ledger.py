"""The ledger survives what kills its writer, and says of each key what happened last."""

import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_tools.core.errors import PERMANENT, RETRYABLE, OutError, Reason
from kinetics_tools.core.units import Part
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.ledger import VERIFY, Done, History, Line


def failed(key: str, reason: Reason, source: str = "youtube", time: str = "2026-01-01") -> Line:
    return Line(key=key, status="failed", source=source, reason=reason, detail="x\ny", time=time)


def done(key: str, source: str = "cvdf", time: str = "2026-01-01") -> Line:
    return Line(key=key, status="done", source=source, frames=250, bytes=9, time=time)


def write(out: Path, *lines: Line, part: Part = Part()) -> Path:  # noqa: B008 - a frozen value
    path = ledger.ledger_path(out, part)
    with ledger.writer(path) as record:
        for line in lines:
            record.add(line)
    return path


def write_elsewhere(out: Path, *lines: Line, part: Part) -> Path:
    """Add lines as a machine does that sees nothing of the other files: each has its own clock."""
    path = ledger.ledger_path(out, part)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(line.as_text() for line in lines)
    return path


def test_a_line_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    lines = [failed("a", Reason.GONE), done("b")]
    write(tmp_path, *lines)
    assert list(ledger.lines(tmp_path)) == lines
    read = ledger.read(tmp_path)
    assert read["a"].failed_with("youtube") is Reason.GONE
    assert read["b"].done == Done("cvdf", frames=250, bytes=9, sha256=None)


@given(st.data())
@settings(max_examples=60)
def test_a_killed_writer_costs_its_last_line_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    out = tmp_path_factory.mktemp("ledger")
    keys = [f"key{n}" for n in range(4)]
    path = write(out, *map(done, keys))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = keys[: whole[:cut].count(b"\n")]
    assert list(ledger.read(out)) == kept
    write(out, done("after"))
    assert list(ledger.read(out)) == [*kept, "after"]
    assert path.read_bytes().startswith(whole[: whole.rfind(b"\n", 0, cut) + 1])


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, done("a"))
    path.write_bytes(path.read_bytes() + b'{"key": 1\n' + path.read_bytes())
    with pytest.raises(OutError, match="line 2: not a ledger line"):
        ledger.read(tmp_path)
    path.write_text('{"key": "a", "status": "done", "source": "cvdf", "time": "noon"}\n')
    with pytest.raises(OutError, match="line 1: not a ledger line"):
        ledger.read(tmp_path)


def test_parts_merge_by_time_and_a_clock_set_back_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path, failed("a", Reason.NETWORK, time="2026-01-02"), part=Part(0, 2))
    write(tmp_path, done("a", time="2026-01-03"), part=Part(1, 2))
    write(tmp_path, failed("b", Reason.GONE, time="2026-01-09"), part=Part(0, 2))
    write(tmp_path, done("b", time="2026-01-01"), part=Part(0, 2))
    read = ledger.read(tmp_path)
    assert read["a"].done is not None
    assert read["b"].done is not None


def test_a_source_is_asked_again_for_reasons_that_may_pass(tmp_path: Path) -> None:
    write(
        tmp_path,
        failed("gone", Reason.GONE),
        failed("limited", Reason.RATE_LIMITED),
        failed("mixed", Reason.SERVER, "cvdf"),
        failed("mixed", Reason.PRIVATE, "youtube"),
        *[failed("torn", Reason.DAMAGED)] * ledger.MAX_DAMAGED,
        *[failed("worn", Reason.DAMAGED)] * (ledger.MAX_DAMAGED - 1),
    )
    read = ledger.read(tmp_path)
    retryable = {key for key, history in read.items() if history.is_retryable}
    assert retryable == {"limited", "mixed", "worn"}
    assert not read["mixed"].may_try("youtube", RETRYABLE)
    assert read["mixed"].may_try("cvdf", RETRYABLE)
    assert read["mixed"].may_try("a new source", frozenset())
    assert read["mixed"].main_reason == "server"
    assert read["gone"].may_try("youtube", frozenset({Reason.GONE}))


def test_it_is_told_which_sources_failed_since_the_clip_was_done(tmp_path: Path) -> None:
    write(tmp_path, failed("a", Reason.GONE, "cvdf"), done("a"), failed("a", Reason.PRIVATE))
    history = ledger.read(tmp_path)["a"]
    assert history.done is not None
    assert not history.has_failed("cvdf")
    assert history.failed_with("cvdf") is None
    assert history.has_failed("youtube")
    assert history.failed_with("youtube") is Reason.PRIVATE


def test_a_clip_found_damaged_on_disk_is_to_be_made_again(tmp_path: Path) -> None:
    def broken(time: str) -> Line:
        return failed("a", Reason.DAMAGED, VERIFY, time)

    write(tmp_path, failed("a", Reason.GONE, "cvdf", "2026-01-01"), done("a", time="2026-01-02"))
    (tmp_path / "ledger-verify.jsonl").write_text(broken("2026-01-03").as_text())
    history = ledger.read(tmp_path)["a"]
    assert history.done is None
    assert history.failures == ()
    assert (history.main_reason, history.is_retryable) == ("damaged", True)
    assert history.may_try("cvdf", frozenset())
    write(tmp_path, done("a", time="2026-01-04"))
    assert ledger.read(tmp_path)["a"].done is not None
    again = [broken(f"2026-02-{day:02}") for day in range(1, ledger.MAX_DAMAGED + 2)]
    write(tmp_path, *again, failed("a", Reason.DAMAGED, "cvdf", "2026-03-01"))
    history = ledger.read(tmp_path)["a"]
    assert history.done is None
    assert history.may_try("cvdf", RETRYABLE), "what we broke counts against no source"


def test_a_run_adds_its_own_lines_whatever_the_clock_says(tmp_path: Path) -> None:
    write(tmp_path, failed("a", Reason.GONE, "cvdf", "2027-01-01"))
    history = ledger.read(tmp_path)["a"]
    history.add(done("a", time="2026-01-01"))
    assert history.done is not None
    assert not history.has_failed("cvdf")
    history.add(failed("a", Reason.DAMAGED, VERIFY, "2025-01-01"))
    assert history.done is None


LINES = st.lists(
    st.tuples(
        st.sampled_from(["done", "failed"]),
        st.sampled_from(["cvdf", "youtube", VERIFY]),
        st.sampled_from([Reason.GONE, Reason.SERVER, Reason.DAMAGED]),
    ),
    max_size=9,
)


@given(LINES, st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_lines_say_the_same_in_whatever_order_they_are_read(
    attempts: list[tuple[Literal["done", "failed"], str, Reason]], chance: random.Random
) -> None:
    in_order = [
        Line(
            key="a",
            status=status,
            source=source,
            reason=None if status == "done" else reason,
            time=f"2026-01-01T00:00:{number:02}+00:00",
        )
        for number, (status, source, reason) in enumerate(attempts)
        if (status, source) != ("done", VERIFY)
    ]
    expected = History()
    for line in in_order:
        expected.add(line)
    shuffled = list(enumerate(in_order))
    chance.shuffle(shuffled)
    history = History()
    for number, line in shuffled:
        history.add(line, at_s=float(number))
    assert (history.done, history.main_reason) == (expected.done, expected.main_reason)
    for source in ("cvdf", "youtube"):
        assert history.failed_with(source) == expected.failed_with(source)
        assert history.may_try(source, RETRYABLE) == expected.may_try(source, RETRYABLE)


@contextmanager
def open_files_at_most(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_parts_than_files_may_be_open(tmp_path: Path) -> None:
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    count = highest + 100
    for index in range(count):
        write(tmp_path, done(f"key{index}"), part=Part(index, count))
    with open_files_at_most(highest + 20):
        assert len(ledger.read(tmp_path)) == count
        assert sum(1 for _ in ledger.lines(tmp_path)) == count


def test_what_failed_before_the_damage_was_found_is_asked_again(tmp_path: Path) -> None:
    """A clip that was there while a forced run failed: both are past."""
    found = failed("a", Reason.DAMAGED, VERIFY, time="2026-01-03")
    write(tmp_path, done("a"), failed("a", Reason.GONE, time="2026-01-02"), found)
    history = ledger.read(tmp_path)["a"]
    assert history.is_broken
    assert history.may_try("youtube", frozenset())


def test_the_file_of_the_last_done_line_is_known(tmp_path: Path) -> None:
    first = write_elsewhere(tmp_path, done("b"), done("a", time="2026-01-03"), part=Part(0, 2))
    second = write_elsewhere(
        tmp_path, done("a", time="2026-01-02"), failed("c", Reason.GONE), part=Part(1, 2)
    )
    assert ledger.done_in(tmp_path) == {"a": first, "b": first}
    write_elsewhere(tmp_path, done("b", time="2026-01-02"), part=Part(1, 2))
    assert ledger.done_in(tmp_path) == {"a": first, "b": second}


def test_a_clip_is_done_also_after_a_machine_whose_clock_ran_ahead(tmp_path: Path) -> None:
    ahead = write(tmp_path, done("a", time="2035-01-01T00:00:00.000+00:00"), part=Part(0, 2))
    assert ledger.done_in(tmp_path) == {"a": ahead}
    with ledger.writer(ahead) as record:
        record.add(failed("a", Reason.DAMAGED, VERIFY))
    assert ledger.read(tmp_path)["a"].is_broken
    write(tmp_path, done("a"), failed("b", Reason.GONE))
    read = ledger.read(tmp_path)
    assert read["a"].done is not None
    assert read["b"].failed_with("youtube") is Reason.GONE
    assert [line.time[:23] for line in ledger.lines(tmp_path)] == [
        "2035-01-01T00:00:00.002",
        "2035-01-01T00:00:00.002",
        "2035-01-01T00:00:00.000",
        "2035-01-01T00:00:00.001",
    ]


def test_a_line_keeps_its_time_where_the_clocks_agree(tmp_path: Path) -> None:
    write(tmp_path, done("a", time="2026-01-02"), part=Part(1, 2))
    write(tmp_path, done("b", time="2026-01-03"), done("c", time="2026-01-04"), part=Part(0, 2))
    times = {line.key: line.time for line in ledger.lines(tmp_path)}
    assert times == {"a": "2026-01-02", "b": "2026-01-03", "c": "2026-01-04"}


@given(st.lists(st.integers(1, 20_000), max_size=4), st.integers(0, 20_000))
@settings(max_examples=30)
def test_the_last_line_is_found_however_long_lines_are(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], torn: int
) -> None:
    out = tmp_path_factory.mktemp("ledger")
    path = ledger.ledger_path(out, Part(1, 2))
    before = [
        Line(key="a", status="done", source="c", detail="a" * length, time=f"2035-01-0{day}")
        for day, length in enumerate([1, *lengths], start=1)
    ]
    path.write_text("".join(line.as_text() for line in before) + "x" * torn)
    write(out, done("b"))
    after = next(ledger.lines(out))
    assert after.key == "b"
    waited = (
        datetime.fromisoformat(after.time) - datetime.fromisoformat(before[-1].time).astimezone()
    )
    assert waited == timedelta(milliseconds=1)


def test_a_damaged_last_line_of_any_part_is_an_error_that_says_where(tmp_path: Path) -> None:
    (tmp_path / "ledger-1-of-2.jsonl").write_text("{}\n")
    with pytest.raises(OutError, match=r"ledger-1-of-2.jsonl, last line: not a ledger line"):
        write(tmp_path, done("a"))


def test_words_that_are_no_text_are_recorded(tmp_path: Path) -> None:
    words = "half a \ud83d, and all of \U0001f600"
    line = Line(key="a", status="failed", source="dir:/\udcff", reason=Reason.ABSENT, detail=words)
    path = write(tmp_path, line)
    assert list(ledger.lines(tmp_path)) == [line]
    assert "\\ud83d, and all of \U0001f600" in path.read_text(encoding="utf-8")


def test_a_clip_that_came_damaged_for_good_is_asked_for_when_all_is_to_be_asked_again() -> None:
    history = History()
    for _ in range(ledger.MAX_DAMAGED):
        history.add(failed("a", Reason.DAMAGED))
    assert not history.is_retryable
    assert not history.may_try("youtube", frozenset({Reason.DAMAGED, Reason.GONE}))
    assert history.may_try("youtube", PERMANENT)
    assert history.may_try("youtube", frozenset(Reason))


@pytest.mark.parametrize(
    "time",
    [
        "9999-12-31T23:59:59.999+00:00",
        "0001-01-01T00:00:00+14:00",
        "0001-01-02T00:00:00",
        pytest.param("x" * 10**5, id="long"),
    ],
)
def test_a_time_that_no_run_has_is_one_line(time: str, tmp_path: Path) -> None:
    line = replace(done("a"), time=time).as_text()
    (tmp_path / "ledger-0-of-1.jsonl").write_text(line)
    with pytest.raises(OutError, match="line 1: not a ledger line") as caught:
        ledger.read(tmp_path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_ledger_that_is_one_long_line_is_not_read_whole(end: bytes, tmp_path: Path) -> None:
    write(tmp_path, done("a"))
    path = tmp_path / "ledger-9-of-10.jsonl"
    with path.open("wb") as file:
        file.truncate(2**33)  # takes no room
        file.seek(0, os.SEEK_END)
        file.write(end)
    with pytest.raises(OutError, match="longer than a ledger line"):
        ledger.read(tmp_path)


def test_a_ledger_that_is_a_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious, and no line feed")
    path = tmp_path / "out" / "ledger-0-of-1.jsonl"
    path.parent.mkdir()
    path.symlink_to(victim)
    with pytest.raises(OutError, match="is a link"), ledger.writer(path):
        pass
    assert victim.read_text() == "precious, and no line feed"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutError, match="is not a file"):
        list(ledger.lines(path.parent))
