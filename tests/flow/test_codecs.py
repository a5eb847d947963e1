import io
import tarfile
import zipfile

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_tools.core.errors import MediaError
from kinetics_tools.flow import codecs
from kinetics_tools.flow.codecs import CODECS, DEFAULT_CODEC
from kinetics_tools.flow.methods import FlowRecipe
from kinetics_tools.media import opencv

LOSSLESS = ("ffv1",)
Codes = npt.NDArray[np.uint8]


def codes(num: int, height: int, width: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 2), np.uint8)


def motion(num: int, height: int, width: int) -> Codes:
    """Codes like those of flow: a still background, and a disc that turns and moves."""
    y, x = np.mgrid[:height, :width]
    fields = []
    for t in range(num):
        inside = np.hypot(y - height / 2, x - width / 3 - 2 * t) < height / 4
        u = np.where(inside, 3 + 0.05 * (y - height / 2), 0.0)
        v = np.where(inside, -0.05 * (x - width / 3), 0.02 * np.sin(x / 9))
        fields.append(np.stack([u, v], -1))
    return np.floor((np.stack(fields) + 20) * 255 / 40).astype(np.uint8)


def errors(name: str, stored: Codes) -> npt.NDArray[np.int64]:
    codec = CODECS[name]
    found = codec.decode(codec.encode(stored), None)
    assert (found.shape, str(found.dtype)) == (stored.shape, "uint8")
    return abs(found.astype(np.int64) - stored)


@pytest.mark.parametrize("name", LOSSLESS)
@given(data=st.data())
@settings(max_examples=25)
def test_lossless_codecs_give_every_code_back(name: str, data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 5))
    height, width = data.draw(st.tuples(st.integers(4, 40), st.integers(4, 40)))
    stored = codes(num, height, width)
    codec = CODECS[name]

    assert np.array_equal(codec.decode(codec.encode(stored), None), stored)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [(1, 4, 4), (1, 33, 5), (40, 4, 7), (3, 67, 95), (2, 256, 340)])
def test_any_size_and_number_of_fields_comes_back_nearly(
    name: str, size: tuple[int, int, int]
) -> None:
    error = errors(name, motion(*size))

    # The authors' JPEGs subsample colours and blur edges, and 4x4 pixels are all edge.
    assert error.mean() < (4 if name == "jpeg" else 0.5)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("code", [0, 127, 255])
def test_still_and_clamped_fields_come_back_exactly(name: str, code: int) -> None:
    # 1 for the authors' format, which rounds in the conversion of colours.
    assert errors(name, np.full((3, 20, 30, 2), code, np.uint8)).max() <= (name == "jpeg")


@pytest.mark.parametrize("name", CODECS)
def test_each_field_is_read_by_its_number_alone(name: str) -> None:
    codec = CODECS[name]
    data = codec.encode(codes(37, 12, 17))
    whole = codec.decode(data, None)

    for number in range(37):
        assert np.array_equal(codec.decode(data, [number]), whole[[number]])
    for numbers in ([36, 0, 16, 16, 3], [15, 17], range(5, 30, 7)):
        assert np.array_equal(codec.decode(data, numbers), whole[list(numbers)])


@pytest.mark.parametrize("name", CODECS)
def test_the_same_codes_give_the_same_bytes(name: str) -> None:
    stored = codes(3, 20, 30)

    assert CODECS[name].encode(stored) == CODECS[name].encode(iter(stored))


@pytest.mark.parametrize("name", CODECS)
def test_damage_and_a_number_past_the_end_are_errors(name: str) -> None:
    codec = CODECS[name]
    data = codec.encode(codes(6, 24, 32))
    with pytest.raises(MediaError, match="has no frame 6"):
        codec.decode(data, [6])
    with pytest.raises(MediaError):
        codec.decode(b"not a video" * 50, None)
    with pytest.raises(MediaError):
        codec.decode(data[: len(data) // 2], [5])


def test_the_default_is_smaller_than_the_jpegs_of_others_and_no_worse() -> None:
    """The outcome of benchmarks/speed/codec.py on real flow also holds on synthetic flow."""
    from kinetics_tools.media import opencv

    stored = motion(16, 128, 160)
    pairs = [
        opencv.encode_jpeg(np.ascontiguousarray(field[..., axis]), quality=95)
        for field in stored
        for axis in (0, 1)
    ]
    theirs = np.stack([opencv.decode_jpeg(jpeg) for jpeg in pairs]).reshape(16, 2, 128, 160)
    their_error = abs(theirs.transpose(0, 2, 3, 1).astype(int) - stored)

    error = errors(DEFAULT_CODEC, stored)

    assert len(CODECS[DEFAULT_CODEC].encode(stored)) < sum(map(len, pairs)) / 2
    assert error.mean() <= their_error.mean()
    assert np.percentile(error, 99) <= np.percentile(their_error, 99)


def test_the_default_is_a_video_of_keyframes_that_other_readers_open() -> None:
    stored = motion(20, 64, 80)
    data = CODECS[DEFAULT_CODEC].encode(stored)

    with av.open(io.BytesIO(data), "r") as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    with av.open(io.BytesIO(data), "r") as container:
        pictures = [
            frame.to_ndarray(format="gray", threads=1) for frame in container.decode(video=0)
        ]

    assert all(packet.is_keyframe for packet in packets)
    assert len(packets) == len(pictures) == 20
    found = np.stack(pictures).astype(int)
    assert abs(found[:, :64] - stored[..., 0]).max() < 12  # x over y
    assert abs(found[:, 64:] - stored[..., 1]).max() < 12


def test_the_authors_format_is_a_zip_of_colour_jpegs() -> None:
    stored = motion(3, 40, 60)

    with zipfile.ZipFile(io.BytesIO(CODECS["jpeg"].encode(stored))) as members:
        assert members.namelist() == ["00000.jpg", "00001.jpg", "00002.jpg"]
        jpeg = members.read("00001.jpg")
    with av.open(io.BytesIO(jpeg), "r") as container:
        picture = next(container.decode(video=0))

    assert picture.format.name == "yuvj420p"  # as cv::imencode makes it when only quality is set
    found = picture.to_ndarray(format="rgb24", threads=1).astype(int)
    assert abs(found[..., :2] - stored[1]).mean() < 2
    assert found[..., 2].mean() < 3


def test_a_zip_with_other_members_is_an_error() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        members.writestr("readme.txt", b"hello")
    with pytest.raises(MediaError, match="cannot be decoded"):
        CODECS["jpeg"].decode(buffer.getvalue(), None)

    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w"):
        pass
    with pytest.raises(MediaError, match="cannot be decoded"):
        CODECS["jpeg"].decode(other.getvalue(), [0])


@pytest.mark.parametrize("name", CODECS)
def test_the_longest_sides_that_a_codec_says_it_stores_come_back(name: str) -> None:
    codec = CODECS[name]
    longest = 2**15 if name == "jpeg" else 2**13
    for size in ((longest, 4), (4, longest)):
        assert codec.stores(*size)
        assert errors(name, np.full((1, *size, 2), 127, np.uint8)).max() <= (name == "jpeg")
    assert not codec.stores(longest + 1, 4)
    assert not codec.stores(4, longest + 1)


@pytest.mark.full
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [(4320, 7680), (7680, 4320), (2**13, 2**12), (5792, 5792)])
def test_8k_fields_come_back(name: str, size: tuple[int, int]) -> None:
    assert CODECS[name].stores(*size)
    assert errors(name, np.full((1, *size, 2), 127, np.uint8)).max() <= (name == "jpeg")


def test_fields_that_are_too_large_for_an_encoder_are_an_error() -> None:
    assert {"h264", "ffv1"} <= set(codecs.too_large_for(8400, 32)) <= CODECS.keys() - {"jpeg"}
    assert codecs.too_large_for(256, 340) == ()
    with pytest.raises(MediaError, match="4x16800 pixels cannot be encoded by libx264"):
        CODECS["h264"].encode(codes(1, 8400, 4))


def test_codecs_have_different_extensions() -> None:
    extensions = [codec.ext for codec in CODECS.values()]

    assert len(set(extensions)) == len(extensions)


def test_what_decides_the_bytes_is_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [FlowRecipe(method="tvl1", parameters={}, codec=name) for name in CODECS]
    changed = codecs.JpegCodec(ext="zip", quality=90)
    monkeypatch.setattr(codecs, "CODECS", {**CODECS, "jpeg": changed})
    monkeypatch.setattr("kinetics_tools.flow.methods.CODECS", codecs.CODECS)
    recipes.append(FlowRecipe(method="tvl1", parameters={}, codec="jpeg"))

    assert len({recipe.hash for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        told = recipe.as_json()["codec_parameters"]
        assert told["versions"]
        assert told["options"]


@pytest.mark.parametrize(
    "damage",
    ["deflate", "bzip2", "encrypted", "sizes differ", "empty", "a later version", "patched"],
)
def test_a_zip_that_may_expand_or_is_not_ours_is_an_error(damage: str) -> None:
    pictures = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)]
    if damage == "sizes differ":
        pictures[1] = np.zeros((8, 16, 3), np.uint8)
    how = {"deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how.get(damage, zipfile.ZIP_STORED)) as members:
        for number, picture in enumerate(pictures if damage != "empty" else []):
            members.writestr(f"{number:05d}.jpg", opencv.encode_jpeg(picture, quality=100))
    data = bytearray(buffer.getvalue())
    if damage == "encrypted":
        for at in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
            data[at] |= 1
    elif damage == "a later version":
        data[data.index(b"PK\1\2") + 6] = 99
    elif damage == "patched":
        for at in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
            data[at] |= 0x20
    for indices in (None, [0, 1]):
        with pytest.raises(MediaError):
            CODECS["jpeg"].decode(bytes(data), indices)
