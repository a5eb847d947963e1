"""The mirror, on loopback: every clip once, nothing read for nothing, each failure with its reason.

Clips here are bytes; whether they can be decoded is asked at the door, by who takes them.
"""

import csv
import hashlib
import json
import logging
import pickle
import random
import re
import resource
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MakeVideo
from kinetics_tools.core.errors import KineticsError, MediaError, Reason, SourceError
from kinetics_tools.core.units import WHOLE, Part
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.labels import known_labels
from kinetics_tools.dataset.ledger import FAILED, History, Line
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import Source, SourceUnit
from kinetics_tools.download.sources.mirror import (
    MAX_WAITING_CLIPS,
    OFFICIAL,
    Mirror,
    Replacement,
    make,
    parse_list,
)
from kinetics_tools.media import decode
from mirror import Content, Member, MirrorServer, Served, link, serve, tarball
from support import run_command, tree

FILLER: Member = ("filler.bin", random.Random(0).randbytes(40_000_000))


def segment(number: int, split: str = "val", start: int = 0) -> Segment:
    return Segment(
        youtube_id=f"video-{number:05d}",
        start_s=Fraction(start),
        end_s=Fraction(start + 10),
        label="a",
        split=split,
    )


def content(number: int) -> bytes:
    return random.Random(number).randbytes(20_000 + number)


def clips(numbers: Iterable[int], folder: str = "val/") -> list[Member]:
    return [(f"{folder}{segment(n).key}.mp4", content(n)) for n in numbers]


@dataclass
class Outcome:
    """What a source gave.

    Attributes:
        clips: their bytes, by key.
        errors: reason and detail, by key.
        order: the keys, as they came.
    """

    clips: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, Reason]:
        return {key: reason for key, (reason, _) in self.errors.items()}


def collect(units: Iterable[SourceUnit]) -> Outcome:
    """Take units as the caller does: a clip is used and removed before the next is asked for."""
    outcome = Outcome()
    for unit in units:
        for one in unit.segments:
            assert one.key not in outcome.order
            outcome.order.append(one.key)
            if unit.error is not None:
                outcome.errors[one.key] = (unit.error.reason, unit.error.detail)
        for key, (file,) in unit.files.items():
            outcome.clips[key] = file.path.read_bytes()
            file.path.unlink()
    return outcome


@dataclass
class Lab:
    """A mirror, its server, and the folders of a run that uses it."""

    server: MirrorServer
    folder: Path
    timeout_s: float = 10
    cache: Path | None = None

    @property
    def scratch(self) -> Path:
        path = self.folder / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def put_list(self, names: Iterable[str], split: str = "val") -> None:
        """A path list as CVDF has it: official addresses."""
        lines = [f"{OFFICIAL}/400/{split}/{name}\n" for name in names]
        self.server.put(f"/400/{split}/k400_{split}_path.txt", "".join(lines).encode())

    def put_tars(self, tars: Mapping[str, bytes], split: str = "val") -> dict[str, Served]:
        self.put_list(tars, split)
        return {name: self.server.put(f"/400/{split}/{name}", data) for name, data in tars.items()}

    @property
    def sources(self) -> tuple[Source, ...]:
        return make(self.folder / "cache", self.folder / "out", base=self.server.address)

    @property
    def mirror(self) -> Mirror:
        base = self.server.address
        lists = {s: f"{base}/400/{s}/k400_{s}_path.txt" for s in ("train", "val")}
        return Mirror(
            cache=self.cache or self.folder / "cache",
            out=self.folder / "out",
            lists=lists,
            base=base,
            timeout_s=self.timeout_s,
            pauses_s=(0, 0),
        )

    @property
    def replacement(self) -> Replacement:
        return Replacement(
            address=f"{self.server.address}/400/replacement_for_corrupted_k400.tgz",
            timeout_s=self.timeout_s,
            pauses_s=(0, 0),
        )

    def run(self, segments: Iterable[Segment], part: Part = WHOLE) -> Outcome:
        self.server.requests.clear()
        self.server.bytes_sent.clear()
        outcome = collect(self.mirror.units(list(segments), part, self.scratch))
        assert tree(self.scratch) == {}
        return outcome

    @property
    def read(self) -> list[str]:
        """The tars that the last run read, in order."""
        return [path.rpartition("/")[2] for path in self.server.gets() if ".tar" in path]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with serve() as server:
        yield Lab(server, tmp_path)


def test_each_clip_comes_once_and_the_rest_is_gone(lab: Lab) -> None:
    lab.put_tars(
        {
            "part_0.tar.gz": tarball(clips([0, 1, 2])),
            "part_1.tar.gz": tarball(clips([3, 4]), compressed=False),  # as part_120 once was
            "part_2.tar.gz": tarball(clips([2, 5])),  # 2 again
        }
    )
    outcome = lab.run(map(segment, [5, 4, 2, 0, 9, 8]))
    assert outcome.clips == {segment(n).key: content(n) for n in (0, 2, 4, 5)}
    gone = (Reason.GONE, "in none of the 3 tars of the mirror")
    assert outcome.errors == {segment(n).key: gone for n in (9, 8)}
    assert lab.read == ["part_0.tar.gz", "part_1.tar.gz", "part_2.tar.gz"]


def test_splits_are_apart(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0, 1]))}, "val")
    lab.put_tars({"part_0.tar.gz": tarball(clips([1, 2]))}, "train")
    outcome = lab.run([segment(0, "val"), segment(1, "train"), segment(2, "val")])
    assert set(outcome.clips) == {segment(0).key, segment(1).key}
    assert outcome.reasons == {segment(2).key: Reason.GONE}


def test_nothing_is_read_that_cannot_help(lab: Lab) -> None:
    lab.put_tars({f"part_{p}.tar.gz": tarball(clips(range(10 * p, 10 * p + 10))) for p in range(4)})
    assert len(lab.run(map(segment, range(40))).clips) == 40
    assert len(lab.read) == 4

    assert lab.run(map(segment, [21, 22])).order == [segment(21).key, segment(22).key]
    assert lab.read == ["part_2.tar.gz"]

    assert lab.run([segment(77)]).reasons == {segment(77).key: Reason.GONE}
    assert lab.read == []


def test_a_tar_that_is_known_in_part_is_read_before_unknown_ones(lab: Lab) -> None:
    members = [*clips(range(10, 16)), FILLER, *clips(range(16, 20))]
    lab.put_tars(
        {
            "part_0.tar.gz": tarball(clips(range(10))),
            "part_1.tar.gz": tarball(members, compressed=False),
            "part_2.tar.gz": tarball(clips(range(20, 30))),
        }
    )
    lab.run([segment(0), segment(15)])  # reads tar 0 to its end, tar 1 to 15
    assert lab.read == ["part_0.tar.gz", "part_1.tar.gz"]
    lab.run([segment(12)])
    assert lab.read == ["part_1.tar.gz"]
    # 18 lies behind what is known of tar 1, which goes on being read before tar 2 is.
    lab.run([segment(12), segment(18)])
    assert lab.read == ["part_1.tar.gz"]


def test_reading_stops_when_all_wanted_clips_are_found(lab: Lab) -> None:
    data = tarball([*clips([0, 1]), FILLER], compressed=False)
    lab.put_tars({"part_0.tar.gz": data, "part_1.tar.gz": tarball(clips([2]))})
    assert len(lab.run([segment(1)]).clips) == 1
    assert lab.read == ["part_0.tar.gz"]
    assert lab.server.bytes_sent["/400/val/part_0.tar.gz"] < len(data) / 2


def test_a_tar_that_changed_is_read_again(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    assert lab.run([segment(1)]).reasons == {segment(1).key: Reason.GONE}
    lab.put_tars({"part_0.tar.gz": tarball(clips([0, 1]))})
    assert set(lab.run([segment(1)]).clips) == {segment(1).key}


def test_without_head_a_tar_is_read_rather_than_believed(lab: Lab) -> None:
    served = lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    served["part_0.tar.gz"].head = False
    for _ in range(2):
        assert lab.run([segment(1)]).reasons == {segment(1).key: Reason.GONE}
        assert lab.read == ["part_0.tar.gz"]


def test_a_cache_that_is_not_ours_is_written_again(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    lab.run([segment(0), segment(1)])
    (known,) = (lab.folder / "cache" / "cvdf").glob("*.json")
    whole = known.read_text()
    for garbage in (
        "",
        "[]",
        "{}",
        '{"size": 1, "etag": "", "complete": true, "members": 3}',
        "\0",
    ):
        known.write_text(garbage)
        assert lab.run([segment(1)]).reasons == {segment(1).key: Reason.GONE}
        assert known.read_text() == whole
    assert json.loads(whole)["members"] == [segment(0).key]


def test_what_a_broken_read_saw_is_remembered_and_no_better_knowledge_is_lost(lab: Lab) -> None:
    data = tarball(clips(range(10)), compressed=False)
    served = lab.put_tars({"part_0.tar.gz": data})["part_0.tar.gz"]
    served.always_breaks = len(data) // 2
    lab.run(map(segment, range(10)))
    (known,) = (lab.folder / "cache" / "cvdf").glob("*.json")
    assert json.loads(known.read_text())["complete"] is False
    seen = json.loads(known.read_text())["members"]
    assert seen == [segment(n).key for n in range(len(seen))]
    assert 4 <= len(seen) <= 6
    served.always_breaks = None
    lab.run([segment(11)])
    assert json.loads(known.read_text())["complete"] is True
    lab.run([segment(0)])
    assert len(json.loads(known.read_text())["members"]) == 10


def test_a_break_in_the_middle_is_mended(lab: Lab) -> None:
    data = tarball(clips(range(10)))
    served = lab.put_tars({"part_0.tar.gz": data})["part_0.tar.gz"]
    served.breaks += [50_000, 50_001, 120_000]
    assert len(lab.run(map(segment, range(10))).clips) == 10
    assert lab.server.bytes_sent["/400/val/part_0.tar.gz"] == len(data)


def with_hurt_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


# Ways of tar 1, and the reason and words for what may have been in it.
BROKEN: dict[str, tuple[bytes, dict[str, Any], Reason, str]] = {
    "cut gzip": (tarball(clips([2, 3]))[:-3000], {}, Reason.DAMAGED, "damaged archive"),
    "hurt gzip": (with_hurt_byte(tarball(clips([2, 3]))), {}, Reason.DAMAGED, "damaged archive"),
    "no archive": (b"\0\1" * 9999, {}, Reason.DAMAGED, "damaged archive"),
    "empty": (b"", {}, Reason.DAMAGED, "damaged archive"),
    "page": (b"<html>", {"kind": "text/html"}, Reason.SERVER, "is an HTML page"),
    "forbidden": (b"", {"statuses": [403] * 9}, Reason.SERVER, "HTTP 403"),
    "busy": (b"", {"statuses": [429] * 9}, Reason.SERVER, "HTTP 429"),
    "server": (b"", {"statuses": [500] * 9}, Reason.SERVER, "HTTP 500"),
    "breaks": (tarball(clips([2])), {"always_breaks": 9000}, Reason.NETWORK, "part_1.tar.gz: "),
    "hangs": (b"", {"hangs": True}, Reason.NETWORK, "timed out"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_broken_tar_may_have_held_may_be_asked_again(lab: Lab, case: str) -> None:
    data, manner, reason, words = BROKEN[case]
    lab.timeout_s = 1 if case == "hangs" else 10
    lab.put_tars(
        {f"part_{p}.tar.gz": tarball(clips([2 * p, 2 * p + 1])) for p in (0, 2)}
        | {"part_1.tar.gz": b""}
    )
    lab.server.put("/400/val/part_1.tar.gz", data, **manner)
    outcome = lab.run(map(segment, [0, 3, 5, 7]))
    assert set(outcome.clips) >= {segment(0).key, segment(5).key}
    assert set(outcome.reasons.values()) == {reason}
    assert segment(7).key in outcome.errors
    detail = outcome.errors[segment(7).key][1]
    assert "part_1.tar.gz" in detail
    assert words in detail


def test_a_tar_that_is_listed_but_absent_is_the_servers_matter(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    lab.put_list(["part_0.tar.gz", "part_1.tar.gz"])
    outcome = lab.run([segment(0), segment(1)])
    ((reason, detail),) = outcome.errors.values()
    assert reason is Reason.SERVER
    assert detail.endswith("part_1.tar.gz: HTTP 404 Not Found")
    assert lab.read == ["part_0.tar.gz"]


def test_a_mirror_that_is_down_is_not_asked_for_every_tar(lab: Lab) -> None:
    tars = lab.put_tars({f"part_{p}.tar.gz": b"" for p in range(30)})
    for served in tars.values():
        served.statuses += [503] * 9
    outcome = lab.run([segment(0)])
    ((reason, detail),) = outcome.errors.values()
    assert reason is Reason.SERVER
    assert "HTTP 503" in detail
    assert len(set(lab.read)) == 3


def test_odd_members_are_passed_over_and_zero_bytes_are_left_to_the_door(lab: Lab) -> None:
    key = [segment(n).key for n in range(9)]
    outside = lab.folder / "outside.mp4"
    data = tarball(
        [
            (f"._{key[0]}.mp4", b"apple double"),
            (f"val/._{key[1]}.mp4", b"apple double"),
            (f"../../{key[2]}.mp4", b"up"),
            (f"/tmp/{key[3]}.mp4", b"absolute"),
            link(f"{key[4]}.mp4", str(outside)),
            link(f"{key[5]}.mp4", str(outside), b"1"),
            (f"{key[6]}.mp4", b""),
            (f"{key[7]}.mp4.exe", b"no video"),
            (f"../{key[8]}/../x.mp4", b"hostile"),
        ]
    )
    lab.put_tars({"part_0.tar.gz": data})
    outcome = lab.run(map(segment, range(9)))
    assert outcome.clips == {key[2]: b"up", key[3]: b"absolute", key[6]: b""}
    assert set(outcome.errors) == {key[n] for n in (0, 1, 4, 5, 7, 8)}
    assert not outside.exists()


hostile = st.one_of(
    st.text(st.sampled_from("./\\-_%x\n "), max_size=12),
    st.sampled_from(["../" * 9 + "etc/passwd", "/etc/passwd", "~", "C:\\x", "." * 300]),
)


@settings(max_examples=30)
@given(st.lists(st.tuples(hostile, st.integers(0, 2), hostile), max_size=5))
def test_no_name_of_a_member_is_used_on_disk(
    tmp_path_factory: pytest.TempPathFactory, names: list[tuple[str, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("lab")
    members: list[Content] = [
        (f"{before}{segment(n).key}{behind}.mp4", content(n)) for before, n, behind in names
    ]
    with serve() as server:
        lab = Lab(server, folder)
        lab.put_tars({"part_0.tar.gz": tarball(members)})
        units = list(lab.mirror.units([segment(n) for n in range(3)], WHOLE, lab.scratch))
        ready = [file.path for unit in units for (file,) in unit.files.values()]
        assert set(ready) <= {lab.scratch / f"{segment(n).key}.mp4" for n in range(3)}
        assert {folder / name for name in tree(folder) if not name.startswith("cache/")} == set(
            ready
        )


def test_two_tasks_of_a_job_share_the_tars(lab: Lab) -> None:
    lab.put_tars({f"part_{p}.tar.gz": tarball(clips([2 * p, 2 * p + 1])) for p in range(5)})
    wanted = [segment(n) for n in (*range(10), 77)]
    first = lab.run(wanted, Part(0, 2))
    assert lab.read == [f"part_{p}.tar.gz" for p in (0, 2, 4)]
    assert (len(first.clips), first.errors) == (6, {})  # the rest waits for the other task

    second = lab.run(wanted, Part(1, 2))
    assert lab.read == ["part_1.tar.gz", "part_3.tar.gz"]
    assert len(second.clips) == 4
    # Whatever is in neither is known once both were read; what the other one has is not gone.
    assert second.reasons == {segment(77).key: Reason.GONE}
    assert first.clips.keys() | second.clips.keys() == {segment(n).key for n in range(10)}


def test_a_task_leaves_alone_what_another_ones_tar_holds(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0])), "part_1.tar.gz": tarball(clips([1]))})
    lab.run([segment(0), segment(1), segment(2)])
    outcome = lab.run([segment(1), segment(2)], Part(0, 2))
    assert (outcome.clips, outcome.reasons) == ({}, {segment(2).key: Reason.GONE})
    assert lab.read == []


def test_tasks_with_a_cache_each_learn_from_each_other_what_cannot_be_had(lab: Lab) -> None:
    """What is in no tar, and what may be in one that breaks, does not wait without end."""
    tars = {f"part_{p}.tar.gz": tarball(clips([3 * p, 3 * p + 1, 3 * p + 2])) for p in range(4)}
    for name in ("part_0.tar.gz", "part_1.tar.gz"):  # one of each task
        tars[name] = tars[name][:-5000]
    lab.put_tars(tars)
    wanted = [segment(n) for n in (*range(12), 77)]

    def run(task: int) -> Outcome:
        lab.cache = lab.folder / f"cache-{task}"
        return lab.run(wanted, Part(task, 2))

    first, second = run(0), run(1)
    assert not first.errors  # task 1 has not read anything yet
    assert {segment(n).key for n in range(6, 9)} <= first.clips.keys()
    assert {segment(n).key for n in range(9, 12)} <= second.clips.keys()
    lost = {segment(n).key for n in (2, 5, 77)}
    assert set(second.reasons) == lost
    third = run(0)
    assert {key: third.reasons.get(key) for key in lost} == dict.fromkeys(lost, Reason.DAMAGED)


def test_a_tar_that_another_task_could_read_at_last_holds_nothing_back(lab: Lab) -> None:
    served = lab.put_tars({f"part_{p}.tar.gz": tarball(clips([p])) for p in range(2)})
    served["part_1.tar.gz"].statuses += [500] * 3
    wanted = [segment(n) for n in (0, 1, 77)]
    assert set(lab.run(wanted, Part(1, 2)).errors) == set()  # tar 0 is unread
    first = lab.run(wanted, Part(0, 2))
    assert first.reasons == {segment(n).key: Reason.SERVER for n in (1, 77)}
    assert "part_1.tar.gz: HTTP 500" in first.errors[segment(77).key][1]
    assert set(lab.run(wanted, Part(1, 2)).clips) == {segment(1).key}
    assert lab.run([wanted[2]], Part(0, 2)).reasons == {segment(77).key: Reason.GONE}


def test_a_job_of_one_part_tells_nobody(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    lab.run([segment(0)])
    assert not (lab.folder / "out").exists()


def test_what_is_to_come_is_said_before_it_comes(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    tars = {f"part_{p}.tar.gz": tarball(clips([p])) for p in range(4)}
    lab.put_tars(tars)
    lab.run([segment(9)])
    with caplog.at_level(logging.INFO):
        units = lab.mirror.units([segment(0), segment(3)], WHOLE, lab.scratch)
        with closing(units):
            next(units)
    (said,) = caplog.messages
    assert re.fullmatch(r"cvdf: 2 clips wanted; 2 of 4 tars to read, at most [\d.]+ k?B", said)


def test_few_clips_lie_waiting_for_a_slow_taker(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips(range(200)))})
    most = 0
    for unit in lab.mirror.units(list(map(segment, range(200))), WHOLE, lab.scratch):
        most = max(most, len(list(lab.scratch.iterdir())))
        for (file,) in unit.files.values():
            file.path.unlink()
    assert 1 <= most <= MAX_WAITING_CLIPS + 3  # waiting, being written (two names), in our hands


def test_who_stops_taking_leaves_no_reader_behind(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips(range(200)))})
    units = lab.mirror.units(list(map(segment, range(200))), WHOLE, lab.scratch)
    next(units)
    units.close()
    assert "read-ahead" not in {thread.name for thread in threading.enumerate()}
    assert len(tree(lab.scratch)) <= MAX_WAITING_CLIPS + 2
    (known,) = (lab.folder / "cache" / "cvdf").glob("*.json")
    assert json.loads(known.read_text())["complete"] is False


def test_a_full_disk_stops_the_run(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    units = lab.mirror.units([segment(0)], WHOLE, lab.scratch)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            list(units)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# path lists


def test_lines_of_a_list_are_addresses_of_all_kinds() -> None:
    text = (
        "\ufeff# tars\r\n"
        "https://s3.amazonaws.com/kinetics/400/val/part_0.tar.gz\r\n"
        "http://s3.amazonaws.com/kinetics/400/val/part_1.tar.gz\n\n"
        "part_2.tar.gz\n"
        "  ../train/part_3.tar.gz \n"
        "https://else.where/part_4.tar.gz\n"
        "part_2.tar.gz"
    )
    near = "http://near/k"
    assert parse_list(text.encode(), f"{near}/400/val/list.txt", f"{near}/") == [
        f"{near}/400/val/part_0.tar.gz",
        f"{near}/400/val/part_1.tar.gz",
        f"{near}/400/val/part_2.tar.gz",
        f"{near}/400/train/part_3.tar.gz",
        "https://else.where/part_4.tar.gz",
    ]


NAMED = {  # as a list has it, and as it is asked for
    "pull ups.tar.gz": "pull%20ups.tar.gz",
    "pull%20ups.tar.gz": "pull%20ups.tar.gz",
    "pull ups.tar.gz \t": "pull%20ups.tar.gz",
    "two  spaces.tar.gz": "two%20%20spaces.tar.gz",
    "clip #1 (a?b).tar.gz": "clip%20%231%20(a%3Fb).tar.gz",
    "100 % off, 50%.tar.gz": "100%20%25%20off,%2050%25.tar.gz",
    "a%2.tar.gz": "a%252.tar.gz",
    "a%2Fb%c3%b6.tar.gz": "a%2Fb%c3%b6.tar.gz",
    "jumping höher.tar.gz": "jumping%20h%C3%B6her.tar.gz",
    "no\u00a0break.tar.gz": "no%C2%A0break.tar.gz",
    "massaging person's head.tgz": "massaging%20person's%20head.tgz",
    "rock & roll + a=b, c;d~e.tar": "rock%20&%20roll%20+%20a=b,%20c;d~e.tar",
    "a\\b[c]{d}|e^.tar.gz": "a%5Cb%5Bc%5D%7Bd%7D%7Ce%5E.tar.gz",
    "part 0.tar.gz?sign=a/b c&x=?": "part%200.tar.gz?sign=a/b%20c&x=?",
    "get?file=part_0.tar.gz": "get?file=part_0.tar.gz",
}


@pytest.mark.parametrize("line", NAMED)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("folder", ["", f"{OFFICIAL}/600/train/", "HTTP://else.where:8080/a b/"])
def test_a_tar_may_be_listed_as_it_is_named(line: str, end: str, folder: str) -> None:
    asked = NAMED[line]
    where = {"": "http://near/600/train/", f"{OFFICIAL}/600/train/": "http://near/600/train/"}
    host = where.get(folder, "http://else.where:8080/a%20b/")
    text = f"{folder}{line}{end}"
    (found,) = parse_list(text.encode(), "http://near/600/train/list.txt", "http://near")
    assert found.replace("HTTP:", "http:") == f"{host}{asked}"


def test_both_forms_of_a_name_are_one_tar_and_its_bytes_are_kept() -> None:
    lines = b"pull ups.tar.gz\npull%20ups.tar.gz\nh\xf6her.tar.gz\n"
    assert parse_list(lines, "http://near/list.txt") == [
        "http://near/pull%20ups.tar.gz",
        "http://near/h%F6her.tar.gz",
    ]


@given(st.one_of(st.binary(), st.text(st.sampled_from("http:/.[]@\n #?x"), max_size=30)))
def test_any_list_is_addresses_or_one_line(content: bytes | str) -> None:
    data = content.encode() if isinstance(content, str) else content
    try:
        found = parse_list(data, "http://host/list.txt")
    except KineticsError as error:
        assert "\n" not in str(error)
        return
    assert found
    assert all(address.startswith(("http://", "https://")) for address in found)
    assert not any(re.search(r"[\s#]", address) for address in found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<?xml version='1.0'?><Error/>", "line 1: .* is not an address"),
        (b"\n# nothing yet\n", "names no tar"),
        (b"file:///etc/passwd\n", "line 1: .* is not an address"),
        (b"\nNo such list here.\n", "line 2: 'No such list here.' is not an address"),
        (b"http://no host/part 0.tar.gz\n", "line 1: .* is not an address"),
    ],
)
def test_a_list_that_is_none_is_one_line(lab: Lab, data: bytes, words: str) -> None:
    lab.server.put("/400/val/k400_val_path.txt", data)
    with pytest.raises(KineticsError, match=words) as caught:
        lab.run([segment(0)])
    assert not isinstance(caught.value, SourceError)
    assert "\n" not in str(caught.value)


def test_a_split_without_a_list_is_one_line_that_names_the_option(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    lab.mirror.check([segment(0), segment(1, "train")])
    wanted = [segment(0), segment(1, "all")]
    for ask in (lab.mirror.check, lab.run):
        with pytest.raises(KineticsError, match="give one with --cvdf-list all=ADDRESS"):
            ask(wanted)
    assert not lab.server.requests


@pytest.mark.parametrize(
    ("manner", "reason", "words"),
    [
        ({"statuses": [403] * 9}, Reason.SERVER, "HTTP 403"),
        ({"statuses": [429] * 9}, Reason.SERVER, "HTTP 429"),
        ({"always_breaks": 5}, Reason.NETWORK, "k400_train_path.txt: "),
        ({"kind": "text/html"}, Reason.SERVER, "is an HTML page"),
    ],
)
def test_a_list_that_cannot_be_had_is_recorded_for_its_split(
    lab: Lab, manner: dict[str, Any], reason: Reason, words: str
) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    lab.server.put("/400/train/k400_train_path.txt", b"part_0.tar.gz", **manner)
    outcome = lab.run([segment(1, "train"), segment(0), segment(2, "train")])
    assert set(outcome.clips) == {segment(0).key}
    assert outcome.reasons == {segment(n).key: reason for n in (1, 2)}
    detail = outcome.errors[segment(1).key][1]
    assert detail.startswith("no path list: ")
    assert words in detail


def test_without_an_answer_the_list_of_an_earlier_run_does(lab: Lab) -> None:
    lab.put_tars({"part_0.tar.gz": tarball(clips([0]))})
    lab.run([segment(0)])
    lab.server.files["/400/val/k400_val_path.txt"].statuses += [500] * 9
    assert set(lab.run([segment(0)]).clips) == {segment(0).key}


# what the command line names


def test_the_mirror_of_another_set_needs_its_lists(tmp_path: Path) -> None:
    mirror, replacement = make(tmp_path, tmp_path, base="http://near/k/")
    assert isinstance(mirror, Mirror)
    assert isinstance(replacement, Replacement)
    assert mirror.lists["train"] == "http://near/k/400/train/k400_train_path.txt"
    assert replacement.address == "http://near/k/400/replacement_for_corrupted_k400.tgz"
    lists = {"val": "http://near/k600.txt"}
    (other,) = make(tmp_path, tmp_path, lists=lists, is_kinetics400=False)
    assert isinstance(other, Mirror)
    assert other.lists == lists
    with pytest.raises(KineticsError, match="does not begin with http"):
        make(tmp_path, tmp_path, base="/data/mirror")


def test_a_source_is_sent_to_workers(lab: Lab) -> None:
    for source in lab.sources:
        assert not source.versions()
        assert pickle.loads(pickle.dumps(source)) == source


# replacements


def history(reason: Reason | None) -> History:
    known = History()
    if reason is not None:
        known.add(Line(key="k", status=FAILED, source="cvdf", reason=reason))
    return known


def test_only_what_came_damaged_is_replaced(lab: Lab) -> None:
    assert lab.replacement.wants(history(Reason.DAMAGED))
    assert not lab.replacement.wants(history(Reason.GONE))
    assert not lab.replacement.wants(history(None))
    assert lab.mirror.wants(history(None))


def replaced(lab: Lab, members: list[Member], wanted: list[Segment]) -> Outcome:
    lab.server.put("/400/replacement_for_corrupted_k400.tgz", tarball(members))
    return collect(lab.replacement.units(wanted, WHOLE, lab.scratch))


def test_a_corrupt_clip_of_the_mirror_comes_whole_from_the_replacements(
    lab: Lab, make_video: MakeVideo, tmp_path: Path
) -> None:
    whole = make_video(seconds=3).read_bytes()
    key = segment(0).key
    lab.put_tars({"part_0.tar.gz": tarball([(f"{key}.mp4", whole[:-2000])])})
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(lab.run([segment(0)]).clips[key])
    with pytest.raises(MediaError):
        decode.count_frames(clip)
    folder = "replacement_for_corrupted_k400"
    members: list[Member] = [(f"./{folder}/._{key}.mp4", b""), (f"./{folder}/{key}.mp4", whole)]
    clip.write_bytes(replaced(lab, members, [segment(0)]).clips[key])
    assert decode.count_frames(clip) == 90


def test_a_replacement_is_found_by_key_or_by_the_one_segment_of_its_video(lab: Lab) -> None:
    two = [segment(1), segment(1, start=20)]
    members: list[Member] = [
        ("r/video-00000.mp4", b"by video"),
        ("r/video-00001.mp4", b"of which segment?"),
        (f"r/{segment(1).key}.mp4", b"by key"),
        (f"r/{segment(2, start=30).key}.mp4", b"another segment of that video"),
        ("r/video-00003_new.mp4", b"by its first eleven characters"),
        ("r/video-00003.mp4", b"again"),
    ]
    outcome = replaced(lab, members, [segment(0), *two, segment(2), segment(3)])
    assert outcome.clips == {
        segment(0).key: b"by video",
        segment(1).key: b"by key",
        segment(3).key: b"by its first eleven characters",
    }
    gone = (Reason.GONE, "not among the replacements")
    assert outcome.errors == {two[1].key: gone, segment(2).key: gone}


def test_replacements_that_cannot_be_had_may_be_asked_again(lab: Lab) -> None:
    assert collect(lab.replacement.units([], WHOLE, lab.scratch)).order == []
    outcome = collect(lab.replacement.units([segment(0)], WHOLE, lab.scratch))
    assert outcome.reasons == {segment(0).key: Reason.SERVER}
    lab.server.put("/400/replacement_for_corrupted_k400.tgz", tarball(clips([1, 0]))[:9000])
    outcome = collect(lab.replacement.units([segment(0)], WHOLE, lab.scratch))
    assert outcome.reasons == {segment(0).key: Reason.DAMAGED}


# through the command


def write_list(path: Path, rows: Iterable[Segment]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
        writer.writerows((s.label, s.youtube_id, s.start_s, s.end_s, s.split) for s in rows)
    return path


def download(
    lab: Lab, manifest: object, *options: object, cache: str = "cache"
) -> subprocess.CompletedProcess[str]:
    """Fill the lab's folder `out` from its mirror."""
    return run_command(
        *("kinetics-download", manifest, lab.folder / "out", "--source", "cvdf"),
        *("--cvdf-base", lab.server.address, "--cache-dir", lab.folder / cache, *options),
    )


def answers(lab: Lab) -> dict[str, list[str]]:
    """By key: who gave the clip, or each source that did not and why."""
    return {
        key: [one.done.source.partition(":")[0]]
        if one.done
        else sorted(f"{failed.source.partition(':')[0]} {failed.reason}" for failed in one.failures)
        for key, one in ledger.read(lab.folder / "out").items()
    }


def test_tasks_that_share_only_out_bring_every_clip_to_an_end(
    lab: Lab, make_video: MakeVideo
) -> None:
    clip = make_video(seconds=3).read_bytes()
    folder = lab.folder / "folder"
    folder.mkdir()
    (folder / f"{segment(1).key}.mp4").write_bytes(clip)  # what a broken tar keeps from us
    for number in range(4):
        data = tarball([(f"{segment(2 * number + k).key}.mp4", clip) for k in range(2)])
        broken = number in (0, 1)  # one of each task
        lab.server.put(
            f"/400/val/part_{number}.tar.gz", data[: -len(clip) // 2 if broken else None]
        )
    lab.put_list(f"part_{number}.tar.gz" for number in range(4))
    rows = (replace(segment(number), label="yoga") for number in range(9))
    manifest = write_list(lab.folder / "list.csv", rows)
    options = ("--source", f"dir:{folder}", "--labels", "kinetics400")
    for task in (0, 1) * 2:
        said = download(lab, manifest, *options, "--task", f"{task}/2", cache=f"cache-{task}")
        assert said.returncode in (0, 4), said.stderr
    lost = ["cvdf damaged", "cvdf-replacement server", "dir absent"]
    assert answers(lab) == {
        **{segment(n).key: ["cvdf"] for n in (0, 2, 4, 5, 6, 7)},
        segment(1).key: ["dir"],
        **{segment(n).key: lost for n in (3, 8)},
    }


def test_the_lists_of_another_set_are_named(lab: Lab, make_video: MakeVideo) -> None:
    """Kinetics-600, say: labels that are not those of Kinetics-400, lists elsewhere."""
    clip = make_video(seconds=3).read_bytes()
    lab.server.put("/600/val/part_0.tar.gz", tarball([(f"v/{segment(0).key}.mp4", clip)]))
    lab.server.put("/600/val/k600_val_path.txt", b"part_0.tar.gz\n")
    rows = [replace(segment(0), label="arguing"), replace(segment(1), label="zumba")]
    manifest = write_list(lab.folder / "list.csv", rows)
    address = f"{lab.server.address}/600/val/k600_val_path.txt"
    said = download(lab, manifest, "--cvdf-list", f"val={address}")
    assert said.returncode == 3, said.stderr
    assert answers(lab) == {segment(0).key: ["cvdf"], segment(1).key: ["cvdf gone"]}
    assert "/400/" not in "".join(lab.server.gets())


def test_an_official_list_of_kinetics_600_is_read_as_it_is(lab: Lab, make_video: MakeVideo) -> None:
    """Its tars are one per label, and its lines have the labels' spaces."""
    clip = make_video(seconds=3).read_bytes()
    names = ("abseiling", "massaging person's head", "pull ups", "100% höher #1")
    for number, name in enumerate(names):
        data = tarball([(f"{segment(number, 'train').key}.mp4", clip)])
        lab.server.put(f"/600/train/{name}.tar.gz", data)
    lines = [f"{OFFICIAL}/600/train/{name}.tar.gz\n" for name in names]
    lab.server.put("/600/train/k600_train_path.txt", "".join(lines).encode())
    rows = [replace(segment(n, "train"), label=name) for n, name in enumerate(names)]
    manifest = write_list(lab.folder / "list.csv", rows)
    address = f"{lab.server.address}/600/train/k600_train_path.txt"
    said = download(lab, manifest, "--cvdf-list", f"train={address}")
    assert said.returncode == 0, said.stderr
    assert answers(lab) == {row.key: ["cvdf"] for row in rows}


def test_a_set_by_name_comes_from_its_list_to_its_clips(lab: Lab, make_video: MakeVideo) -> None:
    clip = make_video(seconds=3).read_bytes()
    labels = known_labels("kinetics400")
    rows = (replace(segment(n), label=labels[n % 400]) for n in range(19_906))
    data = write_list(lab.folder / "val.csv", rows).read_bytes()
    lab.server.put("/val.csv", data)
    lab.put_tars({"part_0.tar.gz": tarball([(f"{segment(n).key}.mp4", clip) for n in range(2)])})
    address = f"{lab.server.address}/val.csv"
    said = download(lab, "kinetics400/val", "--manifest-address", address, "--limit", 2)
    assert said.returncode == 0, said.stderr
    assert answers(lab) == {segment(n).key: ["cvdf"] for n in range(2)}
    assert json.loads((lab.folder / "out" / "origin.json").read_text()) == [
        {
            "list": "kinetics400/val",
            "address": address,
            "sha256": hashlib.sha256(data).hexdigest(),
            "rows": 19_906,
        }
    ]


def test_without_a_list_now_the_next_source_is_asked(lab: Lab, make_video: MakeVideo) -> None:
    folder = lab.folder / "folder"
    folder.mkdir()
    (folder / f"{segment(0).key}.mp4").write_bytes(make_video(seconds=3).read_bytes())
    manifest = write_list(lab.folder / "list.csv", [segment(0), segment(1)])
    address = f"{lab.server.address}/list.txt"
    lab.server.put("/list.txt", b"", statuses=[403] * 9)
    said = download(lab, manifest, "--cvdf-list", f"val={address}", "--source", f"dir:{folder}")
    assert said.returncode == 4, said.stderr
    assert answers(lab) == {segment(0).key: ["dir"], segment(1).key: ["cvdf server", "dir absent"]}
    ledger_text = (lab.folder / "out" / "ledger-0-of-1.jsonl").read_text()
    assert f"no path list: {address}: HTTP 403" in ledger_text


def test_a_split_that_has_no_list_is_told_before_any_source_is_asked(lab: Lab) -> None:
    manifest = write_list(lab.folder / "list.csv", [segment(0)])
    (lab.folder / "folder").mkdir()
    said = run_command(
        *("kinetics-download", manifest, lab.folder / "out"),
        *("--source", f"dir:{lab.folder / 'folder'}", "--source", "cvdf"),
        *("--cvdf-base", lab.server.address, "--cache-dir", lab.folder / "cache"),
    )
    assert said.returncode == 2
    assert "give one with --cvdf-list val=ADDRESS" in said.stderr
    assert not (lab.folder / "out").exists()
