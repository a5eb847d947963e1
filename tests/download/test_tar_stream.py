"""Tars as they come: hostile names, odd members, damage of every kind; nothing else is written."""

import bz2
import contextlib
import gzip
import io
import lzma
import resource
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_tools.core.errors import Reason, SourceError
from kinetics_tools.download.sources import tar_stream
from mirror import Content, link, tarball
from support import tree

CLIPS: list[Content] = [(f"clip{n}.mp4", bytes([n]) * 3000) for n in range(4)]


def stems(data: bytes) -> list[str]:
    return [member.stem for member in tar_stream.videos(Raw(data))]


class Raw(io.RawIOBase):
    """Bytes that come in pieces and can only be read on."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        return self._data.readinto(view[:1000])


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_the_first_bytes_say_the_compression(pack: object, tmp_path: Path) -> None:
    data = pack(tarball(CLIPS, compressed=False))  # type: ignore[operator]
    for member in tar_stream.videos(Raw(data)):
        member.save(tmp_path / f"{member.stem}{member.suffix}")
    assert tree(tmp_path) == dict(CLIPS)


@pytest.mark.parametrize("pax", [True, False])
def test_only_the_last_part_of_a_videos_name_counts(pax: bool) -> None:
    long = "x" * 90
    data = tarball(
        [
            ("./a.mp4", b"1"),
            ("train/deep/b.MKV", b"2"),
            ("../../up.mp4", b"3"),
            ("/etc/root.mp4", b"4"),
            ("folder.mp4/", b""),
            ("._a.mp4", b"apple"),
            ("__MACOSX/._b.mp4", b"apple"),
            ("notes.txt", b"text"),
            ("none", b"no suffix"),
            (".mp4", b"no stem"),
            (f"{'y' * 120}/{long}.mp4", b"5"),
            link("link.mp4", "/etc/passwd"),
            link("hard.mp4", "a.mp4", tarfile.LNKTYPE),
            link("device.mp4", "", tarfile.CHRTYPE),
            link("pipe.mp4", "", tarfile.FIFOTYPE),
            link("dir.mp4", "", tarfile.DIRTYPE),
            ("empty.mp4", b""),
        ],
        pax=pax,
    )
    assert stems(data) == ["a", "b", "up", "root", "", long, "empty"]


names = st.text(
    st.one_of(st.sampled_from("./\\~-_a"), st.characters(exclude_categories=["Cs"])), max_size=40
).filter(lambda name: "\0" not in name)


@given(st.lists(st.tuples(names, st.binary(max_size=50)), min_size=1, max_size=6))
def test_reading_any_names_writes_nothing(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    data = tarball([(name + ".mp4", content) for name, content in members], pax=True)
    saved = folder / "saved"
    for member in tar_stream.videos(Raw(data)):
        assert "/" not in member.stem
        member.save(saved)
    assert set(tree(folder)) <= {"saved"}


def test_a_cut_or_changed_archive_is_damaged_wherever_it_is_hurt() -> None:
    plain = tarball(CLIPS, compressed=False)
    packed = gzip.compress(plain, 1)
    wounds = {f"plain to {n}": plain[:n] for n in range(0, 4 * 3584 + 1, 256)}
    wounds |= {f"packed to {n}": packed[:n] for n in range(0, len(packed), 7)}
    wounds |= {"checksum": packed[:-8] + b"\0\0\0\0" + packed[-4:]}
    wounds |= {
        f"header {n}": plain[: 3584 * n] + b"\xff" * 20 + plain[3584 * n + 20 :] for n in range(4)
    }
    for name, data in wounds.items():
        with pytest.raises(SourceError, match="damaged archive") as caught:
            stems(data)
        assert caught.value.reason is Reason.DAMAGED, name


def test_a_wound_inside_a_clip_leaves_no_half_of_it(tmp_path: Path) -> None:
    data = tarball(CLIPS, compressed=False)[: 3584 + 1000]
    with pytest.raises(SourceError, match="damaged archive"):
        for member in tar_stream.videos(Raw(data)):
            member.save(tmp_path / member.stem)
    assert list(tree(tmp_path)) == ["clip0"]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_an_absurd_size_is_not_believed() -> None:
    zeros = gzip.compress(bytes(2**22))
    for bomb, words in [
        (header("big.mp4", 2**40), "a member of 1099511627776 bytes"),
        (header("other.txt", 2**62), "a member of"),
        (header("././@LongLink", 2**33, tarfile.GNUTYPE_LONGNAME), "a header of 8589934592 bytes"),
        (header("pax", 2**33, tarfile.XHDTYPE), "a header of 8589934592 bytes"),
    ]:
        with pytest.raises(SourceError, match=words):
            stems(gzip.compress(bomb) + zeros)


def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    members = tar_stream.videos(Raw(tarball(CLIPS)))
    member = next(members)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            member.save(tmp_path / "clip.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "clip.mp4")
    assert tree(tmp_path) == {}


ODD_NUMBERS = (
    "-1",
    "9" * 30,
    "9" * 4400,
    "x",
    "",
    "1,x",
    "nan",
    "1e999",
    "1\n2",
    "\u00ff",
    "0,512",
)
SPARSE = ["major", "minor", "name", "realsize", "map", "size", "numblocks", "offset", "numbytes"]
PAX_NAMES = (
    *(f"GNU.sparse.{name}" for name in SPARSE),
    "size",
    "mtime",
    "uid",
    "path",
    "hdrcharset",
)


@st.composite
def odd_tars(draw: st.DrawFn) -> bytes:
    """Tars with absurd headers, also with changed bytes whose checksum is right."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for _ in range(draw(st.integers(0, 3))):
            content = bytes(draw(st.integers(0, 1500)))
            info = tarfile.TarInfo(draw(st.sampled_from(["a.mp4", "x" * 150 + ".mp4", "é.mp4"])))
            info.size = len(content)
            pairs = st.tuples(st.sampled_from(PAX_NAMES), st.sampled_from(ODD_NUMBERS))
            info.pax_headers = dict(draw(st.lists(pairs, max_size=4)))
            info.type = draw(
                st.sampled_from([tarfile.REGTYPE] * 4 + [b"S", b"L", b"K", b"x", b"g"])
            )
            with contextlib.suppress(ValueError):
                tar.addfile(info, io.BytesIO(content))
    data = bytearray(buffer.getvalue())
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)))):
        at = place % len(data)
        data[at] = byte
        header = at - at % 512
        data[header + 148 : header + 156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    return bytes(data)


def save_all(data: bytes, path: Path) -> None:
    """As a source does: a claimed size of 1 GiB must not be read at once."""
    with contextlib.suppress(SourceError):
        for member in tar_stream.videos(Raw(data)):
            member.save(path)


@pytest.mark.parametrize("num_tars", [300, pytest.param(10_000, marks=pytest.mark.full)])
def test_no_tar_is_a_crash(num_tars: int, tmp_path: Path) -> None:
    @given(odd_tars())
    @settings(max_examples=num_tars, deadline=None)
    def run(data: bytes) -> None:
        save_all(data, tmp_path / "clip.mp4")

    run()


@pytest.mark.parametrize("size", [2**20 + 1, tar_stream.MAX_MEMBER_BYTES])
def test_a_member_shorter_than_it_claims_is_damaged(size: int, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.mp4")
    info.size = size
    videos = tar_stream.videos(Raw(info.tobuf() + bytes(5000)))
    with pytest.raises(SourceError, match="damaged archive: unexpected end of data"):
        next(videos).save(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data",
    [bytes(100_000), tarball([], compressed=False), gzip.compress(bytes(10_240), mtime=0)],
    ids=["zeros", "empty", "packed"],
)
def test_a_tar_of_zeros_is_damaged(data: bytes) -> None:
    with pytest.raises(SourceError, match="damaged archive: no member") as caught:
        stems(data)
    assert caught.value.reason is Reason.DAMAGED


def test_a_chain_of_headers_is_damaged() -> None:
    info = tarfile.TarInfo("a.mp4")
    header = info.create_pax_global_header({"comment": "x"})
    with pytest.raises(SourceError, match="damaged archive"):
        stems(header * 5000)
