"""Videos and pictures: the only code that uses ffmpeg, PyAV and OpenCV.

    from fractions import Fraction
    from pathlib import Path
    from kinetics_tools import media

    media.cut(Path("video.mp4"), Path("clip.mp4"), start_s=Fraction(6), end_s=Fraction(16),
              recipe=media.ClipRecipe(), binary=media.find_ffmpeg())

`cut` makes a clip of a segment of a video, `conform` of a whole video; `probe` and `count_frames`
read one. Names that are not in `__all__` are private. PyAV and NumPy are imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinetics_tools.media.clips import Cut, conform, cut
    from kinetics_tools.media.decode import Video, count_frames, probe
    from kinetics_tools.media.encode import find_ffmpeg
    from kinetics_tools.media.recipe import ClipRecipe

__all__ = ["ClipRecipe", "Cut", "Video", "conform", "count_frames", "cut", "find_ffmpeg", "probe"]

_OWNERS = {
    "clips": ("Cut", "conform", "cut"),
    "decode": ("Video", "count_frames", "probe"),
    "encode": ("find_ffmpeg",),
    "recipe": ("ClipRecipe",),
}


def __getattr__(name: str) -> Any:
    for module, names in _OWNERS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
