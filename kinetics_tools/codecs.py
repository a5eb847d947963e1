"""How flow codes become bytes in a shard: the codecs by name.

NumPy is only named here, in types: command lines read CODECS before anything heavy is imported.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to store the flow of a clip.

    Attributes:
        ext: what the member's name ends with in a shard, after `<key>.flow.`.
        encode: fields of codes, uint8 (H, W, 2) each, one at least, to bytes; the same each time.
        decode: back, given the numbers of the fields wanted, from 0, in any order, or None for all.
            It raises MediaError for damaged bytes and for a number past the end.
    """

    ext: str
    encode: "Callable[[Iterable[Codes]], bytes]"
    decode: "Callable[[bytes, Sequence[int] | None], Codes]"


def _encode_ffv1(codes: "Iterable[Codes]") -> bytes:
    from kinetics_tools import media

    # One grey picture a field, x over y: it stays one stream, and readers seek in it by time.
    return media.encode_gray(
        field.transpose(2, 0, 1).reshape(-1, field.shape[1]) for field in codes
    )


def _decode_ffv1(data: bytes, indices: Sequence[int] | None) -> "Codes":
    from kinetics_tools import media

    pictures = media.decode_gray(data, indices)
    num, rows, width = pictures.shape
    return pictures.reshape(num, 2, rows // 2, width).transpose(0, 2, 3, 1)


CODECS: Mapping[str, Codec] = {
    "ffv1": Codec("mkv", _encode_ffv1, _decode_ffv1),  # lossless
}
