"""Official lists by name, from a real server: checked, cached whole or not at all."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinetics_tools.core.errors import ManifestError, UnknownNameError
from kinetics_tools.core.files import read_json
from kinetics_tools.dataset.labels import known_labels
from kinetics_tools.download import official_lists
from support import DAMAGES, MediaServer, damage_file, tree

HEADER = "label,youtube_id,time_start,time_end,split\n"
LABELS_600 = [f"class {number:03d}" for number in range(600)]
TRAIN = HEADER + "".join(f"{label},t{n},0,10,train\n" for n, label in enumerate(LABELS_600))
VAL = HEADER + "class 000,-v,5,15,validate\nclass 001,w,5,15,validate\n"
TEST = "youtube_id,time_start,time_end,split\nx,0,10,test\n"
LISTS = {"train.csv": TRAIN, "validate.csv": VAL, "test.csv": TEST}


def archive(
    files: dict[str, str], *, change: Callable[[tarfile.TarFile], None] = lambda _: None
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        change(tar)
    return buffer.getvalue()


def official_like() -> bytes:
    return archive({f"kinetics600/{name}": text for name, text in LISTS.items()})


@pytest.fixture
def address(media_server: MediaServer) -> str:
    media_server.put("k600.tar.gz", official_like())
    return f"{media_server.address}/k600.tar.gz"


def test_a_name_is_a_known_dataset_with_or_without_a_split() -> None:
    assert official_lists.is_name("kinetics400")
    assert official_lists.is_name("kinetics700-2020/val")
    assert not official_lists.is_name("./kinetics400")
    assert not official_lists.is_name("kinetics400.csv")
    assert official_lists.ADDRESSES.keys() == official_lists.NUM_LABELS.keys()


def test_a_split_comes_with_the_whole_datasets_labels(address: str, tmp_path: Path) -> None:
    found = official_lists.fetch("kinetics600/validate", tmp_path, address=address)
    assert [s.key for s in found.manifest.segments] == ["-v_000005_000015", "w_000005_000015"]
    assert {s.split for s in found.manifest.segments} == {"val"}
    assert found.labels == tuple(LABELS_600)
    assert found.rows == {"val": 2}
    assert found.address == address


def test_a_dataset_is_all_its_splits_and_a_test_list_may_lack_labels(
    address: str, tmp_path: Path
) -> None:
    found = official_lists.fetch("kinetics600", tmp_path, address=address)
    assert found.rows == {"train": 600, "val": 2, "test": 1}
    assert [s.split for s in found.manifest.segments] == ["train"] * 600 + ["val"] * 2 + ["test"]
    assert [s.label for s in found.manifest.segments if s.split == "test"] == [None]


def test_a_cached_list_needs_no_network(
    address: str, media_server: MediaServer, tmp_path: Path
) -> None:
    first = official_lists.fetch("kinetics600", tmp_path, address=address)
    media_server.files.clear()
    assert official_lists.fetch("kinetics600", tmp_path, address=address) == first
    assert official_lists.fetch("kinetics600/test", tmp_path, address=address).rows == {"test": 1}
    assert media_server.requests == ["/k600.tar.gz"]


def test_a_changed_cache_is_fetched_again(
    address: str, media_server: MediaServer, tmp_path: Path
) -> None:
    first = official_lists.fetch("kinetics600", tmp_path, address=address)
    (csv,) = tmp_path.rglob("val.csv")
    csv.write_text(VAL.replace("-v", "evil"))
    assert official_lists.fetch("kinetics600", tmp_path, address=address) == first
    csv.unlink()
    assert official_lists.fetch("kinetics600", tmp_path, address=address) == first
    assert len(media_server.requests) == 3


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_cache_is_fetched_again(
    kind: str, address: str, media_server: MediaServer, tmp_path: Path
) -> None:
    first = official_lists.fetch("kinetics600", tmp_path, address=address)
    (record,) = tmp_path.rglob("list.json")
    damage_file(record, kind)
    assert official_lists.fetch("kinetics600", tmp_path, address=address) == first
    assert len(media_server.requests) == 2


def test_each_address_has_its_own_place_in_the_cache(
    address: str, media_server: MediaServer, tmp_path: Path
) -> None:
    media_server.put(
        "other.tar.gz", archive(LISTS | {"validate.csv": VAL + "class 002,z,0,9,val\n"})
    )
    other = f"{media_server.address}/other.tar.gz"
    assert official_lists.fetch("kinetics600/val", tmp_path, address=address).rows == {"val": 2}
    assert official_lists.fetch("kinetics600/val", tmp_path, address=other).rows == {"val": 3}
    assert official_lists.fetch("kinetics600/val", tmp_path, address=address).rows == {"val": 2}


def test_where_rows_came_from_is_recorded_and_merged(address: str, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    for name in ("kinetics600/val", "kinetics600/train", "kinetics600/val"):
        found = official_lists.fetch(name, cache, address=address)
        found.record(out)
    assert read_json(out / "origin.json") == [
        {"list": f"kinetics600/{split}", "address": address, "sha256": found.sha256, "rows": rows}
        for split, rows in (("train", 600), ("val", 2))
    ]


def test_a_plain_csv_may_stand_in_for_the_archive(
    media_server: MediaServer, tmp_path: Path
) -> None:
    rows = (TRAIN + VAL.removeprefix(HEADER)).replace(",split", ",split,is_cc", 1)
    media_server.put(
        "all.csv",
        "".join(
            line + (",0\n" if number else "\n") for number, line in enumerate(rows.splitlines())
        ).encode(),
    )
    address = f"{media_server.address}/all.csv"
    assert official_lists.fetch("kinetics600/val", tmp_path, address=address).rows == {"val": 2}
    both = official_lists.fetch("kinetics600", tmp_path, address=address)
    assert both.rows == {"train": 600, "val": 2}
    assert len(both.manifest.segments) == 602


def test_a_csv_without_a_split_is_the_split_asked_for(
    media_server: MediaServer, tmp_path: Path
) -> None:
    text = "video-id,start-time,end-time,label-name\n" + "".join(
        f"v{n},0,10,{label}\n" for n, label in enumerate(LABELS_600)
    )
    media_server.put("plain.csv", text.encode())
    address = f"{media_server.address}/plain.csv"
    with pytest.raises(ManifestError, match="no column split"):
        official_lists.fetch("kinetics600", tmp_path, address=address)
    assert official_lists.fetch("kinetics600/val", tmp_path, address=address).rows == {"val": 600}
    with pytest.raises(ManifestError, match="has no train list; it has val"):
        official_lists.fetch("kinetics600/train", tmp_path, address=address)


def only_a_split_in_two(tar: tarfile.TarFile) -> None:
    text = VAL.encode()
    member = tarfile.TarInfo("again/val.csv")
    member.size = len(text)
    tar.addfile(member, io.BytesIO(text))


UNUSABLE = {
    "html": (b"<!DOCTYPE html><p>No such bucket", "cannot be downloaded"),
    "cut off": (official_like()[:-400], "damaged or cut off"),
    "without its checksum": (official_like()[:-8], "damaged or cut off"),
    "no archive": (gzip.compress(b"label,youtube_id\n" * 99), "damaged or cut off"),
    "empty": (b"", "no column"),
    "binary": (b"\x00\xff\xfe" * 100, "not UTF-8"),
    "other members": (
        archive({"readme.txt": "hello", "._train.csv": TRAIN}),
        "this archive has no .*train.csv",
    ),
    "a split twice": (archive(LISTS, change=only_a_split_in_two), "rows of the split val"),
    "labels missing": (archive({"validate.csv": VAL}), "has 2 labels, kinetics600 has 600"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_not_the_list_is_one_line_and_leaves_nothing(
    kind: str, media_server: MediaServer, tmp_path: Path
) -> None:
    content, said = UNUSABLE[kind]
    media_server.put("list", content)
    with pytest.raises(ManifestError, match=said) as caught:
        official_lists.fetch("kinetics600/val", tmp_path, address=f"{media_server.address}/list")
    assert len(str(caught.value).splitlines()) == 1
    assert media_server.address in str(caught.value)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("path", ["absent.tar.gz", "status-500-x", "half-of-k600.tar.gz"])
def test_what_cannot_be_downloaded_is_one_line_and_leaves_nothing(
    path: str, address: str, tmp_path: Path
) -> None:
    place = address.replace("k600.tar.gz", path)
    with pytest.raises(ManifestError, match="cannot be downloaded") as caught:
        official_lists.fetch("kinetics600", tmp_path, address=place, pauses_s=[0.0])
    assert len(str(caught.value).splitlines()) == 1
    assert tree(tmp_path) == {}


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot be downloaded .*network"):
        official_lists.fetch(
            "kinetics600", tmp_path, address="http://127.0.0.1:9/x", pauses_s=[0.0]
        )


def test_an_unknown_split_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        official_lists.fetch("kinetics600/trian", tmp_path)
    with pytest.raises(UnknownNameError, match="unknown split ''"):
        official_lists.fetch("kinetics600/", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_paths_links_and_devices_in_an_archive_are_nothing_to_us(
    media_server: MediaServer, tmp_path: Path
) -> None:
    def hostile(tar: tarfile.TarFile) -> None:
        for kind, name in (
            (tarfile.SYMTYPE, "validate.csv"),
            (tarfile.LNKTYPE, "train.csv"),
            (tarfile.CHRTYPE, "dev/test.csv"),
            (tarfile.DIRTYPE, "val.csv"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)

    media_server.put(
        "list",
        archive(
            {
                "../../../outside/train.csv": TRAIN,
                "/etc/validate.csv": VAL,
                "a/._test.csv": "\x00\x05\x16\x07",
                "test.csv": TEST,
            },
            change=hostile,
        ),
    )
    found = official_lists.fetch(
        "kinetics600", tmp_path / "in", address=f"{media_server.address}/list"
    )
    assert found.rows == {"train": 600, "val": 2, "test": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_archive_that_unpacks_to_too_much_is_refused(
    media_server: MediaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official_lists, "MAX_BYTES", 2**20)
    media_server.put("list", archive({"filler.json": " " * 2**21, **LISTS}))
    with pytest.raises(ManifestError, match="unpacks to more than 1 MiB"):
        official_lists.fetch("kinetics600", tmp_path, address=f"{media_server.address}/list")
    assert tree(tmp_path) == {}


def kinetics400(split: str, rows: int) -> str:
    labels = known_labels("kinetics400")
    return HEADER + "".join(f'"{labels[n % 400]}",v{n},0,10,{split}\n' for n in range(rows))


def test_the_counts_of_kinetics400_are_checked(media_server: MediaServer, tmp_path: Path) -> None:
    media_server.put("val.csv", kinetics400("val", 19_906).encode())
    media_server.put("less.csv", kinetics400("val", 19_905).encode())
    found = official_lists.fetch(
        "kinetics400/val", tmp_path, address=f"{media_server.address}/val.csv"
    )
    assert found.rows == {"val": 19_906}
    assert found.labels == known_labels("kinetics400")
    with pytest.raises(ManifestError, match=r"19905 rows, kinetics400's has 19906; .* by its path"):
        official_lists.fetch(
            "kinetics400/val", tmp_path, address=f"{media_server.address}/less.csv"
        )


def test_kinetics400_brings_its_labels_to_a_test_list_without(
    media_server: MediaServer, tmp_path: Path
) -> None:
    rows = "".join(f"v{number},0,10,test\n" for number in range(38_685))
    media_server.put("test.csv", ("youtube_id,time_start,time_end,split\n" + rows).encode())
    found = official_lists.fetch(
        "kinetics400/test", tmp_path, address=f"{media_server.address}/test.csv"
    )
    assert found.labels == known_labels("kinetics400")


def test_a_label_that_kinetics400_lacks_is_named(media_server: MediaServer, tmp_path: Path) -> None:
    text = kinetics400("val", 19_906).replace("abseiling", "absailing")
    media_server.put("val.csv", text.encode())
    with pytest.raises(ManifestError, match=r"'abs.iling' is only in one of them"):
        official_lists.fetch("kinetics400/val", tmp_path, address=f"{media_server.address}/val.csv")


def test_a_segment_in_two_splits_needs_one_named(media_server: MediaServer, tmp_path: Path) -> None:
    media_server.put("list", archive(LISTS | {"test.csv": HEADER + "class 000,t0,0,10,test\n"}))
    address = f"{media_server.address}/list"
    with pytest.raises(ManifestError, match=r"1 segments in two splits.* t0_000000_000010"):
        official_lists.fetch("kinetics600", tmp_path, address=address)
    assert official_lists.fetch("kinetics600/test", tmp_path, address=address).rows == {"test": 1}


def test_bad_rows_of_the_split_asked_for_are_told(
    media_server: MediaServer, tmp_path: Path
) -> None:
    media_server.put("list", archive(LISTS | {"validate.csv": VAL + "class 000,../up,0,10,val\n"}))
    address = f"{media_server.address}/list"
    assert official_lists.fetch("kinetics600/train", tmp_path, address=address).rows == {
        "train": 600
    }
    with pytest.raises(ManifestError, match="1 bad rows"):
        official_lists.fetch("kinetics600/val", tmp_path, address=address)
    found = official_lists.fetch("kinetics600/val", tmp_path, address=address, skip_bad_rows=True)
    assert len(found.manifest.segments) == 2
    assert len(found.manifest.bad_rows) == 1
    assert found.rows == {"val": 3}


WHOLE = gzip.decompress(official_like())


@given(
    at=st.integers(0, len(WHOLE) - 1),
    patch=st.binary(min_size=1, max_size=40),
    length=st.integers(0, len(WHOLE)),
)
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_archive_is_a_list_or_one_error(
    at: int, patch: bytes, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    changed = bytearray(WHOLE)
    changed[at : at + len(patch)] = patch
    (folder / "fetched").write_bytes(gzip.compress(bytes(changed[: max(length, at)])))
    (folder / "into").mkdir()
    try:
        official_lists._unpack("kinetics600", "http://x", folder / "fetched", folder / "into", None)
    except ManifestError as error:
        assert len(str(error).splitlines()) == 1
    assert {path.name for path in folder.rglob("*")} <= {
        "fetched",
        "into",
        "train.csv",
        "val.csv",
        "test.csv",
    }


def test_the_real_list_is_the_list(
    shared_data: Path, media_server: MediaServer, tmp_path: Path
) -> None:
    real = shared_data / "annotations" / "kinetics400" / "val.csv"
    media_server.put("val.csv", real)
    found = official_lists.fetch(
        "kinetics400/val", tmp_path, address=f"{media_server.address}/val.csv"
    )
    assert found.rows == {"val": 19_906}
    assert found.labels == known_labels("kinetics400")
