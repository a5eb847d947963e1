"""Clips: `cut` makes one of a segment of a video, `conform` of a whole video."""

import itertools
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.media.clip_writer import SEEK_FROM_S, ClipWriter, Span, open_writer
from kinetics_tools.media.decode import decode_frames, probe
from kinetics_tools.media.recipe import ClipRecipe
from kinetics_tools.media.shape import clip_shape
from kinetics_tools.media.timeline import Timeline

HOLD_S = Fraction(1, 2)  # labels are whole seconds; a video may end this much before its segment


@dataclass(frozen=True, slots=True)
class Cut:
    """A clip that was written.

    Attributes:
        num_frames: its number of frames, counted by decoding it.
        num_held: how many of them repeat the last frame of a video that ends before its segment.
        is_silent: whether it lacks the sound that the recipe keeps, as the video has none there.
    """

    num_frames: int
    num_held: int = 0
    is_silent: bool = False


def cut(
    video: Path,
    clip: Path,
    *,
    start_s: Fraction,
    end_s: Fraction,
    recipe: ClipRecipe,
    binary: Path,
) -> Cut:
    """Cut the segment `[start_s, end_s)` of `video` into the new file `clip`.

    Frame k of the clip is the last frame of the video whose time, counted from the video's first
    frame, is at most `start_s + k / fps`; there are `(end_s - start_s) * fps` of them. With
    `keep_original` these frames are there once each, at their own times; the first one, which is
    seen at `start_s`, is at time 0.

    Segments after SEEK_FROM_S are reached by a seek where it is proven to be exact; otherwise all
    is decoded from zero. Where the sound cannot be had, the clip has none.

    Raises:
        MediaError: damaged, or (reason too-short) it ends more than half a second before `end_s`.
        OSError: the disk is full.
    """
    make = _cut_original if recipe.keep_original else _cut_constant
    with open_writer(video, clip, recipe, binary) as writer:
        made = _with_sound(writer, make(writer, start_s, end_s), start_s, end_s)
        writer.publish()
    return made


def conform(
    source: Path,
    clip: Path,
    *,
    recipe: ClipRecipe,
    binary: Path,
    start: int = 0,
    num_frames: int | None = None,
) -> Cut:
    """Write `source`, from its time 0, into the new file `clip` in the form of `recipe`.

    Args:
        source: any video.
        clip: the new file.
        recipe: the form of the clip.
        binary: the ffmpeg program.
        start: number of the first frame to write, counted in frames of the whole clip.
        num_frames: the number of frames to write at most; None for all.

    Raises:
        MediaError: damaged.
        OSError: the disk is full.
    """
    start_s = Fraction(start, recipe.fps)
    length_s = None if num_frames is None else Fraction(num_frames, recipe.fps)
    end_s = None if length_s is None else start_s + length_s
    with open_writer(source, clip, recipe, binary) as writer:
        num_written = writer.write(Span(start_s, length_s))
        if num_written:
            made = _with_sound(writer, Cut(num_written), start_s, end_s)
            writer.publish()
            return made
    if not start:
        raise MediaError(source, "holds no frame")
    duration_s = writer.facts.duration_s
    length = "" if duration_s is None else f"; it is {float(duration_s):.2f} s long"
    where = f"from {start / recipe.fps:.2f} s on (frame {start})"
    raise MediaError(source, f"holds no frame {where}{length}")


def _with_sound(writer: ClipWriter, made: Cut, start_s: Fraction, end_s: Fraction | None) -> Cut:
    """Add the sound if the recipe keeps it. Where it is absent or damaged, the picture stays."""
    if not writer.recipe.keep_audio:
        return made
    try:
        has_sound = writer.add_sound(start_s, end_s)
    except MediaError as error:
        if error.reason is not Reason.DAMAGED:
            raise
        has_sound = False
    return replace(made, is_silent=not has_sound)


def _cut_constant(writer: ClipWriter, start_s: Fraction, end_s: Fraction) -> Cut:
    """Cut at the constant rate of the recipe."""
    fps = writer.recipe.fps
    num_frames = max(round((end_s - start_s) * fps), 1)
    span = Span(start_s, Fraction(num_frames, fps))
    timeline = writer.stored_timeline(end_s) if start_s > SEEK_FROM_S else None
    if timeline is not None:
        _require_length(writer.video, timeline, start_s, end_s)
    written = writer.write_by_seek(span, num_frames, timeline)
    if written == num_frames:
        return Cut(num_frames)
    # When the video ends, the clip's own frames say only to 1 / fps.
    timeline = writer.stored_timeline(None) or writer.decoded_timeline()
    _require_length(writer.video, timeline, start_s, end_s)
    if written == 0:
        raise MediaError(writer.video, f"gives no frame from {float(start_s):.2f} s on")
    held = num_frames - written
    first_s = timeline.times_s[timeline.seen_at(start_s)]
    span = replace(span, first_s=first_s, hold=held)
    if writer.write_by_seek(span, num_frames, timeline) != num_frames:
        raise MediaError(writer.video, "its frames cannot be told apart by their times")
    return Cut(num_frames, held)


def _cut_original(writer: ClipWriter, start_s: Fraction, end_s: Fraction) -> Cut:
    """Cut at the video's own times."""
    for timeline in _timelines(writer, end_s):
        _require_length(writer.video, timeline, start_s, end_s)
        first = timeline.seen_at(start_s)
        num_frames = bisect_left(timeline.times_s, end_s) - first
        last = timeline.times_s[first + num_frames - 1], min(timeline.end_s, end_s)
        span = Span(start_s, end_s - start_s, first_s=timeline.times_s[first], last=last)
        if writer.write_by_seek(span, num_frames, timeline) == num_frames:
            return Cut(num_frames)
    raise MediaError(writer.video, "its frames cannot be told apart by their times")


def _timelines(writer: ClipWriter, end_s: Fraction) -> Iterator[Timeline]:
    """What packets say, and what decoders do: packets may be of frames that are never shown."""
    stored = writer.stored_timeline(end_s)
    if stored is not None:
        yield stored
    yield writer.decoded_timeline()


def _require_length(video: Path, timeline: Timeline, start_s: Fraction, end_s: Fraction) -> None:
    """Raise a MediaError, too-short, for a video that ends more than HOLD_S before `end_s`."""
    ends_s = timeline.end_s
    if ends_s > start_s and ends_s >= end_s - HOLD_S:
        return
    where = f"at {float(ends_s):.2f} s" if ends_s > start_s else f"before {float(start_s):.2f} s"
    detail = f"ends {where}, the segment at {float(end_s):.2f} s"
    raise MediaError(video, detail, reason=Reason.TOO_SHORT)


def conforming_frames(path: Path, recipe: ClipRecipe, *, most: int | None = None) -> int:
    """The number of frames of a clip that already is as `recipe` says; 0 if it is not.

    The bytes of such a clip can be kept. Every frame is decoded, as only that proves the rate.

    Args:
        path: the clip.
        recipe: the form of clips.
        most: the number of frames to check at most; None for all.

    Raises:
        MediaError: it cannot be decoded.
    """
    video = probe(path)
    shape = clip_shape(video, recipe)
    wanted = shape.width, shape.height
    found = video.codec, video.pixel_format, video.width, video.height
    if found != ("h264", shape.pixel_format, *wanted) or video.orientation:
        return 0
    if "mp4" not in video.container.split(","):
        return 0
    if shape.pixel_aspect not in (None, video.pixel_aspect):
        return 0
    if recipe.coder not in (None, video.coder):
        return 0
    if video.num_audio > int(recipe.keep_audio):
        return 0
    since_key = num_frames = 0
    for frame in itertools.islice(decode_frames(path), most):
        if (frame.width, frame.height) != wanted or frame.pts is None:
            return 0
        if frame.pts * frame.time_base * recipe.fps != num_frames:
            return 0
        since_key = 0 if frame.key_frame else since_key + 1
        if since_key >= recipe.keyframe_interval:
            return 0
        num_frames += 1
    return num_frames
