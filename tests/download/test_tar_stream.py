"""Tars as they come: hostile names, odd members, damage of every kind; nothing else is written."""

import bz2
import gzip
import io
import lzma
import resource
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
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


@given(st.lists(st.tuples(names, st.binary(max_size=50)), max_size=6))
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
