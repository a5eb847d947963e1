"""The recipe of clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kinetics_tools.core.schema import Count, Pixels, Positive, parse_exactly

SCALERS: Mapping[str, str] = {
    "bilinear": "as Kinetics' authors",
    "bicubic": "as version 0.1, which also kept the shape of pixels",
}
_UNNAMED: Mapping[str, Any] = {"scaler": "bicubic"}  # parameters that 0.1 did not record


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecipe:
    """Every parameter that changes a pixel of a clip.

    Attributes:
        fps: constant rate of the clip.
        short_side: pixels of the shorter side; None keeps the size.
        enlarge: whether a smaller video is enlarged to `short_side`.
        keep_original: keeps size and times, whatever the three above say.
        scaler: a name in SCALERS.
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
    ffmpeg: str = ""

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values; where version 0.1 made the same clips, its values."""
        return dict(each for each in asdict(self).items() if each not in _UNNAMED.items())

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ClipRecipe:
        """The recipe of which `as_json` gave these values, in this version or an earlier one.

        Raises:
            ValueError: a field is unknown, or is not what it may be.
        """
        return parse_exactly(all_parameters(values), ClipRecipe)


def all_parameters(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What `ClipRecipe.as_json` gave, with the parameters that 0.1 had without naming them."""
    return {**_UNNAMED, **recorded}
