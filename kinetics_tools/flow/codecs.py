"""How flow codes become bytes in a shard: the codecs by name.

NumPy is only named here, in types: command lines read CODECS before anything heavy is imported.
"""

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kinetics_tools.core.errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Codes = npt.NDArray[np.uint8]


class Codec(Protocol):
    """A way to store the flow of a clip."""

    @property
    def ext(self) -> str:
        """What the member's name ends with in a shard, after `<key>.flow.`."""

    def stores(self, height: int, width: int) -> bool:
        """Whether it stores fields so large, in pixels."""

    def as_json(self) -> dict[str, Any]:
        """Everything that decides the bytes, versions included, as plain JSON values."""

    def encode(self, codes: "Iterable[Codes]") -> bytes:
        """Turn fields of codes, uint8 (H, W, 2) each, one at least, into bytes; the same each time.

        The fields are read one by one.

        Raises:
            MediaError: fields that are too large.
        """

    def decode(self, data: bytes, indices: Sequence[int] | None) -> "Codes":
        """Read fields by number, from 0, in any order, or all with None: uint8 (N, H, W, 2).

        Raises:
            MediaError: damaged bytes, or a number past the end.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCodec:
    """A video of one grey picture a field, the codes of x over those of y, each a keyframe.

    Attributes:
        ext: as in `Codec`.
        encoder: FFmpeg's name.
        container: FFmpeg's name.
        options: of the encoder, as FFmpeg names them.
        max_side_px: of a field; the picture is twice as high.
        max_px: pixels of a field.
    """

    ext: str
    encoder: str
    container: str
    options: Mapping[str, str] = field(hash=False)
    max_side_px: int = 2**13  # x264 takes pictures of up to 2**14 a side
    max_px: int = 2**25  # 8K; with 7680x7680 FFV1 has more slices than FFmpeg reads

    def as_json(self) -> dict[str, Any]:
        """See `Codec`."""
        from kinetics_tools.media import gray

        return {
            "encoder": self.encoder,
            "container": self.container,
            "options": dict(self.options),
            "picture": "grey, x over y",
            "versions": gray.encoder_versions(self.encoder),
        }

    def stores(self, height: int, width: int) -> bool:
        """See `Codec`."""
        return max(height, width) <= self.max_side_px and height * width <= self.max_px

    def encode(self, codes: "Iterable[Codes]") -> bytes:
        """See `Codec`."""
        from kinetics_tools.media import gray

        return gray.encode_gray(
            (field.transpose(2, 0, 1).reshape(-1, field.shape[1]) for field in codes),
            encoder=self.encoder,
            container=self.container,
            options=self.options,
        )

    def decode(self, data: bytes, indices: Sequence[int] | None) -> "Codes":
        """See `Codec`."""
        from kinetics_tools.media import gray

        pictures = gray.decode_gray(data, indices)
        num, rows, width = pictures.shape
        return pictures.reshape(num, 2, rows // 2, width).transpose(0, 2, 3, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegCodec:
    """What I3D's authors store: a JPEG a field, red x, green y, blue 0; here together in a zip.

    The JPEG is OpenCV's with its own defaults, and so has 4:2:0 sampling: MediaPipe's graph
    `tvl1_flow_and_rgb_from_file` gives the picture to `cv::imencode` with only the quality said.
    The zip is not compressed further; its members are 00000.jpg, 00001.jpg and so on.

    Attributes:
        ext: as in `Codec`.
        quality: of JPEG, up to 100.
        max_side_px: of a field; OpenCV reads no picture of more than 2**30 pixels.
    """

    ext: str
    quality: int
    max_side_px: int = 2**15

    def as_json(self) -> dict[str, Any]:
        """See `Codec`."""
        from kinetics_tools.media import opencv

        return {
            "encoder": "jpeg",
            "container": "zip",
            "options": {"quality": self.quality, "sampling": "4:2:0"},
            "picture": "red x, green y, blue 0",
            "versions": {"opencv": opencv.VERSION},
        }

    def stores(self, height: int, width: int) -> bool:
        """See `Codec`."""
        return max(height, width) <= self.max_side_px

    def encode(self, codes: "Iterable[Codes]") -> bytes:
        """See `Codec`."""
        import numpy as np

        from kinetics_tools.media import opencv

        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as members:
            for number, each in enumerate(codes):
                picture = np.concatenate([each, np.zeros_like(each[..., :1])], -1)
                about = zipfile.ZipInfo(_jpeg_name(number))  # its time is that of 1980
                about.external_attr = 0o644 << 16
                members.writestr(about, opencv.encode_jpeg(picture, quality=self.quality))
        return buffer.getvalue()

    def decode(self, data: bytes, indices: Sequence[int] | None) -> "Codes":
        """See `Codec`."""
        import numpy as np

        from kinetics_tools.media import opencv

        here = Path("<bytes>")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as members:
                total = len(members.namelist())
                wanted = range(total) if indices is None else indices
                past = [number for number in wanted if not 0 <= number < total]
                if past:
                    raise MediaError(here, f"has no frame {min(past)}")
                if not len(wanted):
                    raise MediaError(here, "holds no frame")
                pictures = {
                    number: opencv.decode_jpeg(members.read(_jpeg_name(number)))[..., :2]
                    for number in set(wanted)
                }
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise MediaError(here, f"cannot be decoded: {error}") from error
        return np.stack([pictures[number] for number in wanted])


def _jpeg_name(number: int) -> str:
    return f"{number:05d}.jpg"


DEFAULT_CODEC = "h264"
CODECS: Mapping[str, Codec] = {
    # The study that chose these values is benchmarks/speed/codec.py. Fields are noisy in time:
    # what other fields could predict of one is not worth their dependence. What the eye would
    # like better (psychovisual choices, adaptive quantisation) is worse in numbers; deblocking
    # smears edges of motion, by up to 50 codes.
    DEFAULT_CODEC: VideoCodec(
        ext="mp4",
        encoder="libx264",
        container="mp4",
        options={
            "preset": "medium",
            "tune": "psnr",
            "crf": "10.6",
            "g": "1",
            "subq": "6",
            "trellis": "2",
            "x264-params": "no-mbtree=1:no-deblock=1",
        },
    ),
    # Lossless. Checksums in every slice: damage is an error, never a wrong vector. There are four
    # slices, and more where a picture is too large for that.
    "ffv1": VideoCodec(
        ext="mkv",
        encoder="ffv1",
        container="matroska",
        options={"level": "3", "g": "1", "slicecrc": "1"},
    ),
    "jpeg": JpegCodec(ext="zip", quality=100),
}


def too_large_for(height: int, width: int) -> tuple[str, ...]:
    """Names of the codecs that do not store fields so large, in pixels."""
    return tuple(name for name, codec in CODECS.items() if not codec.stores(height, width))
