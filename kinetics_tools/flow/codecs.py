"""How the flow codes of a clip become bytes in a shard: the codecs by name.

NumPy is imported for types only: command lines read CODECS before anything heavy is imported.
"""

from __future__ import annotations

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

    from kinetics_tools.media.decode import Window

    Codes = npt.NDArray[np.uint8]


class Codec(Protocol):
    """A way to store the flow of a clip."""

    @property
    def ext(self) -> str:
        """The extension of the member in a shard, after `<key>.flow.`."""

    def stores(self, height: int, width: int) -> bool:
        """Return whether it can store fields of this size, in pixels.

        A clip too large for one codec of CODECS is a gap with each of them, so that two flows of
        a folder have the same samples.
        """

    def as_json(self) -> dict[str, Any]:
        """Return everything that decides the bytes, as plain JSON values.

        `options` are those of the encoder, `versions` those of its libraries, by name.
        """

    def encode(self, codes: Iterable[Codes]) -> bytes:
        """Return the fields of a clip as bytes; equal fields give equal bytes.

        Args:
            codes: uint8 (H, W, 2), at least one field; they are read one by one.

        Raises:
            MediaError: the fields are too large.
        """

    def decode(
        self, data: bytes, indices: Sequence[int] | None, window: Window | None = None
    ) -> Codes:
        """Return the fields of a clip, or a part of each: uint8 (N, H, W, 2).

        Args:
            data: what `encode` returned.
            indices: which fields, from 0, in any order; None for all.
            window: which part of each field; None for all of it.

        Raises:
            MediaError: the bytes are damaged, or an index is past the end.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCodec:
    """A video of one grey picture per field, the codes of x above those of y, all keyframes.

    Attributes:
        ext: the extension of the member in a shard.
        encoder: FFmpeg's name of it.
        container: FFmpeg's name of it.
        options: of the encoder, as FFmpeg names them.
        max_side_px: largest height or width of a field; the picture is twice as high.
        max_px: largest area of a field.
    """

    ext: str
    encoder: str
    container: str
    options: Mapping[str, str] = field(hash=False)
    max_side_px: int = 2**13  # x264 takes pictures of up to 2**14 per side
    max_px: int = 2**25  # 8K; with 7680x7680 FFV1 has more slices than FFmpeg reads

    def as_json(self) -> dict[str, Any]:
        """Return the encoder, its options and the versions of FFmpeg's libraries."""
        from kinetics_tools.media import gray

        return {
            "encoder": self.encoder,
            "container": self.container,
            "options": dict(self.options),
            "picture": "grey, x over y",
            "versions": gray.encoder_versions(self.encoder),
        }

    def stores(self, height: int, width: int) -> bool:
        """Return whether a field of this size, in pixels, can be stored."""
        return max(height, width) <= self.max_side_px and height * width <= self.max_px

    def encode(self, codes: Iterable[Codes]) -> bytes:
        """Return the video of fields, uint8 (H, W, 2) each. Raises MediaError as in `Codec`."""
        from kinetics_tools.media import gray

        return gray.encode_gray(
            (field.transpose(2, 0, 1).reshape(-1, field.shape[1]) for field in codes),
            encoder=self.encoder,
            container=self.container,
            options=self.options,
        )

    def decode(
        self, data: bytes, indices: Sequence[int] | None, window: Window | None = None
    ) -> Codes:
        """Return fields, uint8 (N, H, W, 2); in memory x and y are apart. As in `Codec`."""
        from kinetics_tools.media import gray

        return gray.decode_gray(data, indices, window, parts=2).transpose(0, 2, 3, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegCodec:
    """The format of I3D's authors: one JPEG per field, red x, green y, blue 0; here in one zip.

    The JPEG is made with OpenCV's defaults, so its sampling is 4:2:0: MediaPipe's graph
    `tvl1_flow_and_rgb_from_file` passes the picture to `cv::imencode` and sets the quality only.
    The zip does not compress; its members are 00000.jpg, 00001.jpg and so on.

    Attributes:
        ext: the extension of the member in a shard.
        quality: of JPEG, up to 100.
        max_side_px: largest height or width of a field; OpenCV reads at most 2**30 pixels.
    """

    ext: str
    quality: int
    max_side_px: int = 2**15

    def as_json(self) -> dict[str, Any]:
        """Return the quality, the layout and the version of OpenCV."""
        from kinetics_tools.media import opencv

        return {
            "encoder": "jpeg",
            "container": "zip",
            "options": {"quality": self.quality, "sampling": "4:2:0"},
            "picture": "red x, green y, blue 0",
            "versions": {"opencv": opencv.VERSION},
        }

    def stores(self, height: int, width: int) -> bool:
        """Return whether a field of this size, in pixels, can be stored."""
        return max(height, width) <= self.max_side_px

    def encode(self, codes: Iterable[Codes]) -> bytes:
        """Return the zip of fields, uint8 (H, W, 2) each."""
        import numpy as np

        from kinetics_tools.media import opencv

        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as members:
            for number, each in enumerate(codes):
                picture = np.concatenate([each, np.zeros_like(each[..., :1])], -1)
                about = zipfile.ZipInfo(_jpeg_name(number))  # its time is 1980, whatever the clock
                about.external_attr = 0o644 << 16
                members.writestr(about, opencv.encode_jpeg(picture, quality=self.quality))
        return buffer.getvalue()

    def decode(
        self, data: bytes, indices: Sequence[int] | None, window: Window | None = None
    ) -> Codes:
        """Return fields, uint8 (N, H, W, 2). As in `Codec`."""
        from kinetics_tools.media import opencv
        from kinetics_tools.media.decode import Gathering

        here = Path("<bytes>")
        gathered = Gathering(here, indices, window)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as members:
                total = len(members.namelist())
                for each in members.infolist():  # or it may expand to anything
                    if each.compress_type != zipfile.ZIP_STORED or each.flag_bits & _ENCRYPTED:
                        raise MediaError(here, f"{each.filename!r} in it is compressed")
                wanted = range(total) if indices is None else indices
                past = [number for number in wanted if not 0 <= number < total]
                if past:
                    raise MediaError(here, f"has no frame {min(past)}")
                for number in sorted(set(wanted)):
                    picture = opencv.decode_jpeg(members.read(_jpeg_name(number)))
                    gathered.add(number, picture[..., :2])
        except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, EOFError) as error:
            raise MediaError(here, f"cannot be decoded: {error}") from error
        return gathered.result()


_ENCRYPTED = 1  # of a zip's member, in its flags


def _jpeg_name(number: int) -> str:
    return f"{number:05d}.jpg"


DEFAULT_CODEC = "h264"
CODECS: Mapping[str, Codec] = {
    # benchmarks/speed/codec.py measured these values. Fields are noisy in time: predicting a field
    # from others saves too little to make it depend on them. Options that please the eye
    # (psychovisual choices, adaptive quantisation) make errors larger; deblocking blurs the edges
    # of motion, by up to 50 codes.
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
    # Lossless. Every slice has a checksum: damage is an error, never a wrong vector. There are four
    # slices, or more for large pictures.
    "ffv1": VideoCodec(
        ext="mkv",
        encoder="ffv1",
        container="matroska",
        options={"level": "3", "g": "1", "slicecrc": "1"},
    ),
    "jpeg": JpegCodec(ext="zip", quality=100),
}


def too_large_for(height: int, width: int) -> tuple[str, ...]:
    """Return the names of the codecs that cannot store fields of this size, in pixels."""
    return tuple(name for name, codec in CODECS.items() if not codec.stores(height, width))
