import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_tools.codecs import CODECS
from kinetics_tools.errors import MediaError

LOSSLESS = ("ffv1",)


def codes(num: int, height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 2), np.uint8)


@pytest.mark.parametrize("name", LOSSLESS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_lossless_codecs_give_every_code_back(name: str, data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 5))
    height, width = data.draw(st.tuples(st.integers(4, 40), st.integers(4, 40)))
    indices = data.draw(st.lists(st.integers(0, num - 1), min_size=1, max_size=6))
    stored = codes(num, height, width)
    codec = CODECS[name]

    written = codec.encode(stored)

    assert np.array_equal(codec.decode(written, None), stored)
    assert np.array_equal(codec.decode(written, indices), stored[indices])


@pytest.mark.parametrize("name", CODECS)
def test_the_same_codes_give_the_same_bytes(name: str) -> None:
    assert CODECS[name].encode(codes(3, 20, 30)) == CODECS[name].encode(codes(3, 20, 30))


@pytest.mark.parametrize("name", CODECS)
def test_damage_and_a_number_past_the_end_are_errors(name: str) -> None:
    codec = CODECS[name]
    data = codec.encode(codes(6, 24, 32))
    with pytest.raises(MediaError, match="has no frame 6"):
        codec.decode(data, [6])
    with pytest.raises(MediaError):
        codec.decode(b"not a video" * 50, None)


def test_codecs_name_different_extensions() -> None:
    extensions = [codec.ext for codec in CODECS.values()]

    assert len(set(extensions)) == len(extensions)
