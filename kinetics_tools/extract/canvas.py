"""A picture of panels, which keep every pixel, and text between them: drawn by matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import FigureImage
from matplotlib.text import Text

Pixels = npt.NDArray[np.uint8]

INK, FAINT = "#1c1c1c", "#6b6b6b"
TEXT_PX = 13
_EDGE = 214  # grey of the line around a panel
_DPI = 100
_POINT_PX = _DPI / 72


class Board:
    """A white picture of so many pixels. Places are (x, y) from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._figure = Figure((width / _DPI, height / _DPI), dpi=_DPI)
        self._canvas = FigureCanvasAgg(self._figure)

    def write(
        self,
        place: tuple[float, float],
        text: str,
        *,
        size: float = TEXT_PX,
        colour: str = INK,
        align: Literal["left", "center", "right"] = "left",
        bold: bool = False,
    ) -> Text:
        """Put one line of text, `size` pixels high, whose middle height is at `place`."""
        return self._figure.text(
            place[0] / self.width,
            1 - place[1] / self.height,
            text,
            fontsize=size / _POINT_PX,
            color=colour,
            ha=align,
            va="center_baseline",
            weight="bold" if bold else "normal",
            parse_math=False,
        )

    def paste(self, pixels: Pixels, place: tuple[int, int], *, framed: bool = True) -> FigureImage:
        """Put uint8 (h, w, 3) with its upper left pixel at `place`, with a fine line around it."""
        x, y = place
        height, width, _ = pixels.shape
        if framed:
            line = np.full((height + 2, width + 2, 3), _EDGE, np.uint8)
            self.paste(line, (x - 1, y - 1), framed=False)
        return self._figure.figimage(pixels, x, self.height - y - height, origin="upper")

    def render(self) -> Pixels:
        """The picture as it is now: uint8 (height, width, 3), RGB."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # shown as a box
            self._canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib gives it no types
        buffer = self._canvas.buffer_rgba()  # type: ignore[no-untyped-call]  # nor this
        return np.asarray(buffer, np.uint8)[..., :3].copy()


def width_of(text: str, *, size: float = TEXT_PX, bold: bool = False) -> float:
    """About how many pixels wide `text` is on a board, with an error of at most 5 %."""
    font = get_font(findfont(FontProperties(weight="bold" if bold else "normal")))
    font.set_size(size / _POINT_PX, _DPI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        font.set_text(text)
    return float(font.get_width_height()[0]) / 64  # in 1/64 pixel


def shorten(text: str, width: float, *, size: float = TEXT_PX, bold: bool = False) -> str:
    """`text`, with an ellipsis for its middle if it is wider than `width` pixels."""
    short = text
    for most in range(len(text) - 1, 1, -1):
        if width_of(short, size=size, bold=bold) <= width:
            break
        head = most // 2
        short = f"{text[:head]}…{text[len(text) - most + head :]}"
    return short


def fit(size: Sequence[int], *, at_least: int, at_most: int) -> tuple[int, int]:
    """The whole factors by which to enlarge and to reduce a picture; one of the two is 1.

    Args:
        size: height and width.
        at_least: pixels of the shorter side, as nearly as whole factors allow.
        at_most: pixels of the longer side; this limit goes first.
    """
    if max(size) > at_most:
        return 1, -(-max(size) // at_most)
    return max(min(round(at_least / min(size)), at_most // max(size)), 1), 1


def resize(pixels: Pixels, scale: tuple[int, int]) -> Pixels:
    """Enlarge uint8 (h, w, 3) by repeating pixels, then reduce it by averaging blocks of them."""
    up, down = scale
    if up > 1:
        return pixels.repeat(up, axis=0).repeat(up, axis=1)
    if down == 1:
        return pixels
    height, width = (max(side // down, 1) for side in pixels.shape[:2])
    blocks = pixels[: height * down, : width * down]
    high, wide = blocks.shape[0] // height, blocks.shape[1] // width
    means = blocks[: height * high, : width * wide].reshape(height, high, width, wide, 3)
    reduced: Pixels = means.mean(axis=(1, 3)).round().astype(np.uint8)
    return reduced
