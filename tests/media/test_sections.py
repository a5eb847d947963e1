"""Sections: what is copied of a video gives the clip that the whole video gives."""

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from conftest import Cutter, MakeVideo
from kinetics_tools.core.errors import MediaError
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


@pytest.mark.parametrize("apart", [False, True])
def test_a_section_has_the_sound_that_belongs_to_it(
    make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path, apart: bool
) -> None:
    video = make_video(seconds=14, options="-c:v libx264 -g 60 -bf 2", sound=True)
    parts = [video]
    if apart:
        parts = [tmp_path / "picture.mp4", tmp_path / "sound.m4a"]
        for track, part in zip("va", parts, strict=True):
            run(ffmpeg, "-loglevel", "error", "-i", video, "-map", f"0:{track}", "-c", "copy", part)
    section, times = tmp_path / "section.mp4", (Fraction(8), Fraction(10))
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
    np.testing.assert_allclose(heard[0], heard[1], atol=0.02)


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
