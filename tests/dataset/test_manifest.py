"""Manifests: every dialect, every bad row found first, labels that mean what the dataset means."""

import csv
import io
import os
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_tools.core.errors import KineticsError, ManifestError, OutError, UnknownNameError
from kinetics_tools.core.keys import is_key
from kinetics_tools.dataset import layout, manifest
from kinetics_tools.dataset.labels import choose_labels, known_labels, read_labels
from kinetics_tools.dataset.manifest import Manifest, Segment, read_manifest
from kinetics_tools.extract.clips import read_clips

HEADER = "label,youtube_id,time_start,time_end,split\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_both_dialects_read_alike(tmp_path: Path) -> None:
    deepmind = read_manifest(
        write(
            tmp_path, HEADER + 'testing,"-abc_defghi",8,18,validate\nyoga,00000123456,0,10,train\n'
        )
    )
    activitynet = read_manifest(
        write(
            tmp_path,
            "label,youtube_id,time_start,time_end,split,is_cc\r\n"
            '"testing",-abc_defghi,8,18,val,0\r\nyoga,00000123456,0,10,train,1\r\n\r\n',
        )
    )
    assert deepmind == activitynet
    first, second = deepmind.segments
    assert (first.key, first.label, first.split) == ("-abc_defghi_000008_000018", "testing", "val")
    assert second.youtube_id == "00000123456"


def test_a_test_list_without_labels_is_read(tmp_path: Path) -> None:
    text = "youtube_id,time_start,time_end,split\nNA,1.5,11.5,test\n"
    (segment,) = read_manifest(write(tmp_path, text)).segments
    assert segment.label is None
    assert segment.start_s == Fraction(3, 2)
    assert layout.clip_path(tmp_path, segment) == (
        tmp_path / "clips" / "test" / "unlabelled" / "NA_000001_000011.mp4"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("10.000000", 10), ("1.1000000000000001", 1.1), ("9.999999999999998", 10), ("0", 0)),
        *(("5.", 5), (".5", 0.5), ("000010", 10), ("0000000010.0", 10), (" 5 ", 5), ("\t5", 5)),
        *((f"8.{'0' * 5000}", 8), ("999998.9994", 999_998.999), ("2.0005", 2), ("2.0015", 2.002)),
    ],
)
def test_a_time_is_a_plain_decimal_number_to_the_millisecond(text: str, seconds: float) -> None:
    table = f"{HEADER}yoga,abc,{text},999999.999,val\n".encode()
    (segment,) = manifest.parse_manifest(table, "list").segments
    assert segment.start_s == Fraction(str(seconds))
    assert segment.key == f"abc_{int(seconds):06d}_999999"
    again = manifest.parse_manifest(manifest.format_manifest([segment]).encode(), "list")
    assert again.segments == (segment,)


@pytest.mark.parametrize(
    "text",
    [
        *("1e1", "1E+05", "+5", "-1", "-0", "inf", "nan", "", ".", "1_0", "0x5", "1,5", "1:30"),
        *("\N{ARABIC-INDIC DIGIT FIVE}", "5 0", "1000000", "999999.9999", "9" * 5000),
    ],
)
def test_anything_else_is_no_time(text: str) -> None:
    table = f'{HEADER}yoga,bad,0,"{text}",val\nyoga,good,0,10,val\n'.encode()
    read = manifest.parse_manifest(table, "list", skip_bad_rows=True)
    assert [segment.youtube_id for segment in read.segments] == ["good"]
    assert "is not a plain number of seconds below 1000000" in read.bad_rows[0].problem
    assert len(read.bad_rows[0].problem) < 120


def test_rows_that_differ_by_less_than_a_millisecond_are_one() -> None:
    rows = ("yoga,abc,1.1,10,val", "yoga,abc,1.1000000000000001,10.000000,val")
    read = manifest.parse_manifest((HEADER + "\n".join(rows)).encode(), "list")
    assert (len(read.segments), read.num_duplicates) == (1, 1)


DIALECTS = {
    "activitynet": "label,youtube_id,time_start,time_end,split,is_cc\nyoga,-a,8,18.5,val,0\n",
    "deepmind": "label,youtube_id,time_start,time_end,split\nyoga,-a,8,18.5,validate\n",
    "quoted": 'label,youtube_id,time_start,time_end,split\n"yoga","-a",8,18.5,"val"\n',
    "mediapipe": "label_name,video,start,end,split\nyoga,-a,8,18.5,val\n",
    "renamed": "video-id,start-time,end-time,label-name,split\n-a,8,18.5,yoga,val\n",
    "no split": "video-id,start-time,end-time,label-name\n-a,8,18.5,yoga\n",
    "marked": "\ufefflabel , youtube_id,time_start,time_end,split\r\nyoga,-a,8,18.5,val\r\n\r\n",
    "json": '{"-a": {"annotations": {"label": "yoga", "segment": [8, 18.5]}, "duration": 10.0,'
    ' "subset": "validate", "url": "https://www.youtube.com/watch?v=-a"}}',
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_says_the_same(tmp_path: Path, dialect: str) -> None:
    (row,) = read_manifest(write(tmp_path, DIALECTS[dialect]), split="val").segments
    assert (row.label, row.youtube_id, row.split) == ("yoga", "-a", "val")
    assert (row.start_s, row.end_s) == (Fraction(8), Fraction(37, 2))


def test_a_named_split_is_only_for_lists_that_name_none(tmp_path: Path) -> None:
    path = write(tmp_path, DIALECTS["deepmind"])
    assert read_manifest(path, split="train").segments[0].split == "val"
    path = write(tmp_path, DIALECTS["no split"])
    assert read_manifest(path, split="validate").segments[0].split == "val"
    with pytest.raises(ManifestError, match=r"split '\.\./up' may have only"):
        read_manifest(path, split="../up")


def test_json_keeps_a_video_that_is_listed_twice_and_names_bad_entries(tmp_path: Path) -> None:
    def entry(segment: str) -> str:
        return f'{{"annotations": {{"segment": {segment}}}, "subset": "test"}}'

    text = (
        f'{{"a": {entry("[0, 10]")}, "a": {entry("[20.0, 30.0]")}, "b": 7, "c": {entry("[1]")},'
        f' "../up": {entry("[0, 10]")}, "d": {entry("[NaN, 1e3]")}}}'
    )
    read = read_manifest(write(tmp_path, text), skip_bad_rows=True)
    assert [s.key for s in read.segments] == ["a_000000_000010", "a_000020_000030"]
    assert {s.label for s in read.segments} == {None}
    assert [row.line for row in read.bad_rows] == [3, 4, 5, 6]
    assert "entry 'b' has no annotations.segment" in read.bad_rows[0].problem


def test_words_that_tables_mistake_for_nothing_stay_words(tmp_path: Path) -> None:
    (segment,) = read_manifest(write(tmp_path, HEADER + "None,nan,0,10,NA\n")).segments
    assert (segment.label, segment.youtube_id, segment.split) == ("None", "nan", "NA")


BAD = (
    "yoga,ok,10,10,val",
    "yoga,ok,ten,20,val",
    "yoga,ok,-1,20,val",
    "yoga,ok,nan,20,val",
    "yoga,../../etc,0,10,val",
    "yoga,,0,10,val",
    f"yoga,{'x' * 300},0,10,val",
    "../up,ok,0,10,val",
    "yoga,ok,0,10,../val",
    "yoga,ok,0,10",
    "yoga,o\0k,0,10,val",
    "yoga,ok,0,9999999,val",
)


def test_all_bad_rows_are_found_and_ten_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "\n".join(BAD) + "\nyoga,fine,0,10,val\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    first, *shown = str(caught.value).splitlines()
    assert f"{len(BAD)} bad rows" in first
    assert "--skip-bad-rows" in first
    assert len(shown) == 11
    assert shown[-1] == f"  and {len(BAD) - 10} more"
    assert shown[0].startswith("  line 2: time_end 10 is not after")

    kept = read_manifest(path, skip_bad_rows=True)
    assert [s.youtube_id for s in kept.segments] == ["fine"]
    assert [row.line for row in kept.bad_rows] == list(range(2, 2 + len(BAD)))


def test_identical_rows_collapse_and_others_with_one_key_are_bad(tmp_path: Path) -> None:
    row = "yoga,abc,0,10,val\n"
    assert read_manifest(write(tmp_path, HEADER + row * 3)).num_duplicates == 2
    with pytest.raises(ManifestError, match="has the same key abc_000000_000010"):
        read_manifest(write(tmp_path, HEADER + row + "zumba,abc,0,10,val\n"))
    with pytest.raises(ManifestError, match="has the same key"):
        read_manifest(write(tmp_path, HEADER + row + "yoga,abc,0.5,10,val\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column split, time_end, time_start, youtube_id"),
        ("label,id,from,to,split\n", "no column time_end, time_start, youtube_id"),
        ("label,video,start,time_start,end,split\n", "two columns for time_start"),
        ("label,youtube_id,time_start,time_end\n", "no column split; name .* such as --split val"),
        ('{"a": 1', "is not JSON"),
        ("{" * 100_000, "is not JSON"),
        (HEADER, "no usable row"),
        (HEADER + '"yoga,abc,0,10,val\n', "not CSV"),
        ('"' + HEADER + "yoga,abc,0,10,val\n", "line 1, the header: not CSV: a quote opens here"),
    ],
)
def test_an_unusable_table_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        read_manifest(write(tmp_path, text))


def test_blank_lines_before_the_header_are_counted_and_left_out(tmp_path: Path) -> None:
    table = write(tmp_path, "\n \r\n" + HEADER + "yoga,abc,0,10,val\nyoga,abd,10,0,val\n")
    manifest = read_manifest(table, skip_bad_rows=True)
    assert [segment.youtube_id for segment in manifest.segments] == ["abc"]
    assert [row.line for row in manifest.bad_rows] == [5]


def test_a_missing_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="No such file"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="Is a directory"):
        read_manifest(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"\x00\xff\xfe" * 9)
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(tmp_path / "clip.mp4")


SEGMENTS = st.builds(
    Segment,
    youtube_id=st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True),
    start_s=st.integers(0, 10**8).map(lambda n: Fraction(n, 1000)),
    end_s=st.integers(10**8 + 1, 10**9 - 1).map(lambda n: Fraction(n, 1000)),
    label=st.none() | st.sampled_from(["yoga", "hurling (sport)", 'a "quoted", label', "ö"]),
    split=st.sampled_from(["train", "val", "test"]),
)


@given(segments=st.lists(SEGMENTS, min_size=1, unique_by=lambda s: s.key))
@settings(max_examples=50)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, segments: list[Segment]
) -> None:
    path = write(tmp_path_factory.mktemp("m"), manifest.format_manifest(segments))
    assert set(read_manifest(path).segments) == set(segments)


HEADERS = st.sampled_from([HEADER, "", "{", "video,start,end\n", DIALECTS["json"][:-1] + ","])


@given(header=HEADERS, content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300)
def test_any_bytes_are_a_manifest_with_safe_names_or_one_error(header: str, content: bytes) -> None:
    try:
        read = manifest.parse_manifest(
            header.encode() + content, "list", split="val", skip_bad_rows=True
        )
    except ManifestError as error:
        assert str(error).startswith("list")
        assert len(str(error).splitlines()) <= 11
        return
    for found in read.segments:
        assert is_key(found.key)
        path = layout.clip_path(Path("out"), found)
        assert len(path.parts) == 5
        assert ".." not in path.parts


ON_ONE_LINE = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=12)
ROWS = st.lists(
    st.tuples(*[ON_ONE_LINE | st.sampled_from(["0", "9.5", "ok", ".."])] * 5), max_size=4
)


@given(ROWS)
@settings(max_examples=200)
def test_any_row_is_a_segment_with_a_safe_key_or_a_bad_row(
    fields: list[tuple[str, ...]],
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([HEADER.strip().split(","), *fields, ("yoga", "a", 0, 10, "val")])
    read = manifest.parse_manifest(
        buffer.getvalue().encode(errors="replace"), "", skip_bad_rows=True
    )
    assert all(is_key(found.key) for found in read.segments)
    assert len(read.segments) + len(read.bad_rows) + read.num_duplicates == len(fields) + 1


def test_a_stray_quote_makes_its_own_line_bad_and_no_other(tmp_path: Path) -> None:
    rows = [f"yoga,a{number},0,10,val\n" for number in range(1000)]
    rows[9] = '"' + rows[9]
    rows[500] = rows[500].replace(",val", ',"val')
    rows[700] = rows[700].replace("yoga,", 'yoga",')  # would close the quote above
    read = read_manifest(write(tmp_path, HEADER + "".join(rows)), skip_bad_rows=True)
    opened = "not CSV: a quote opens here and does not close on this line"
    inside = "not CSV: a quote inside a field that does not begin with one"
    bad = [(11, opened), (502, opened), (702, inside)]
    assert [(row.line, row.problem) for row in read.bad_rows] == bad
    assert len(read.segments) == 997
    with pytest.raises(ManifestError, match=rf"3 bad rows; .*\n  line 11: {opened}\n  line 502"):
        read_manifest(write(tmp_path, HEADER + "".join(rows)))


@pytest.mark.parametrize("label", ['yo"ga', 'yoga"', 'yo"ga"', 'yo""ga', '"yoga"x', ' x"yoga"'])
def test_a_quote_inside_a_label_makes_no_new_class(label: str) -> None:
    table = f"{HEADER}{label},bad,0,10,val\nyoga,good,0,10,val\n".encode()
    read = manifest.parse_manifest(table, "list", skip_bad_rows=True)
    assert read.labels == ("yoga",)
    assert [row.line for row in read.bad_rows] == [2]


@pytest.mark.parametrize("start", ["\ufeff\ufeff", "\ufeff\ufeff\ufeff"])
@pytest.mark.parametrize("label", ["yoga", '"yoga"', ' "yoga"'])
def test_marks_and_spaces_before_a_field_lose_no_label(start: str, label: str) -> None:
    table = f"{start}{HEADER}{label},good,0,10,val\n".encode()
    assert manifest.parse_manifest(table, "list").labels == ("yoga",)


GOOD_ROWS = [
    row.encode()
    for row in (
        "yoga,aaaaaaaaaaa,0,10,val,1,",
        '"up, down",bbbbbbbbbbb,5.5,15.5,train,0,note',
        '"a ""quoted"" label",ccccccccccc,1,2,val,0,"x, y"',
        '"","ddddddddddd","0","9","val","",""',
        "zürich,eeeeeeeeeee,3,4,test,1,ü",
        '",",fffffffffff,7,8,val,0,","',
    )
]
DAMAGE = st.sampled_from([*b'",{\\\0\xff\r\n']).map(lambda code: bytes([code])) | st.sampled_from(
    ['""', '",', "\ufeff", "\n\n", "\u2028\x85\x0b", "x" * 140_000]
).map(str.encode)


@given(
    at=st.integers(0, len(GOOD_ROWS) - 1),
    first=st.integers(0, 60),
    num_lost=st.integers(0, 60),
    put=st.lists(DAMAGE | st.binary(max_size=8), max_size=3).map(b"".join),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
@settings(max_examples=500)
def test_one_damaged_row_changes_no_other(
    at: int, first: int, num_lost: int, put: bytes, end: bytes
) -> None:
    header = b"\xef\xbb\xbf" + HEADER.strip().encode() + b',is_cc,"a note"'
    whole = manifest.parse_manifest(end.join([header, *GOOD_ROWS]), "list").segments
    assert len(whole) == len(GOOD_ROWS)
    row = GOOD_ROWS[at]
    damaged = [*GOOD_ROWS[:at], row[:first] + put + row[first + num_lost :], *GOOD_ROWS[at + 1 :]]
    read = manifest.parse_manifest(end.join([header, *damaged]), "list", skip_bad_rows=True)
    others = [s for s in whole if s != whole[at]]
    assert [s for s in read.segments if s in others] == others
    if not set(put) & set(b"\r\n"):
        assert {bad.line for bad in read.bad_rows} <= {at + 2}


def test_a_byte_that_is_not_utf8_makes_its_own_entry_of_a_json_bad() -> None:
    entry = b'{"annotations": {"label": "%s", "segment": [0, 10]}, "subset": "val", "url": "\xe9"}'
    text = b'{"a": %s, "b": %s}' % (entry % b"caf\xe9", entry % b"yoga")
    read = manifest.parse_manifest(text, "list", skip_bad_rows=True)
    assert [(s.youtube_id, s.label) for s in read.segments] == [("b", "yoga")]
    ((number, problem),) = ((row.line, row.problem) for row in read.bad_rows)
    assert number == 1
    assert "bytes that are not UTF-8" in problem


def test_line_numbers_are_right_whatever_ends_the_lines() -> None:
    for end in ("\n", "\r\n", "\r"):
        lines = [HEADER.strip(), "yoga,a,0,10,val", '"yoga,b,0,10,val', "", 'yoga,c,0,10,"val', "x"]
        read = manifest.parse_manifest(end.join(lines).encode(), "list", skip_bad_rows=True)
        assert [row.line for row in read.bad_rows] == [3, 5, 6]
        assert [s.youtube_id for s in read.segments] == ["a"]


def segment(name: str, label: str | None, split: str = "val") -> Segment:
    return Segment(
        youtube_id=name, start_s=Fraction(0), end_s=Fraction(10), label=label, split=split
    )


def test_labels_of_a_part_of_kinetics_need_the_full_list_named() -> None:
    some = Manifest((segment("a", "yoga"), segment("b", "zumba")))
    with pytest.raises(ManifestError, match="add --labels kinetics400"):
        choose_labels(some, None)
    labels = choose_labels(some, "kinetics400")
    assert len(labels) == 400
    assert labels.index("playing cricket") == 227
    own = Manifest((segment("a", "yoga"), segment("b", "my own class")))
    assert choose_labels(own, None) == ("my own class", "yoga")


def test_a_label_that_the_named_list_lacks_is_named(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\n")
    with pytest.raises(ManifestError, match="lacks 'yoga'"):
        choose_labels(Manifest((segment("a", "yoga"),)), str(labels))
    labels.write_text("b\na\n")
    with pytest.raises(ManifestError, match="sorted"):
        choose_labels(Manifest((segment("a", "a"),)), str(labels))


@pytest.mark.parametrize(
    "text",
    [
        *("a b\nc\n", "a b\nc", "\ufeffa b\nc\n", "a b\nc\n\n", "a b\nc\n \n\n", "a b\r\nc\r\n"),
        *("\ufeffa b\r\nc\r\n\r\n", "a b\rc\r", "a b \n\tc\n"),
    ],
)
def test_a_label_list_is_its_labels_whatever_ends_its_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_bytes(text.encode())
    assert read_labels(tmp_path / "labels.txt") == ("a b", "c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b\na\n", "line 2: 'a' may not come after 'b'; .* sorted, each once"),
        ("a\na\n", "line 2: 'a' may not come after 'a'"),
        ("a\n\nb\n", "line 2: is blank"),
        ("\ufeff\n", "is empty; a label list has"),
        ("", "is empty; a label list has"),
    ],
)
def test_a_line_that_makes_no_label_list_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels.txt").write_bytes(text.encode())
    with pytest.raises(ManifestError, match=said):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    "labels",
    [
        ("chin ups", "chin_ups"),
        ("Yoga", "yoga"),
        ("Chin Ups", "chin_ups"),
        ("a", "unlabelled"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ],
)
def test_labels_that_would_share_a_folder_are_refused(
    tmp_path: Path, labels: tuple[str, str]
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(labels), encoding="utf-8")
    both = Manifest((segment("a", labels[0]), segment("b", labels[1])))
    one = Manifest((segment("a", labels[0]),))
    for listed, named in ((both, None), (one, str(tmp_path / "labels.txt"))):
        with pytest.raises(KineticsError, match=f"'{labels[1]}' would share a folder; rename"):
            choose_labels(listed, named)
    assert choose_labels(one, None) == labels[:1]


def test_an_out_without_labels_can_be_continued_and_get_labels(tmp_path: Path) -> None:
    for _ in range(2):
        layout.record_selection(tmp_path, [segment("a", None, "test")], ())
    assert layout.read_out(tmp_path)[1] == ()
    layout.record_selection(tmp_path, [segment("b", "yoga")], ("yoga",))
    layout.record_selection(tmp_path, [segment("a", None, "test")], ())
    assert layout.read_out(tmp_path)[1] == ("yoga",)


def test_an_out_grows_by_later_lists_and_refuses_others(tmp_path: Path) -> None:
    labels = ("yoga", "zumba")
    layout.record_selection(tmp_path, [segment("a", "yoga")], labels)
    layout.record_selection(tmp_path, [segment("b", "zumba", "train")], ("zumba",))
    assert [s.youtube_id for s in read_manifest(tmp_path / "manifest.csv").segments] == ["b", "a"]
    assert read_labels(tmp_path / "labels.txt") == labels
    with pytest.raises(OutError, match="another row for a_000000_000010"):
        layout.record_selection(tmp_path, [segment("a", "zumba")], labels)
    with pytest.raises(OutError, match="not this run's"):
        layout.record_selection(tmp_path, [segment("c", "surfing")], ("surfing",))


def test_a_selection_names_what_it_does_not_find() -> None:
    both = Manifest((segment("a", "yoga"), segment("b", "zumba", "train")))
    assert manifest.select(both, splits=("validate",)) == [both.segments[0]]
    assert manifest.select(both, classes=("zumba",)) == [both.segments[1]]
    assert manifest.select(both, limit=1) == [both.segments[0]]
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        manifest.select(both, splits=("trian",))
    with pytest.raises(UnknownNameError, match="Did you mean 'yoga'"):
        manifest.select(both, classes=("joga",))
    with pytest.raises(ManifestError, match="no row"):
        manifest.select(both, splits=("val",), classes=("zumba",))


def test_the_official_list_reads_whole(shared_data: Path) -> None:
    official = read_manifest(shared_data / "annotations" / "kinetics400" / "val.csv")
    assert len(official.segments) == 19906
    assert sum(s.youtube_id.startswith("-") for s in official.segments) == 644
    assert choose_labels(official, None) == known_labels("kinetics400")


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "nothing"])
@pytest.mark.parametrize("name", ["manifest.csv", "labels.txt"])
def test_a_list_of_an_out_that_is_no_file_is_named(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(f"{HEADER}yoga,a,0,10,val\n")
    (tmp_path / "labels.txt").write_text("yoga\n")
    path = tmp_path / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "gone")
    for read in (layout.read_out, read_clips):
        with pytest.raises(OutError, match=f"{name} is (not a file|a link to nothing)"):
            read(tmp_path)
