"""A picture of panels, which keep every pixel, and text between them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

Pixels = npt.NDArray[np.uint8]

INK, FAINT = "#1c1c1c", "#6b6b6b"
TEXT_PX = 13
_EDGE = 214  # grey of the line around a panel
_DPI = 100
_POINT_PX = _DPI / 72


@dataclass(frozen=True, slots=True)
class _Text:
    x: float
    y: float
    text: str
    size: float
    colour: str
    align: Literal["left", "center", "right"]
    bold: bool


@dataclass(slots=True)
class Board:
    """A white board of so many pixels. Places are (x, y) from its upper left corner."""

    width: int
    height: int
    _texts: list[_Text] = field(default_factory=list)
    _panels: list[tuple[Pixels, int, int]] = field(default_factory=list)

    def write(
        self,
        place: tuple[float, float],
        text: str,
        *,
        size: float = TEXT_PX,
        colour: str = INK,
        align: Literal["left", "center", "right"] = "left",
        bold: bool = False,
    ) -> None:
        """Put one line of text, as tall as `size` pixels, whose middle height is at `place`."""
        self._texts.append(_Text(*place, text, size, colour, align, bold))

    def paste(self, pixels: Pixels, place: tuple[int, int], *, framed: bool = True) -> None:
        """Put uint8 (h, w, 3) with its upper left pixel at `place`, with a fine line around it."""
        x, y = place
        if framed:
            height, width, _ = pixels.shape
            line = np.full((height + 2, width + 2, 3), _EDGE, np.uint8)
            self._panels.append((line, x - 1, y - 1))
        self._panels.append((pixels, x, y))

    def render(self) -> Pixels:
        """The board: uint8 (height, width, 3), RGB. Panels lie above the text."""
        figure = Figure((self.width / _DPI, self.height / _DPI), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        for text in self._texts:
            figure.text(
                text.x / self.width,
                1 - text.y / self.height,
                text.text,
                fontsize=text.size / _POINT_PX,
                color=text.colour,
                ha=text.align,
                va="center_baseline",
                weight="bold" if text.bold else "normal",
                parse_math=False,
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # shown as a box
            canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib gives it no types
        buffer = canvas.buffer_rgba()  # type: ignore[no-untyped-call]  # nor this
        drawn = np.asarray(buffer, np.uint8)[..., :3].copy()
        for pixels, x, y in self._panels:
            put(drawn, pixels, (x, y))
        return drawn


def put(onto: Pixels, pixels: Pixels, place: tuple[int, int]) -> None:
    """Copy uint8 (h, w, 3) into a larger picture, its upper left pixel at `place` (x, y)."""
    x, y = place
    height, width, _ = pixels.shape
    onto[y : y + height, x : x + width] = pixels


def width_of(text: str, *, size: float = TEXT_PX, bold: bool = False) -> float:
    """About how many pixels wide `text` is on a board: to one in twenty."""
    font = get_font(findfont(FontProperties(weight="bold" if bold else "normal")))
    font.set_size(size / _POINT_PX, _DPI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        font.set_text(text)
    return float(font.get_width_height()[0]) / 64  # it counts in shares of a pixel


def shorten(text: str, width: float, *, size: float = TEXT_PX, bold: bool = False) -> str:
    """`text`, with its middle left out where it would be wider than `width` pixels."""
    short = text
    for most in range(len(text) - 1, 1, -1):
        if width_of(short, size=size, bold=bold) <= width:
            break
        head = most // 2
        short = f"{text[:head]}…{text[len(text) - most + head :]}"
    return short


def fit(size: Sequence[int], *, at_least: int, at_most: int) -> tuple[int, int]:
    """By what whole numbers to enlarge and to reduce (height, width); one of the two is 1.

    Args:
        size: height and width.
        at_least: pixels that the shorter side is to have, as nearly as whole numbers allow.
        at_most: pixels that the longer side may have; it comes first.
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
