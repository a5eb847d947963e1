"""Sections: what is copied of a video gives the clip that the whole video gives."""

import io
import struct
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import numbered
from conftest import Cutter, MakeVideo
from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.media import sections
from kinetics_tools.media.clips import cut
from kinetics_tools.media.recipe import ClipRecipe
from support import run

SECTION_KINDS = {
    "h264-b-frames": ("-c:v libx264 -preset veryfast -g 60 -bf 3", ".mp4"),
    "h264-open-gop": (
        "-c:v libx264 -preset veryfast -g 60 -x264-params open-gop=1:bframes=3",
        ".mp4",
    ),
    "h264-keyframes-8s": ("-c:v libx264 -preset veryfast -g 240 -bf 2", ".mp4"),
    "h264-index-last": ("-c:v libx264 -preset veryfast -g 60 -movflags -faststart", ".mp4"),
    "h264-fragments": (
        "-c:v libx264 -preset veryfast -g 60 -bf 2 "
        "-movflags +frag_keyframe+empty_moov+default_base_moof+dash+global_sidx",
        ".mp4",
    ),
    "h265": ("-c:v libx265 -preset ultrafast -g 60 -x265-params log-level=none", ".mp4"),
    "vp9-webm": ("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 60", ".webm"),
    "av1": ("-c:v libsvtav1 -preset 12 -g 60 -svtav1-params log-level=0", ".mp4"),
}
SECTION_TIMES = (
    (0, 1),
    (2, 4),
    ("3.997", "5.5"),
    ("5.9", 7),
    (8, 10),
    ("11.7", "13.4"),
    ("11.7", "13.5"),
)


@pytest.mark.parametrize("kind", SECTION_KINDS)
@pytest.mark.parametrize("fps", ["30", "30000/1001", "12.5"])
def test_a_clip_of_a_section_has_the_bytes_of_one_of_the_whole_video(
    make_video: MakeVideo, cutter: Cutter, tmp_path: Path, kind: str, fps: str
) -> None:
    options, suffix = SECTION_KINDS[kind]
    video = make_video(seconds=13.5, fps=fps, options=options, suffix=suffix)
    section = tmp_path / "section.mp4"
    for start, end in SECTION_TIMES:
        times = {"start_s": Fraction(str(start)), "end_s": Fraction(str(end))}
        with video.open("rb") as file:
            if suffix == ".webm" and end == "13.5":
                with pytest.raises(MediaError, match="ends within the segment"):
                    sections.copy_section([file], section, **times, with_sound=False)
                continue
            zero_s = sections.copy_section([file], section, **times, with_sound=False)
        expected, clip = cutter(video, start, end)
        content = clip.read_bytes()
        assert cutter(section, times["start_s"] - zero_s, times["end_s"] - zero_s)[0] == expected
        assert clip.read_bytes() == content, (start, end, zero_s)
        assert section.stat().st_size < video.stat().st_size


def test_whether_a_segment_runs_past_the_end_only_the_whole_video_tells(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    for start, end in ((8, 18), (20, 30)):
        times = {"start_s": Fraction(start), "end_s": Fraction(end)}
        with (
            make_video(seconds=9).open("rb") as file,
            pytest.raises(MediaError, match="ends within the segment"),
        ):
            sections.copy_section([file], tmp_path / "section.mp4", **times, with_sound=False)


@pytest.mark.parametrize("start", [0, 1, 8])
@pytest.mark.parametrize("apart", [False, True])
def test_a_section_has_the_sound_that_belongs_to_it(
    make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path, apart: bool, start: int
) -> None:
    video = make_video(seconds=14, options="-c:v libx264 -g 60 -bf 2", sound=True)
    parts = [video]
    if apart:
        parts = [tmp_path / "picture.mp4", tmp_path / "sound.m4a"]
        for track, part in zip("va", parts, strict=True):
            run(ffmpeg, "-loglevel", "error", "-i", video, "-map", f"0:{track}", "-c", "copy", part)
    section, times = tmp_path / "section.mp4", (Fraction(start), Fraction(start + 2))
    files = [part.open("rb") for part in parts]
    zero_s = sections.copy_section(
        files, section, start_s=times[0], end_s=times[1], with_sound=True
    )
    for file in files:
        file.close()
    heard = []
    for source, zero in ((video, Fraction(0)), (section, zero_s)):
        clip = tmp_path / "clip.mp4"
        cut(
            source,
            clip,
            start_s=times[0] - zero,
            end_s=times[1] - zero,
            recipe=replace(recipe, keep_audio=True),
            binary=ffmpeg,
        )
        with av.open(str(clip)) as container:
            sound = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        heard.append(np.concatenate(sound))
    assert len(heard[0]) == len(heard[1])
    # A track of its own begins with its first whole packet: there a decoder fades in.
    fade = 1024 if apart and start == 0 else 0
    np.testing.assert_allclose(heard[0][fade:], heard[1][fade:], atol=0.02)


def test_what_is_no_video_gives_no_section(
    make_video: MakeVideo, ffmpeg: Path, tmp_path: Path
) -> None:
    whole = make_video(seconds=4, options="-c:v libx264 -movflags +faststart").read_bytes()
    turned = tmp_path / "turned.mkv"
    run(ffmpeg, "-loglevel", "error", "-i", make_video(seconds=4), "-c", "copy", turned)
    for content in (
        b"",
        b"<html></html>",
        whole[:2000],
        whole[: len(whole) // 2],
        turned.read_bytes(),
    ):
        with pytest.raises(MediaError):
            sections.copy_section(
                [io.BytesIO(content)],
                tmp_path / "section.mp4",
                start_s=Fraction(1),
                end_s=Fraction(4),
                with_sound=False,
            )


def with_edits(video: Path, edited: Path, edits: Sequence[tuple[Fraction, Fraction]]) -> Path:
    """A copy of an MP4 file, its index last, with an edit list: (length, start) in seconds."""
    content = bytearray(video.read_bytes())

    def find(*names: bytes) -> int:
        """Where the box lies that these names lead to."""
        at = 0
        for depth, name in enumerate(names):
            while content[at + 4 : at + 8] != name:
                at += number(at)
            at += 8 if depth + 1 < len(names) else 0
        return at

    def number(at: int) -> int:
        return int.from_bytes(content[at : at + 4], "big")

    def box(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), name) + body

    ticks_movie = number(find(b"moov", b"mvhd") + 20)
    ticks = number(find(b"moov", b"trak", b"mdia", b"mdhd") + 20)
    entries = b"".join(
        struct.pack(">IiI", int(length * ticks_movie), int(start * ticks), 1 << 16)
        for length, start in edits
    )
    new = box(b"edts", box(b"elst", struct.pack(">II", 0, len(edits)) + entries))
    at = find(b"moov", b"trak", b"edts")
    longer = len(new) - number(at)
    content[at : at + number(at)] = new
    for outer in (find(b"moov"), find(b"moov", b"trak")):
        content[outer : outer + 4] = struct.pack(">I", number(outer) + longer)
    edited.write_bytes(content)
    return edited


@pytest.mark.parametrize("second", ["8", "7.44"])
def test_where_an_edit_list_hides_frames_there_is_no_section(
    cutter: Cutter, tmp_path: Path, second: str
) -> None:
    video = numbered.make(tmp_path / "video.mp4", range(400), *numbered.H264, "-bf", "0")
    first = Fraction("5.2")
    edits = [(first, Fraction(1)), (Fraction(6), Fraction(second))]
    edited = with_edits(video, tmp_path / "edited.mp4", edits)
    shown = numbered.numbers(edited)
    assert {25, 155 - 1, int(Fraction(second) * 25)} < set(shown)  # as players show it
    num_made = 0
    for start in (1, 4, 6, 7):
        section, times = tmp_path / "section.mp4", (Fraction(start), Fraction(start + 3))
        _, clip = cutter(edited, *times)
        assert numbered.numbers(clip) == shown[25 * start : 25 * start + 75]
        content = clip.read_bytes()
        with edited.open("rb") as file:
            try:
                zero_s = sections.copy_section(
                    [file], section, start_s=times[0], end_s=times[1], with_sound=False
                )
            except MediaError as error:
                assert error.reason is Reason.NO_FORMATS
                continue
        cutter(section, *(time - zero_s for time in times))
        assert clip.read_bytes() == content
        num_made += 1
    assert num_made >= 2


def test_a_video_ends_where_its_edit_list_ends(cutter: Cutter, tmp_path: Path) -> None:
    options = ("-c:v", "libx264", "-g", "400", "-bf", "0", "-pix_fmt", "yuv420p")
    video = numbered.make(tmp_path / "video.mp4", range(400), *options)
    edited = with_edits(video, tmp_path / "edited.mp4", [(Fraction(8), Fraction(0))])
    _, clip = cutter(edited, 3, "8.4")
    assert numbered.numbers(clip)[:125] == list(range(75, 200))
    for start in (3, 8, "8.5"):
        with pytest.raises(
            MediaError, match=r"ends (at|before) 8\.\d0 s, the segment at 10"
        ) as caught:
            cutter(edited, start, 10)
        assert caught.value.reason is Reason.TOO_SHORT
