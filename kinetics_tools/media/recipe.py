"""The recipe of clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kinetics_tools.core.errors import lookup
from kinetics_tools.core.schema import Count, Pixels, Positive, parse_exactly

SCALERS: Mapping[str, str] = {
    "bilinear": "as Kinetics' authors",
    "bicubic": "as version 0.1, which also kept the shape of pixels",
}
# Parameters that earlier versions did not record, as they had only this value.
_UNNAMED: Mapping[str, Any] = {"scaler": "bicubic", "encoding": "compact"}


@dataclass(frozen=True, slots=True)
class Encoding:
    """A way to encode the frames of a clip, relative to the other parameters of its recipe.

    Attributes:
        meaning: for users.
        more_crf: is added to the recipe's constant rate factor.
        options: of ffmpeg's x264.
    """

    meaning: str
    more_crf: float = 0
    options: Mapping[str, str] = field(default_factory=dict)


# benchmarks/speed/encoding.py measured other ways. Without deblocking, decoding is faster still,
# but the same SSIM takes more bytes, or keyframes so far apart that short views decode more.
ENCODINGS: Mapping[str, Encoding] = {
    "compact": Encoding("x264's CABAC"),
    "fastdecode": Encoding(
        "CAVLC, decoded 1.5 times as fast, 1.2 times the bytes",
        more_crf=-0.5,  # for CAVLC's slightly lower SSIM
        options={"coder": "vlc"},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecipe:
    """Every parameter that changes a pixel of a clip.

    Attributes:
        fps: constant rate of the clip.
        short_side: pixels of the shorter side; None keeps the size.
        enlarge: whether a smaller video is enlarged to `short_side`.
        keep_original: keeps size and times, whatever the three above say.
        scaler: a name in SCALERS.
        encoding: a name in ENCODINGS.
        keep_audio: keeps the default audio track, as AAC.
        crf: x264's constant rate factor; its authors call 18 visually lossless.
        preset: x264's preset, which trades time for size.
        keyframe_interval: frames from one keyframe to the next, at most; for random access.
        ffmpeg: version of the ffmpeg program.
    """

    fps: Positive = 25
    short_side: Pixels | None = 256
    enlarge: bool = False
    scaler: str = "bilinear"
    keep_original: bool = False
    keep_audio: bool = False
    crf: Count = 18
    preset: str = "medium"
    keyframe_interval: Positive = 16
    encoding: str = "compact"
    ffmpeg: str = ""

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values; where version 0.1 made the same clips, its values."""
        return dict(each for each in asdict(self).items() if each not in _UNNAMED.items())

    def x264_options(self) -> dict[str, str | int | float]:
        """How x264 encodes, in ffmpeg's words.

        Raises:
            UnknownNameError: there is no such encoding.
        """
        encoding = lookup("encoding", self.encoding, ENCODINGS)
        return {
            "preset": self.preset,
            "crf": max(self.crf + encoding.more_crf, 0),
            "g": self.keyframe_interval,
            **encoding.options,
        }

    @property
    def coder(self) -> str | None:
        """The entropy coder of clips in this form, as `Video` names it; None where any will do."""
        return lookup("encoding", self.encoding, ENCODINGS).options.get("coder")

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ClipRecipe:
        """The recipe of which `as_json` gave these values, in this version or an earlier one.

        Raises:
            ValueError: a field is unknown, or is not what it may be.
        """
        return parse_exactly(all_parameters(values), ClipRecipe)


def all_parameters(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What `ClipRecipe.as_json` gave, with the parameters that it does not name."""
    return {**_UNNAMED, **recorded}
