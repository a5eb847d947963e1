"""A clip beside its flow in colours: a sheet of some moments, or a film of all of them.

The flow is the one that would be computed for a sample, before it is clamped and stored in bytes:
the clip is first brought to the size and rate of samples, and flow is computed from the frames that
the result decodes to. (A part of a clip is encoded without the rest, which changes grey values
slightly.) A film is drawn moment by moment: a long clip takes no more memory.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import numpy as np
import numpy.typing as npt

from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.core.files import publish
from kinetics_tools.extract.canvas import FAINT, Board, fit, resize, shorten, width_of
from kinetics_tools.extract.flow_colours import colours, ramp, wheel
from kinetics_tools.extract.plan import MIN_FRAMES, MIN_SIDE_PX
from kinetics_tools.flow.methods import find_devices, make_method, stream
from kinetics_tools.media import decode, encode
from kinetics_tools.media.clips import conform, conforming_frames
from kinetics_tools.media.opencv import gray
from kinetics_tools.media.recipe import ClipRecipe

Frame = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]

FPS = 25  # of a recipe's clips, and of films
MIN_FULL_PX = 0.5  # so that the noise of a still clip is not shown in full colour
MIN_DIFFERENCE_PX = 0.1
SHOWN_PERCENTILE = 99
_NICE = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
_NUM_SPEEDS = 2**16  # per field, that the scale is chosen from
_NUM_SCALE_MOMENTS = 12  # of a film, that the scale is chosen from


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A frame and its flow to the next one.

    Attributes:
        number: of the frame, from 0.
        frame: uint8 (H, W, 3), RGB.
        flows: float32 (H, W, 2) each, pixels per frame; one per method, one or two.
    """

    number: int
    frame: Frame
    flows: tuple[Flow, ...]

    @property
    def difference(self) -> Flow | None:
        """Length of the second flow minus the first: float32 (H, W), pixels; None for one flow."""
        if len(self.flows) == 1:
            return None
        px: Flow = np.linalg.norm(self.flows[1] - self.flows[0], axis=-1)
        return px

    @property
    def mean_difference(self) -> float | None:
        """The mean of `difference`, pixels; None for one flow."""
        px = self.difference
        return None if px is None else float(px.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Some moments of a clip, as many as in every other strip of a sheet.

    Attributes:
        title: of the clip.
        names: of its flows.
        moments: in order.
    """

    title: str
    names: tuple[str, ...]
    moments: Sequence[Moment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What the strongest colours mean.

    Attributes:
        full_px: speed of full saturation, pixels per frame.
        difference_px: difference of two flows at the last colour of the ramp, pixels.
    """

    full_px: float
    difference_px: float

    @classmethod
    def of(cls, moments: Iterable[Moment], full_px: float | None = None) -> Scale:
        """The scale on which 99 of 100 vectors of these moments can be told apart.

        Args:
            moments: at least one.
            full_px: speed of full saturation; None to choose it.
        """
        speeds, differences = [], [np.zeros(1, np.float32)]
        for moment in moments:
            for field in moment.flows:
                some = field.reshape(-1, 2)[:: len(field) * field.shape[1] // _NUM_SPEEDS + 1]
                speeds.append(np.linalg.norm(some, axis=-1))
            if moment.difference is not None:
                differences.append(moment.difference)
        fast, far = (
            float(np.percentile(np.concatenate([px.ravel() for px in found]), SHOWN_PERCENTILE))
            for found in (speeds, differences)
        )
        return cls(
            full_px=full_px or _nice(max(fast, MIN_FULL_PX)),
            difference_px=_nice(max(far, MIN_DIFFERENCE_PX)),
        )


def _nice(number: float) -> float:
    """The smallest round number that is not below `number`."""
    power = 10.0 ** math.floor(math.log10(number))
    return next(n for n in _NICE if n * power >= number * (1 - 1e-9)) * power


# Clips


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Some frames of a clip that has its recipe's size and rate.

    Attributes:
        path: of the clip, which may hold a part of the video only.
        start: number of the first frame, in the clip at `path`.
        num_frames: at least two.
        number: of the first frame, in a clip that holds all of the video.
    """

    path: Path
    start: int
    num_frames: int
    number: int


@contextmanager
def open_clip(
    clip: Path, recipe: ClipRecipe, *, start: int, num_frames: int | None, tmp_dir: Path
) -> Iterator[Excerpt]:
    """Bring a video to a recipe's size and rate, for the block, unless it has them already.

    Args:
        clip: any video.
        recipe: of RGB samples.
        start: number of the first frame, at the recipe's rate.
        num_frames: at most so many; None for all.
        tmp_dir: folder for the scratch copy.

    Raises:
        MediaError: it is damaged, too small, or has fewer than two frames there.
    """
    with tempfile.TemporaryDirectory(prefix=".show-", dir=tmp_dir) as folder:
        total = conforming_frames(clip, recipe)
        if total:
            path, first, num = clip, start, total - start
        else:
            path, first = Path(folder, "clip.mp4"), 0
            num = conform(
                clip,
                path,
                recipe=recipe,
                binary=encode.find_ffmpeg(),
                start=start,
                num_frames=num_frames,
            ).num_frames
        video = decode.probe(path)
        if min(video.width, video.height) < MIN_SIDE_PX:
            detail = f"is {video.width}x{video.height} pixels; flow needs {MIN_SIDE_PX} a side"
            raise MediaError(clip, detail)
        num = max(min(num, num_frames or num), 0)
        if num < MIN_FRAMES:
            where = f" from frame {start} on" if start else ""
            detail = f"frames{where}: {num}; flow needs {MIN_FRAMES}"
            raise MediaError(clip, detail, reason=Reason.TOO_SHORT)
        yield Excerpt(path, first, num, start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """Some frames of a clip, and the flow between them.

    Attributes:
        title: of the clip.
        part: the frames.
        methods: names of one flow method, or of two.
        device: as `find_devices` takes it; the first of several.
        threads: that may compute on a CPU.
    """

    title: str
    part: Excerpt
    methods: tuple[str, ...]
    device: str = "auto"
    threads: int = 1

    @property
    def num_moments(self) -> int:
        """How many `moments` yields: one fewer than there are frames."""
        return self.part.num_frames - 1

    def moments(self) -> Iterator[Moment]:
        """Yield every moment, one by one; the last frame has no flow, and so is not a moment."""
        begin, num = self.part.start, self.part.num_frames
        frames = itertools.islice(decode.frames(self.part.path), begin, begin + num)
        shown, *copies = itertools.tee(frames, 1 + len(self.methods))
        flows = [self._flow(c, method) for c, method in zip(copies, self.methods, strict=True)]
        together = zip(shown, *flows, strict=False)  # there is one frame more than fields
        for number, (frame, *fields) in enumerate(together, start=self.part.number):
            yield Moment(number=number, frame=frame, flows=tuple(fields))

    def some(self, num: int) -> Iterator[Moment]:
        """Yield `num` moments at equal distances, or all of a short clip."""
        last = self.part.num_frames - 2
        num = min(num, last + 1)
        for i in range(num):
            number = (2 * i + 1) * (last + 1) // (2 * num)  # the middle of each of `num` shares
            at = self.part.start + number
            pair = decode.read_frames(self.part.path, [at, at + 1])
            fields = (next(self._flow(pair, method)) for method in self.methods)
            yield Moment(number=self.part.number + number, frame=pair[0], flows=tuple(fields))

    def _flow(self, frames: Iterable[Frame], method: str) -> Iterator[Flow]:
        device = find_devices(self.device, make_method(method))[0]
        return stream((gray(frame) for frame in frames), method, device, threads=self.threads)


# Pictures

DIFFERENCE = "difference"
_MARGIN = 18
_GAP = 12
_CAPTION = 26  # height of the line above a panel
_TITLE = 28  # height of the line above a strip
_TITLE_PX = 15
_WHEEL = 72
_RAMP = (140, 12)  # width, height
_NAMES = 104  # width of the column of names in a sheet
_SMALL = 11  # height of small text
_MIN_WIDTH = 520  # for the key
_PANEL_PX = (256, 960)  # shorter side at least, longer side at most
_SHEET_PX = 2200  # width of all panels in a row of a sheet, at most
_SHEET_PANELS = (2, 6)  # per row of a sheet, at least and at most


def num_in_sheet(height: int, width: int) -> int:
    """How many moments of a clip of this size a sheet shows."""
    up, down = _scale((height, width))
    fewest, most = _SHEET_PANELS
    return min(max(_SHEET_PX // (width * up // down), fewest), most)


def draw_sheet(path: Path, strips: Sequence[Strip], scale: Scale) -> None:
    """Draw moments from left to right: frames above, their flow below them.

    Args:
        path: the PNG file; it appears when it is whole.
        strips: at least one, with equally many moments; drawn one below the other.
        scale: of the colours.
    """
    rows = [[_panels(moment, scale) for moment in strip.moments] for strip in strips]
    wide = max(moment[0].shape[1] for row in rows for moment in row)
    num = max(len(row) for row in rows)
    with_difference = len(strips[0].names) > 1
    lines = _TITLE + _CAPTION * (1 + with_difference)
    heights = [lines + sum(panel.shape[0] + _GAP for panel in row[0]) for row in rows]
    width = max(2 * _MARGIN + _NAMES + num * (wide + _GAP) - _GAP, _MIN_WIDTH)
    sheet = Board(width, _MARGIN + sum(heights) + _GAP * len(rows) + _WHEEL + _MARGIN)
    y = _MARGIN // 2
    for strip, row, height in zip(strips, rows, heights, strict=True):
        _draw_strip(sheet, y, strip, row)
        y += height + _GAP
    _write_key(sheet, y, scale, with_difference=with_difference)
    with publish(path) as scratch:
        matplotlib.image.imsave(scratch, sheet.render(), format="png")


def _draw_strip(sheet: Board, y: int, strip: Strip, row: Sequence[Sequence[Frame]]) -> None:
    left = _MARGIN + _NAMES
    title = shorten(strip.title, sheet.width - left - _MARGIN, size=_TITLE_PX, bold=True)
    sheet.write((left, y + _TITLE / 2), title, size=_TITLE_PX, bold=True)
    y += _TITLE
    for column, (moment, panels) in enumerate(zip(strip.moments, row, strict=True)):
        below = y + _CAPTION
        x = left + column * (panels[0].shape[1] + _GAP)
        sheet.write((x, y + _CAPTION / 2), _time_text(moment.number), size=_SMALL, colour=FAINT)
        for name, panel in zip(_names_of_panels("frames", strip.names), panels, strict=True):
            sheet.paste(panel, (x, below))
            if column == 0:
                text = shorten(name, _NAMES - _GAP)
                sheet.write((left - _GAP, below + panel.shape[0] / 2), text, align="right")
            below += panel.shape[0] + _GAP
        if moment.difference is not None:
            figures = _figures(moment.difference)
            sheet.write((x, below), figures, size=_SMALL, colour=FAINT)


def film_pictures(
    moments: Iterable[Moment], title: str, names: tuple[str, ...], scale: Scale
) -> Iterator[Frame]:
    """Yield a picture of each moment: uint8 (H, W, 3) of even sides, all of one size.

    With one method the frame is beside its flow; with two the frame is beside their difference, the
    two flows are below.
    """
    board = None
    for moment in moments:
        panels = _panels(moment, scale)
        width = panels[0].shape[1]
        if board is None:
            places = _places(panels)
            board = _film_board(panels, places, scale)
            images = [board.paste(p, place) for p, place in zip(panels, places, strict=True)]
            middles = [(x, y - _CAPTION / 2) for x, y in places]
            names_at = [board.write(at, "", bold=True) for at in middles]
            words_at = [
                board.write((x + width, y), "", size=_SMALL, colour=FAINT, align="right")
                for x, y in middles
            ]
        captions = _captions(moment, title, names)
        for image, panel, name_at, word_at, (name, words) in zip(
            images, panels, names_at, words_at, captions, strict=True
        ):
            image.set_data(panel)
            room = width - width_of(words, size=_SMALL) - _GAP
            name_at.set_text(shorten(name, room, bold=True))
            word_at.set_text(words)
        yield board.render()


def _places(panels: Sequence[Frame]) -> list[tuple[int, int]]:
    """Where each panel of a film goes."""
    height, width, _ = panels[0].shape
    left, right = _MARGIN, _MARGIN + width + _GAP
    upper, lower = _MARGIN // 2 + _CAPTION, _MARGIN // 2 + 2 * _CAPTION + height + _GAP
    if len(panels) == 2:
        return [(left, upper), (right, upper)]
    return [(left, upper), (left, lower), (right, lower), (right, upper)]


def _film_board(panels: Sequence[Frame], places: Sequence[tuple[int, int]], scale: Scale) -> Board:
    """A board that has room for the panels, and the key below them."""
    height, width, _ = panels[0].shape
    foot = max(y for _, y in places) + height + _MARGIN
    right = max(x for x, _ in places) + width + _MARGIN
    sides = (max(right, _MIN_WIDTH), foot + _WHEEL + _MARGIN)
    board = Board(*(side + side % 2 for side in sides))
    _write_key(board, foot, scale, with_difference=len(panels) > 2)
    return board


def _captions(moment: Moment, title: str, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """A name and some words for each panel."""
    words = [_time_text(moment.number)]
    words += [f"mean {np.linalg.norm(flow, axis=-1).mean():.2f} px" for flow in moment.flows]
    if moment.difference is not None:
        words.append(_figures(moment.difference))
    return list(zip(_names_of_panels(title, names), words, strict=True))


def _names_of_panels(title: str, names: tuple[str, ...]) -> list[str]:
    return [title, *names, *([DIFFERENCE] if len(names) > 1 else [])]


def _panels(moment: Moment, scale: Scale) -> list[Frame]:
    """The frame, each flow, and the difference of two, enlarged or reduced to the panels' size."""
    panels = [moment.frame, *(colours(field, full_px=scale.full_px) for field in moment.flows)]
    if moment.difference is not None:
        panels.append(ramp(moment.difference, full=scale.difference_px))
    return [resize(panel, _scale(panel.shape[:2])) for panel in panels]


def _scale(size: Sequence[int]) -> tuple[int, int]:
    return fit(size, at_least=_PANEL_PX[0], at_most=_PANEL_PX[1])


def _time_text(number: int) -> str:
    return f"frame {number} · {number / FPS:.2f} s"


def _figures(px: Flow) -> str:
    return f"mean {px.mean():.3f}, 99 % < {np.percentile(px, SHOWN_PERCENTILE):.2f} px"


def _write_key(onto: Board, y: int, scale: Scale, *, with_difference: bool) -> None:
    """Draw the wheel, and the ramp of differences, in the lowest strip of a board."""
    middle = y + _WHEEL // 2
    onto.paste(wheel(_WHEEL), (_MARGIN, y), framed=False)
    x = _MARGIN + _WHEEL + 14
    onto.write((x, middle - 18), "hue: direction of motion")
    onto.write((x, middle), f"full colour: {scale.full_px:g} px per frame")
    onto.write((x, middle + 18), "faster motion is darker", colour=FAINT)
    if not with_difference:
        return
    width, height = _RAMP
    x = onto.width - _MARGIN - width
    bar = ramp(np.linspace(0, 1, width, dtype=np.float32), full=1.0)
    onto.paste(np.repeat(bar[None], height, axis=0), (x, middle - height // 2))
    onto.write((x, middle - 18), DIFFERENCE)
    most = scale.difference_px
    onto.write((x, middle + 18), "0", colour=FAINT)
    onto.write((x + width / 2, middle + 18), f"{most / 2:g}", colour=FAINT, align="center")
    onto.write((x + width, middle + 18), f"{most:g} px", colour=FAINT, align="right")


# Files


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What was drawn.

    Attributes:
        num_moments: how many.
        scale: of the colours.
        mean_px: mean difference of two flows over the moments, pixels; None for one flow.
    """

    num_moments: int
    scale: Scale
    mean_px: float | None


def write_sheet(film: Film, path: Path, *, full_px: float | None = None) -> Shown:
    """Draw some moments of a clip into a PNG file, which appears when it is whole.

    Args:
        film: the clip and the methods.
        path: the file.
        full_px: speed of full saturation; None for one that suits the clip.

    Raises:
        MediaError: the clip is damaged.
        KineticsError: no such device.
    """
    height, width, _ = next(film.some(1)).frame.shape
    moments = list(film.some(num_in_sheet(height, width)))
    scale = Scale.of(moments, full_px)
    draw_sheet(path, [Strip(title=film.title, names=film.methods, moments=moments)], scale)
    return _shown(scale, [moment.mean_difference for moment in moments])


def write_film(
    film: Film, moments: Iterable[Moment], path: Path, *, full_px: float | None = None
) -> Shown:
    """Draw all moments of a clip into an MP4 file, which appears when it is whole.

    Args:
        film: the clip and the methods.
        moments: what `film.moments()` yields; they are read one by one.
        path: the file.
        full_px: speed of full saturation; None for one that suits the clip.

    Raises:
        MediaError: the clip is damaged.
        KineticsError: no such device.
    """
    scale = Scale.of(film.some(_NUM_SCALE_MOMENTS), full_px)
    differences = []

    def noted() -> Iterator[Moment]:
        for moment in moments:
            differences.append(moment.mean_difference)
            yield moment

    pictures = film_pictures(noted(), film.title, film.methods, scale)
    with publish(path) as scratch:
        encode.write_video(
            scratch, pictures, fps=FPS, binary=encode.find_ffmpeg(), for_browsers=True
        )
    return _shown(scale, differences)


def _shown(scale: Scale, differences: Sequence[float | None]) -> Shown:
    known = [px for px in differences if px is not None]
    return Shown(
        num_moments=len(differences), scale=scale, mean_px=float(np.mean(known)) if known else None
    )
