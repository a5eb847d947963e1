"""The ledger survives what kills its writer, and says of each key what happened last."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_tools import ledger
from kinetics_tools.engine import Part
from kinetics_tools.errors import RETRYABLE, OutError, Reason
from kinetics_tools.ledger import Line


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


def test_a_line_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    lines = (failed("a", Reason.GONE), done("b"))
    write(tmp_path, *lines)
    read = ledger.read(tmp_path)
    assert read["a"].failures == {"youtube": lines[0]}
    assert read["b"].done == lines[1]


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
