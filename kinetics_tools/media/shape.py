"""The size of a clip's pictures, and the shape and format of its pixels."""

import math
from dataclasses import dataclass
from fractions import Fraction

from kinetics_tools.media.decode import Video
from kinetics_tools.media.recipe import ClipRecipe


@dataclass(frozen=True, slots=True)
class Shape:
    """How the pictures of a video become those of a clip.

    Attributes:
        scaled: width and height to which they are scaled, in pixels.
        width: of the clip. An odd column of `scaled` is cut off, not squeezed in.
        height: of the clip.
        pixel_aspect: width of a pixel of the clip divided by its height; None for what ffmpeg makes
            of it.
    """

    scaled: tuple[int, int]
    width: int
    height: int
    pixel_aspect: Fraction | None

    @property
    def pixel_format(self) -> str:
        """yuv420p, which every player knows; it cannot have odd sides."""
        return "yuv444p" if self.width % 2 or self.height % 2 else "yuv420p"


def clip_shape(video: Video, recipe: ClipRecipe) -> Shape:
    """The shape of the clips that a recipe makes of a video.

    Their sides are even, as chroma planes have half the size, unless the original is kept.
    """
    if recipe.keep_original:
        size = video.width, video.height
        return Shape(size, *size, video.pixel_aspect)
    if recipe.scaler == "bicubic":  # all as in version 0.1: an odd column was squeezed in
        width, height = _scaled(Fraction(video.width), Fraction(video.height), recipe)
        return Shape((width, height), width, height, None)
    stored = max(video.width, 2), max(video.height, 2)
    if recipe.short_side is None:
        return Shape(stored, _even(stored[0]), _even(stored[1]), video.pixel_aspect)
    shown = video.width * video.pixel_aspect, Fraction(video.height)
    scaled = stored if _keeps(shown, video, recipe) else _scaled(*shown, recipe)
    return Shape(scaled, _even(scaled[0]), _even(scaled[1]), Fraction(1))


def _keeps(shown: tuple[Fraction, Fraction], video: Video, recipe: ClipRecipe) -> bool:
    return video.pixel_aspect == 1 and _scale(min(shown), recipe) == 1


def _scale(smaller: Fraction, recipe: ClipRecipe) -> Fraction:
    scale = Fraction(1) if recipe.short_side is None else recipe.short_side / smaller
    return scale if scale < 1 or recipe.enlarge else Fraction(1)


def _scaled(width: Fraction, height: Fraction, recipe: ClipRecipe) -> tuple[int, int]:
    scale = _scale(min(width, height), recipe)
    if scale == width.denominator == height.denominator == 1:
        return _even(int(width)), _even(int(height))
    return _nearest_even(width * scale), _nearest_even(height * scale)


def _even(side: int) -> int:
    return max(side // 2 * 2, 2)


def _nearest_even(side: Fraction) -> int:
    return 2 * max(math.floor(side / 2 + Fraction(1, 2)), 1)
