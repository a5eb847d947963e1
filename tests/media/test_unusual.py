"""Files of unusual kinds, as users have met them: which frames and which sound a clip gets."""

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import numbered
from conftest import MakeVideo
from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.media import clip_writer, decode, encode, sections
from kinetics_tools.media.clips import Cut, conform, conforming_frames, cut
from kinetics_tools.media.recipe import ClipRecipe
from numbered import H264, ffmpeg, numbers, times_s
from support import environment

MPEG2 = ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "2", "-pix_fmt", "yuv420p", "-g", "50")
MPEG4 = ("-c:v", "mpeg4", "-bf", "2", "-q:v", "2", "-g", "50")
TS = ("-f", "mpegts")
ORIGINAL = {"keep_original": True}

Cutting = Callable[..., tuple[Cut, Path]]


@pytest.fixture
def cut_of(recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path) -> Cutting:
    """Cuts [start, end) of a video, with changes of the recipe; returns the Cut and the clip."""

    def make(video: Path, start: object, end: object, **changes: object) -> tuple[Cut, Path]:
        clip = tmp_path / "out" / "clip.mp4"
        clip.parent.mkdir(exist_ok=True)
        made = cut(
            video,
            clip,
            start_s=Fraction(str(start)),
            end_s=Fraction(str(end)),
            recipe=replace(recipe, **changes),  # type: ignore[arg-type]  # of a test's table
            binary=ffmpeg,
        )
        assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]
        return made, clip

    return make


# The lines that ../shared/cases/media_cases.py prints, without what it wants where that is said.
CASES = """
A  avi bf=0: [3,6) 75 frames, 75 to 149 | [6,9) 75 frames, 150 to 224
A  avi bf=3: [3,6) 75 frames, 75 to 149 | [6,9) 75 frames, 150 to 224
B  mpg joined: [3,5) 50 frames, 75 to 124 | [6,9) 75 frames, 150 to 224
B  ts joined: [8,10) 50 frames, 200 to 249 | [14,16) 50 frames, 350 to 399
C  hls: 75 frames, 25 to 99; all frames decode: 250
D  ts keep-original [6.0,+3) 75 frames, 150 to 224
D  ts keep-original [6.4,+3) 75 frames, 160 to 234
D  ts keep-original [6.6,+3) 75 frames, 165 to 239
D  vfr [17,27) keep-original: 20 frames, 510 to 795 | default: 250 frames, 510 to 795
D  30/60 fps vfr [6,9) keep-original: 120 frames, 180 to 299 | default: 75 frames, 180 to 298
E  sound ends at 4 s, [6,9): 75 frames, 150 to 224 | without keep-audio: 75 frames, 150 to 224
F  cover first [6,9): 75 frames, 150 to 224 | cover last: 75 frames, 150 to 224
"""


def test_the_collected_cases_are_right(shared_data: Path, tmp_path: Path) -> None:
    script = shared_data.parent / "cases" / "media_cases.py"
    surroundings = environment() | {"TMPDIR": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, script], env=surroundings, capture_output=True, text=True, check=True
    )
    assert re.sub(r" want [^|;\n]*?(?=$| \||;)", "", said.stdout, flags=re.M) == CASES.lstrip()


# Frames


@pytest.mark.parametrize("changes", [{}, ORIGINAL])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".avi", (*H264, "-bf", "0")),
        (".avi", (*H264, "-bf", "3")),
        (".avi", (*MPEG4, "-vtag", "DX50")),
        (".avi", ("-c:v", "wmv2", "-q:v", "2")),
        (".mpg", MPEG2),
        (".ts", (*H264, "-bf", "2")),
        (".ts", MPEG2),
        (".flv", H264),
        (".mkv", (*MPEG4, "-bf", "2")),
        (".webm", ("-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-g", "60")),
        (".mp4", (*H264, "-x264-params", "open-gop=1:bframes=3:scenecut=0")),
        (".mp4", (*H264, "-x264-params", "intra-refresh=1:keyint=40")),
    ],
)
def test_a_late_cut_is_exact_in_every_format(
    cut_of: Cutting,
    tmp_path: Path,
    suffix: str,
    options: Sequence[str],
    changes: dict[str, object],
) -> None:
    video = numbered.make(tmp_path / f"video{suffix}", range(300), *options)
    for start, end in ((3, 4), (6, 8), ("9.2", "10.2")):
        made, clip = cut_of(video, start, end, **changes)
        first, end_number = (round(Fraction(str(time)) * 25) for time in (start, end))
        assert numbers(clip) == list(range(first, end_number)), start
        assert made == Cut(end_number - first)


@pytest.mark.parametrize("changes", [{}, ORIGINAL, {"keep_audio": True}])
@pytest.mark.parametrize(
    ("suffix", "options", "second"),
    [
        (".mpg", MPEG2, ()),
        (".ts", (*H264, *TS), ()),
        (".ts", (*MPEG2, *TS), ()),
        (".ts", (*H264, *TS), ("-output_ts_offset", "100")),
        (".ts", (*H264, *TS), ("-output_ts_offset", "3")),
    ],
)
def test_in_joined_files_the_parts_follow_each_other(
    cut_of: Cutting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    options: Sequence[str],
    second: Sequence[str],
    changes: dict[str, object],
) -> None:
    parts = [
        numbered.make(tmp_path / f"{first}{suffix}", range(first, first + 200), *options, *more)
        for first, more in ((0, ()), (200, second))
    ]
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    for start in (3, 6, 7, 9, 13):
        _, clip = cut_of(joined, start, start + 2, **changes)
        content, shown = clip.read_bytes(), numbers(clip)
        with monkeypatch.context() as patch:
            patch.setattr(clip_writer, "SEEK_FROM_S", 1000)
            _, clip = cut_of(joined, start, start + 2, **changes)
        assert clip.read_bytes() == content
        first = start * 25
        if first + 50 <= 200:
            assert shown == list(range(first, first + 50))
        elif first >= 200:  # no file says how long the first part's last frame lasts
            assert shown == list(range(shown[0], shown[0] + 50))
            assert abs(shown[0] - first) <= 1


@pytest.mark.parametrize("changes", [{}, ORIGINAL])
def test_what_begins_again_at_zero_is_not_found_in_the_first_part(
    cut_of: Cutting, tmp_path: Path, changes: dict[str, object]
) -> None:
    fragments = (*H264, "-movflags", "+frag_keyframe+empty_moov+default_base_moof")
    for suffix, options in ((".mp4", fragments), (".mkv", H264)):
        parts = [
            numbered.make(tmp_path / f"{first}{suffix}", range(first, first + 200), *options)
            for first in (0, 200)
        ]
        joined = tmp_path / f"joined{suffix}"
        joined.write_bytes(b"".join(part.read_bytes() for part in parts))
        assert numbers(cut_of(joined, 6, 7, **changes)[1]) == list(range(150, 175))
        with pytest.raises(MediaError) as caught:
            cut_of(joined, 10, 12, **changes)
        assert caught.value.reason is Reason.TOO_SHORT


def test_files_without_marked_keyframes_are_read_from_zero(cut_of: Cutting, tmp_path: Path) -> None:
    video = numbered.make(tmp_path / "video.mp4", range(250), *MPEG4)
    content = video.read_bytes()
    video.write_bytes(content.replace(b"stss", b"free"))  # now all frames seem to be keyframes
    assert numbers(cut_of(video, 7, 9)[1]) == list(range(175, 225))


def test_a_clip_of_a_divx_that_was_taken_from_the_field_is_exact(
    shared_data: Path, cut_of: Cutting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looped = tmp_path / "looped.avi"
    (real,) = (shared_data / "clips").glob("hmdb51_*.avi")
    ffmpeg("-stream_loop", "12", "-i", real, "-c", "copy", looped)
    for start in ("5.5", 8, 11):
        _, clip = cut_of(looped, start, Fraction(str(start)) + 1)
        content = clip.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(clip_writer, "SEEK_FROM_S", 1000)
            _, clip = cut_of(looped, start, Fraction(str(start)) + 1)
        assert clip.read_bytes() == content


# The video's own times


def test_original_frames_keep_their_times(cut_of: Cutting, tmp_path: Path) -> None:
    # 30 frames per second, and 60 from 4 s to 6 s, in ticks that no frame rate gives.
    times = "if(lt(N,120),N*3000,if(lt(N,240),360000+(N-120)*1500,540000+(N-240)*3000))"
    exact = ("-fps_mode", "passthrough", "-enc_time_base", "1:90000")
    own = ("-video_track_timescale", "90000")
    video = numbered.make(
        tmp_path / "video.mp4",
        range(400),
        *H264,
        *exact,
        *own,
        fps=30,
        filters=f"settb=1/90000,setpts='{times}'",
    )
    for start, end in ((3, 5), (4, 6), (5, 7), ("5.01", "6.99"), (8, 10)):
        start_s, end_s = Fraction(str(start)), Fraction(str(end))
        source = times_s(video)
        first = max(n for n, time in enumerate(source) if time <= start_s)
        wanted = [n for n, time in enumerate(source) if n >= first and time < end_s]
        made, clip = cut_of(video, start, end, **ORIGINAL)
        assert made == Cut(len(wanted))
        assert numbers(clip) == wanted
        assert times_s(clip) == [max(source[n] - start_s, 0) for n in wanted]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_original_length_is_judged_by_time(cut_of: Cutting, tmp_path: Path, suffix: str) -> None:
    # From 4 s to 12 s one frame is shown every second, as of a slide show.
    fewer = "select='if(between(t,4,12),not(mod(n,25)),1)'"
    video = numbered.make(
        tmp_path / f"video{suffix}", range(400), *H264, "-fps_mode", "vfr", filters=fewer
    )
    shown = [100, *range(125, 300, 25)]
    for start, end in ((4, 12), (6, 9), ("6.5", "8.5"), ("10.1", "10.9")):
        _, clip = cut_of(video, start, end, **ORIGINAL)
        start_s, end_s = (Fraction(str(time)) * 25 for time in (start, end))
        inside = [n for n in shown if n < end_s]
        wanted = inside[max(i for i, n in enumerate(inside) if n <= start_s) :]
        assert sorted(set(numbers(clip))) == wanted
    with pytest.raises(MediaError) as caught:
        cut_of(video, 10, 17, **ORIGINAL)
    assert caught.value.reason is Reason.TOO_SHORT


def test_an_original_clip_shows_at_each_time_what_the_constant_one_shows(
    cut_of: Cutting, recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path
) -> None:
    varied = numbered.make(
        tmp_path / "video.mkv",
        range(300),
        *H264,
        *("-fps_mode", "passthrough", "-enc_time_base", "1:1000"),
        filters="settb=1/1000,setpts=N*30+mod(N*N\\,17)",
    )
    for start, end in ((1, 3), ("2.345", "4.345"), (6, 8)):
        constant = numbers(cut_of(varied, start, end)[1])
        _, original = cut_of(varied, start, end, **ORIGINAL)
        conform(original, tmp_path / "constant.mp4", recipe=recipe, binary=ffmpeg)
        assert numbers(tmp_path / "constant.mp4")[: len(constant)] == constant


def test_original_frames_are_told_apart_whatever_the_start(cut_of: Cutting, tmp_path: Path) -> None:
    still = "select='lt(n,100)+eq(n,100)+gt(n,1600)'"  # one frame lasts a minute
    video = numbered.make(
        tmp_path / "video.mp4", range(1700), *H264, "-fps_mode", "vfr", filters=still
    )
    for start, end in (("2.123457", 6), ("3.9999999999", 6), (70 / 11, "68.0000000001")):
        start_s, end_s = Fraction(str(start)), Fraction(str(end))
        _, clip = cut_of(video, start_s, end_s, **ORIGINAL)
        times = [Fraction(n if n <= 100 else n + 1500, 25) for n in range(200)]
        first = max(n for n, time in enumerate(times) if time <= start_s)
        wanted = [n for n, time in enumerate(times) if n >= first and time < end_s]
        shown = times_s(clip)
        assert (len(shown), numbers(clip)[0], shown[0]) == (len(wanted), first, Fraction())


def test_original_frames_with_the_same_time_do_not_stop_the_cut(
    cut_of: Cutting, tmp_path: Path
) -> None:
    # ffmpeg stores some frames of such a file in one packet, without times of their own.
    options = ("-c:v", "libx264", "-crf", "30")
    video = numbered.make(tmp_path / "video.mpg", range(450), *options, fps=25)
    rows = subprocess.run(
        [
            *(encode.find_ffmpeg(), "-loglevel", "error", "-i", video, "-fps_mode", "passthrough"),
            *("-vf", "settb=1/90000,setpts=PTS-STARTPTS", "-enc_time_base", "filter"),
            *("-f", "framecrc", "-"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    ticks = [int(row.split(",")[2]) for row in rows if not row.startswith("#")]
    assert len(set(ticks)) < len(ticks) == 450
    shown = {time: number for number, time in reversed([*enumerate(ticks)])}  # the first of equals
    for start in range(1, 16):
        _, clip = cut_of(video, start, start + 2, **ORIGINAL)
        begin = max(time for time in shown if time <= start * 90_000)
        wanted = [shown[time] for time in sorted(shown) if begin <= time < (start + 2) * 90_000]
        assert numbers(clip) == wanted


@pytest.mark.parametrize("size", ["161x91", "160x91", "161x90"])
def test_an_odd_size_is_kept_without_scaling(
    cut_of: Cutting, make_video: MakeVideo, size: str
) -> None:
    odd = f"-vf format=yuv444p,scale={size.replace('x', ':')} -c:v libx264 -crf 4"
    video = make_video(seconds=2, size="320x180", options=odd)
    _, clip = cut_of(video, 0, 1, **ORIGINAL, crf=4)
    facts = decode.probe(clip)
    assert f"{facts.width}x{facts.height}" == size
    frames = zip(decode.frames(video), decode.frames(clip), strict=False)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in frames) < 2


# Pictures


def test_pictures_are_scaled_bilinearly(recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path) -> None:
    edges = np.full((512, 900, 3), 60, np.uint8)
    edges[:, 301:] = 190
    found = {}
    source = tmp_path / "edges.mkv"
    ffmpeg_input = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "900x512", "-i")
    (tmp_path / "raw").write_bytes(edges.tobytes() * 2)
    numbered.ffmpeg(*ffmpeg_input, tmp_path / "raw", "-c:v", "ffv1", source)
    for scaler in ("bilinear", "bicubic"):
        clip = tmp_path / f"{scaler}.mp4"
        conform(source, clip, recipe=replace(recipe, scaler=scaler, crf=1), binary=ffmpeg)
        found[scaler] = next(decode.frames(clip)).astype(int)
    assert ClipRecipe().scaler == "bilinear"
    # A bicubic kernel has negative weights, so it overshoots at an edge; a bilinear one has none.
    assert found["bilinear"].min() >= 57
    assert found["bilinear"].max() <= 193
    assert found["bicubic"].min() < 56
    assert found["bicubic"].max() > 194


def test_recipes_of_version_0_1_keep_their_hash_and_mean_bicubic() -> None:
    old = ClipRecipe(scaler="bicubic").as_json()
    assert "scaler" not in old
    assert ClipRecipe.from_json(old) == ClipRecipe(scaler="bicubic")
    sizeless = ClipRecipe(scaler="bicubic", short_side=None)
    assert ClipRecipe.from_json(sizeless.as_json()) == sizeless
    assert sizeless.as_json()["short_side"] is None
    assert ClipRecipe.from_json(ClipRecipe().as_json()) == ClipRecipe()
    assert ClipRecipe().as_json()["scaler"] == "bilinear"


@pytest.mark.parametrize(
    ("aspect", "changes", "shown"),
    [
        ("16/15", {"short_side": 96}, (160, 96)),
        ("4/3", {"short_side": 96}, (200, 96)),
        ("1/2", {"short_side": 48}, (48, 62)),
        ("16/15", {}, (256, 154)),
        ("16/15", {"enlarge": True}, (426, 256)),
        ("16/15", {"short_side": None}, (240, 154)),
        ("16/15", ORIGINAL, (240, 154)),
    ],
)
def test_pixels_become_square_unless_the_size_is_kept(
    recipe: ClipRecipe,
    ffmpeg: Path,
    tmp_path: Path,
    aspect: str,
    changes: dict[str, object],
    shown: tuple[int, int],
) -> None:
    video, clip = tmp_path / "video.mkv", tmp_path / "clip.mp4"
    picture = ("-f", "lavfi", "-i", "testsrc2=size=240x154:rate=25:duration=1")
    numbered.ffmpeg(*picture, "-vf", f"setsar={aspect}", "-c:v", "libx264", video)
    chosen = replace(recipe, **changes)  # type: ignore[arg-type]  # of a test's table
    conform(video, clip, recipe=chosen, binary=ffmpeg)
    facts = decode.probe(clip)
    assert (facts.width, facts.height) == shown
    keeps_size = chosen.keep_original or chosen.short_side is None
    assert facts.pixel_aspect == (Fraction(aspect) if keeps_size else 1)
    assert conforming_frames(clip, chosen) == 25
    if not keeps_size:  # a clip of the right size with other pixels is not taken as it is
        squeezed = tmp_path / "squeezed.mp4"
        numbered.ffmpeg("-i", clip, "-c", "copy", "-aspect", "3:1", squeezed)
        assert conforming_frames(squeezed, chosen) == 0


@pytest.mark.parametrize("changes", [{}, ORIGINAL])
def test_pictures_are_turned_after_frames_of_another_size(
    cut_of: Cutting, tmp_path: Path, changes: dict[str, object]
) -> None:
    parts = []
    for first, size in ((0, "160:32"), (100, "32:160")):
        begin = ("-output_ts_offset", str(first // 25), "-muxdelay", "0")
        options = (*H264, "-bf", "0", *TS, *begin)
        path = tmp_path / f"{first}.ts"
        part = numbered.make(
            path, range(first, first + 100), *options, filters=f"scale={size}:flags=neighbor"
        )
        parts.append(part.read_bytes())
    joined, turned = tmp_path / "joined.ts", tmp_path / "turned.mp4"
    joined.write_bytes(b"".join(parts))
    ffmpeg("-display_rotation", "90", "-i", joined, "-c", "copy", turned)
    for start in (1, 3, 5):
        _, clip = cut_of(turned, start, start + 2, **changes)
        facts = decode.probe(clip)
        assert (facts.width, facts.height, facts.pixel_aspect) == (32, 160, Fraction(1))
        assert facts.orientation == ()
        upright = [np.rot90(frame, -1)[..., 0] for frame in decode.frames(clip)]
        wanted = list(range(start * 25, start * 25 + 50))
        assert [numbered.number(picture) for picture in upright] == wanted


@pytest.mark.parametrize("flips", [(), ("-display_hflip",), ("-display_vflip",)])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_pictures_are_turned_as_players_turn_them(
    make_video: MakeVideo, cut_of: Cutting, tmp_path: Path, turn: int, flips: Sequence[str]
) -> None:
    stored = make_video(size="128x96", seconds=1)
    turned, seen = tmp_path / "turned.mp4", tmp_path / "seen.mkv"
    ffmpeg("-display_rotation", turn, *flips, "-i", stored, "-c", "copy", turned)
    ffmpeg("-i", turned, "-c:v", "ffv1", seen)  # ffmpeg turns as players do
    _, clip = cut_of(turned, 0, "0.04")
    wanted, found = (next(decode.frames(path)).astype(int) for path in (seen, clip))
    assert decode.probe(clip).orientation == ()
    assert wanted.shape == found.shape
    assert np.abs(wanted - found).mean() < 3


# Damage


def hls_stream(folder: Path, options: Sequence[str]) -> Path:
    """A stream whose segments were joined: each counts its packets from zero again."""
    joined = b""
    for second in range(0, 10, 2):
        at = ("-output_ts_offset", str(second), "-muxdelay", "0", *TS)
        first = second * 25
        piece = numbered.make(folder / "piece.ts", range(first, first + 50), *options, *at)
        joined += piece.read_bytes()
    (folder / "stream.mp4").write_bytes(joined)
    return folder / "stream.mp4"


@pytest.mark.parametrize(
    "options",
    [
        (*H264, "-bf", "0"),
        ("-c:v", "libx265", "-x265-params", "keyint=50:bframes=0:log-level=none"),
    ],
)
def test_a_stream_whose_segments_count_from_zero_is_whole(
    cut_of: Cutting, recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path, options: Sequence[str]
) -> None:
    stream = hls_stream(tmp_path, options)
    with decode.open_video(stream) as (container, video):
        assert any(packet.is_corrupt for packet in container.demux(video))  # says the demuxer
    for changes in ({}, ORIGINAL, {"keep_audio": True}):
        for start in (1, 6):
            _, clip = cut_of(stream, start, start + 3, **changes)
            assert numbers(clip) == list(range(start * 25, start * 25 + 75))
    conform(stream, tmp_path / "clip.mp4", recipe=recipe, binary=ffmpeg)
    assert numbers(tmp_path / "clip.mp4") == list(range(250))


def packets_of(stream: bytes) -> list[bytes]:
    return [stream[at : at + 188] for at in range(0, len(stream), 188)]


def segments_of(packets: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The packets of each segment: its first one is the first of a track that counts from zero."""
    begins = [at for at, packet in enumerate(packets) if packet[1:4] == b"\x40\x11\x10"]
    for first, end in itertools.pairwise([*begins, len(packets)]):
        yield list(packets[first:end])


TAG = b"ID3\4\0\0\0\0\0\x3f" + bytes(63)
# What may be around a stream's packets.
WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "192": lambda stream: b"".join(bytes(4) + packet for packet in packets_of(stream)),
    "204": lambda stream: b"".join(packet + b"\xff" * 16 for packet in packets_of(stream)),
    "tag": lambda stream: TAG + stream,
    "junk-first": lambda stream: bytes(100) + stream,
    "junk-between": lambda stream: stream[: 188 * 60] + bytes(77) + stream[188 * 60 :],
    "junk-last": lambda stream: stream + b"junk" * 20,
}


def test_sound_is_whole_too_in_a_stream_that_counts_from_zero(
    cut_of: Cutting, tmp_path: Path
) -> None:
    whole = numbered.make(tmp_path / "whole.mp4", range(250), *H264, "-bf", "0")
    tones = with_tones(whole, tmp_path / "tones.mkv", "-c:a", "pcm_s16le", seconds=10)
    joined = b""
    for second in range(0, 10, 2):
        piece = tmp_path / "piece.ts"
        options = (*H264, "-bf", "0", "-c:a", "mp2", "-output_ts_offset", second)
        ffmpeg("-ss", second, "-t", 2, "-i", tones, *options, "-muxdelay", "0", *TS, piece)
        joined += piece.read_bytes()
    (tmp_path / "stream.ts").write_bytes(joined)
    for start in (1, 6):
        made, clip = cut_of(tmp_path / "stream.ts", start, start + 3, keep_audio=True)
        assert made == Cut(75)
        assert tone_at_s(clip) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_stream_is_whole_whatever_is_around_its_packets(
    cut_of: Cutting, tmp_path: Path, wrapping: str
) -> None:
    stream = hls_stream(tmp_path, (*H264, "-bf", "0"))
    stream.write_bytes(WRAPPINGS[wrapping](stream.read_bytes()))
    for changes in ({}, ORIGINAL):
        for start in (1, 6):
            _, clip = cut_of(stream, start, start + 3, **changes)
            assert numbers(clip) == list(range(start * 25, start * 25 + 75))


@pytest.mark.parametrize(
    "codec", ["libx264 -bf 2", "mpeg2video -bf 2", "libx265 -x265-params log-level=none"]
)
def test_a_stream_that_lost_packets_is_damaged(
    make_video: MakeVideo, cut_of: Cutting, tmp_path: Path, codec: str
) -> None:
    options = f"-vf noise=alls=20:allf=t -c:v {codec} -b:v 2M -g 50 -pix_fmt yuv420p"
    whole = make_video(seconds=4, fps="25", size="320x240", suffix=".ts", options=options)
    content = whole.read_bytes()
    at = len(content) // 188 // 2 * 188
    assert cut_of(whole, 0, 4)[0] == Cut(100)
    tables = [at for at in range(0, len(content), 188) if content[at + 1 : at + 3] == b"\x40\0"]
    starts = [
        place
        for place in range(0, len(content), 188)
        if content[place + 1 : place + 3] == b"\x41\x00"  # a frame begins in the first track
    ]
    frame, following = starts[40:42]
    for name, broken in (
        ("lost its tail", content[: following - 188] + content[following:]),
        ("lost a frame", content[:frame] + content[following:]),
        ("lost all between two tables", content[: tables[4]] + content[tables[7] :]),
        ("lost", content[:at] + content[at + 5 * 188 :]),
        ("scribbled", content[: at + 8] + b"\x55" * 600 + content[at + 608 :]),
    ):
        path = tmp_path / f"{name}.ts"
        path.write_bytes(broken)
        for changes in ({}, ORIGINAL):
            with pytest.raises(MediaError) as caught:
                cut_of(path, 0, 4, **changes)
            assert caught.value.reason is Reason.DAMAGED, name


def test_a_loss_up_to_a_keyframe_within_a_segment_is_damage(
    cut_of: Cutting, tmp_path: Path
) -> None:
    stream = hls_stream(
        tmp_path, ("-c:v", "libx265", "-x265-params", "keyint=25:bframes=0:log-level=none")
    )
    packets = packets_of(stream.read_bytes())
    assert cut_of(stream, 0, 10)[0] == Cut(250)
    pictures = [at for at, packet in enumerate(packets) if packet[1:3] == b"\x41\0"]
    has_flags = [packets[at][3] & 0x20 and packets[at][4] for at in pictures]
    entries = [n for n, at in enumerate(pictures) if has_flags[n] and packets[at][5] & 0x40]
    key = next(number for number in entries if 110 < number < 140)  # in the third segment
    first, last = pictures[key - 5] + 1, pictures[key]
    lost = [at for at in range(first, last) if packets[at][1:3] in (b"\x41\0", b"\x01\0")]
    stream.write_bytes(b"".join(each for at, each in enumerate(packets) if at not in lost))
    with pytest.raises(MediaError) as caught:
        cut_of(stream, 0, 10)
    assert caught.value.reason is Reason.DAMAGED


def test_a_segment_is_told_also_where_its_tables_go_on_by_accident(
    cut_of: Cutting, tmp_path: Path
) -> None:
    stream = hls_stream(tmp_path, (*H264, "-bf", "0"))
    # Each segment shows a multiple of 16 tables: the last ones become empty packets.
    whole = b""
    for segment in segments_of(packets_of(stream.read_bytes())):
        tables = [at for at, packet in enumerate(segment) if packet[1:3] == b"\x40\0"]
        for at in tables[len(tables) // 16 * 16 :]:
            segment[at] = b"\x47\x1f\xff\x17" + bytes(184)  # their counter means nothing
        whole += b"".join(segment)
    stream.write_bytes(whole)
    for start in (1, 6):
        _, clip = cut_of(stream, start, start + 3, **ORIGINAL)
        assert numbers(clip) == list(range(start * 25, start * 25 + 75))


# Sound


TONES = "aevalsrc='if(between(mod(t,5),2.5,2.75),sin(2*PI*440*t),0)':s=44100"


def with_tones(video: Path, out: Path, *options: object, seconds: float = 14) -> Path:
    """The video with 0.25 s of a tone at 2.5 s, 7.5 s and so on."""
    tones = ("-f", "lavfi", "-i", f"{TONES}:d={seconds}")
    ffmpeg("-i", video, *tones, "-map", "0:v", "-map", "1:a", "-c:v", "copy", *options, out)
    return out


def tone_at_s(clip: Path) -> float:
    """When the first tone of a clip begins."""
    with av.open(str(clip)) as container:
        frames = list(container.decode(audio=0))
    first, rate = frames[0], frames[0].sample_rate
    loud = np.abs(np.concatenate([frame.to_ndarray()[0] for frame in frames])) > 0.3
    assert first.pts is not None
    assert first.time_base is not None
    return float(first.pts * first.time_base) + int(np.argmax(loud)) / rate


def picture_packets(clip: Path) -> list[bytes]:
    with av.open(str(clip)) as container:
        return [bytes(packet) for packet in container.demux(video=0)]


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "aac"), (".mkv", "aac"), (".ts", "aac"), (".flv", "mp3")]
)
@pytest.mark.parametrize("late", ["neither", "picture", "sound"])
def test_sound_stays_with_its_picture(
    cut_of: Cutting, tmp_path: Path, suffix: str, codec: str, late: str
) -> None:
    video = numbered.make(tmp_path / "video.mp4", range(300), *H264)
    whole, shifted = tmp_path / "whole.mkv", tmp_path / f"shifted{suffix}"
    with_tones(video, whole, "-c:a", "pcm_s16le")
    delay = ("-itsoffset", "1.3")
    ffmpeg(
        *(*(delay if late == "picture" else ()), "-i", whole),
        *(*(delay if late == "sound" else ()), "-i", whole),
        *("-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", codec, shifted),
    )
    later_s = {"neither": 0.0, "picture": -1.3, "sound": 1.3}[late]
    for start in (1, 6):
        made, clip = cut_of(shifted, start, start + 4, keep_audio=True)
        assert made == Cut(100)
        assert numbers(clip) == list(range(start * 25, start * 25 + 100))
        assert tone_at_s(clip) == pytest.approx(1.5 + later_s, abs=0.02)


@pytest.mark.parametrize(
    ("suffix", "picture", "codec"),
    [(".ts", ("copy",), "aac"), (".mpg", ("mpeg2video", "-q:v", "3"), "mp2")],
)
@pytest.mark.parametrize("seconds", [6, 8])
def test_sound_stays_with_its_picture_after_a_joint(
    cut_of: Cutting,
    tmp_path: Path,
    suffix: str,
    picture: Sequence[str],
    codec: str,
    seconds: float,
) -> None:
    """The first part's sound may be shorter than its picture, which lasts 8 s."""
    parts = []
    for first, number, lasts in ((0, 200, seconds), (200, 300, 12)):
        video = numbered.make(tmp_path / "video.mp4", range(first, first + number), *H264)
        part = tmp_path / f"part{first}{suffix}"
        parts.append(with_tones(video, part, "-c:v", *picture, "-c:a", codec, seconds=lasts))
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    made, clip = cut_of(joined, 9, 13, keep_audio=True)
    assert made == Cut(100)
    shown = numbers(clip)
    assert shown == list(range(shown[0], shown[0] + 100))
    # The second part begins with picture 200, and its first tone is 2.5 s later.
    assert tone_at_s(clip) == pytest.approx(2.5 - (shown[0] - 200) / 25, abs=0.05)


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".avi"])
@pytest.mark.parametrize("changes", [{}, ORIGINAL])
def test_the_picture_does_not_depend_on_the_sound(
    cut_of: Cutting, tmp_path: Path, suffix: str, changes: dict[str, object]
) -> None:
    """The sound may end before the segment, begin after it or within it, be damaged, or absent."""
    video = numbered.make(tmp_path / "video.mp4", range(300), *H264)
    short = with_tones(video, tmp_path / f"short{suffix}", "-c:a", "aac", seconds=4)
    late = tmp_path / f"late{suffix}"
    whole = with_tones(video, tmp_path / f"whole{suffix}", "-c:a", "aac")
    ffmpeg(
        *("-i", whole, "-itsoffset", "9", "-i", whole),
        *("-map", "0:v", "-map", "1:a", "-c", "copy", late),
    )
    mute = tmp_path / f"mute{suffix}"
    ffmpeg("-i", whole, "-an", "-c", "copy", mute)
    for path, silent in ((short, True), (late, True), (mute, True), (whole, False)):
        _, clip = cut_of(path, 6, 8, **changes)
        expected = picture_packets(clip)
        made, clip = cut_of(path, 6, 8, keep_audio=True, **changes)
        assert picture_packets(clip) == expected, path
        assert made == Cut(50, is_silent=silent), path
        assert decode.probe(clip).num_audio == (not silent)
    partly = cut_of(short, 3, 6, keep_audio=True, **changes)[0]
    assert partly == Cut(75)


def test_a_cut_removes_no_file_beside_its_clip(
    recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path
) -> None:
    stream = hls_stream(tmp_path, (*H264, "-bf", "0"))
    names = ("talk-source.ts", "talk-sound.mp4", "talk.mp4-times", "source.ts", "mixed.mp4")
    for name in names:
        (tmp_path / name).write_bytes(stream.read_bytes())
    before = {path.name for path in tmp_path.iterdir()}
    for changes in ({"keep_audio": True}, ORIGINAL):
        cut(
            tmp_path / "talk-source.ts",
            tmp_path / "talk.mp4",
            start_s=Fraction(1),
            end_s=Fraction(2),
            recipe=replace(recipe, **changes),  # type: ignore[arg-type]  # of a test's table
            binary=ffmpeg,
        )
    assert {path.name for path in tmp_path.iterdir()} == before | {"talk.mp4"}


def test_damaged_sound_is_left_out(cut_of: Cutting, tmp_path: Path) -> None:
    video = numbered.make(tmp_path / "video.mp4", range(300), *H264)
    good = tmp_path / "good.mkv"
    noise = ("-f", "lavfi", "-i", "anoisesrc=d=14")
    ffmpeg("-i", video, *noise, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "aac", good)
    content = bytearray(good.read_bytes())
    with av.open(str(good)) as container:
        places = [(p.pts, p.time_base, p.pos, p.size) for p in container.demux(audio=0) if p.size]
    for pts, time_base, position, size in places:
        assert pts is not None
        assert position is not None
        assert time_base is not None
        if 6.5 < pts * time_base < 7:
            content[position + 8 : position + size] = b"\xa5" * (size - 8)
    (tmp_path / "bad.mkv").write_bytes(content)
    made, clip = cut_of(tmp_path / "bad.mkv", 6, 8, keep_audio=True)
    assert made == Cut(50, is_silent=True)
    assert numbers(clip) == list(range(150, 200))
    assert cut_of(tmp_path / "bad.mkv", 9, 11, keep_audio=True)[0] == Cut(50)


# Tracks


def cover_first(folder: Path, film: Path) -> Path:
    """An MP4 whose cover picture stands before the film, as some shops write them."""
    cover, last = folder / "cover.jpg", folder / "cover-last.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=200x200:d=1:r=1", "-frames:v", "1", cover)
    ffmpeg(
        *("-i", film, "-i", cover, "-map", "0", "-map", "1", "-c", "copy"),
        *("-disposition:v:1", "attached_pic", "-movflags", "+faststart", last),
    )
    content = last.read_bytes()

    def boxes(at: int, end: int) -> dict[bytes, tuple[int, int]]:
        found = {}
        while at < end:
            size = int.from_bytes(content[at : at + 4], "big")
            found[content[at + 4 : at + 8]] = at, at + size
            at += size
        return found

    start, end = boxes(0, len(content))[b"moov"]
    inner = boxes(start + 8, end)
    (track, _), (user, user_end) = inner[b"trak"], inner[b"udta"]
    first = folder / "cover-first.mp4"
    moved = content[user:user_end]
    first.write_bytes(content[:track] + moved + content[track:user] + content[user_end:])
    return first


def test_the_film_is_taken_not_the_picture_before_it(
    cut_of: Cutting, recipe: ClipRecipe, ffmpeg: Path, tmp_path: Path
) -> None:
    film = numbered.make(tmp_path / "film.mp4", range(225), *H264)
    still = numbered.make(tmp_path / "still.mp4", [1000], *H264)
    other = numbered.make(tmp_path / "other.mp4", [1000] * 225, *H264)
    photos = numbered.make(tmp_path / "photos.mkv", [1000] * 225, "-c:v", "mjpeg", "-q:v", "2")
    copies = {
        "photos.mp4": (photos, ()),
        "photos.mkv": (photos, ()),
        "photos-marked.mkv": (photos, ("-disposition:v:0", "default", "-disposition:v:1", "0")),
        "default-second.mkv": (other, ("-disposition:v:0", "0", "-disposition:v:1", "default")),
        "default-second.mp4": (other, ("-disposition:v:0", "0", "-disposition:v:1", "default")),
        "still.mp4": (still, ()),
    }
    videos = [cover_first(tmp_path, film), tmp_path / "cover-last.mp4"]
    for name, (before, marks) in copies.items():
        numbered.ffmpeg(
            *("-i", before, "-i", film, "-map", "0:v", "-map", "1:v", "-c", "copy", *marks),
            tmp_path / f"two-{name}",
        )
        videos.append(tmp_path / f"two-{name}")
    for video in videos:
        for changes in ({}, ORIGINAL):
            for start in (2, 6):
                _, clip = cut_of(video, start, start + 2, **changes)
                assert numbers(clip) == list(range(start * 25, start * 25 + 50)), (video, start)
        assert numbers(video) == list(range(225)), video
        assert decode.count_frames(video) == 225
        conform(video, tmp_path / "clip.mp4", recipe=recipe, binary=ffmpeg)
        assert numbers(tmp_path / "clip.mp4") == list(range(225)), video


@pytest.mark.parametrize("suffix", [".m4a", ".mp3", ".flac"])
def test_a_song_with_a_cover_is_no_film(cut_of: Cutting, tmp_path: Path, suffix: str) -> None:
    cover, song = tmp_path / "cover.jpg", tmp_path / f"song{suffix}"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=200x200:d=1:r=1", "-frames:v", "1", cover)
    ffmpeg(
        *("-f", "lavfi", "-i", "sine=d=9", "-i", cover, "-map", "0", "-map", "1"),
        *("-c:v", "copy", "-disposition:v:0", "attached_pic", song),
    )
    with pytest.raises(MediaError, match="holds no video"):
        cut_of(song, 0, 1)


def test_a_file_with_nothing_but_photographs_is_a_film_of_them(
    cut_of: Cutting, tmp_path: Path
) -> None:
    for name, codec in (("a.mov", "mjpeg"), ("a.avi", "mjpeg"), ("a.mkv", "png")):
        video = numbered.make(tmp_path / name, range(200), "-c:v", codec, "-q:v", "2")
        assert numbers(cut_of(video, 6, 7)[1]) == list(range(150, 175))


def test_the_default_sound_is_kept(cut_of: Cutting, tmp_path: Path) -> None:
    video = numbered.make(tmp_path / "video.mp4", range(100), *H264)
    two = tmp_path / "two.mkv"
    ffmpeg(
        *("-i", video, "-f", "lavfi", "-i", "anullsrc=d=4", "-f", "lavfi", "-i", f"{TONES}:d=4"),
        *("-map", "0:v", "-map", "1:a", "-map", "2:a", "-c:v", "copy", "-c:a", "aac"),
        *("-disposition:a:0", "0", "-disposition:a:1", "default", two),
    )
    assert tone_at_s(cut_of(two, 1, 4, keep_audio=True)[1]) == pytest.approx(1.5, abs=0.02)


# Ends


@pytest.mark.parametrize(
    ("suffix", "options", "fps"),
    [
        (".mp4", H264, "25"),
        (".mp4", H264, "30"),
        (".mp4", H264, "30000/1001"),
        (".ts", H264, "24"),
        (".avi", MPEG4, "25"),
        (".mpg", MPEG2, "25"),
        (".flv", H264, "25"),
        (".webm", ("-c:v", "libvpx", "-g", "60"), "25"),
    ],
)
def test_half_a_second_is_held_wherever_the_segment_begins(
    cut_of: Cutting, tmp_path: Path, suffix: str, options: Sequence[str], fps: str
) -> None:
    rate = Fraction(fps)
    count = math.floor(9 * rate)
    video = numbered.make(tmp_path / f"video{suffix}", range(count), *options, fps=rate)
    ends_s = count / rate
    for start in (0, "0.02", "1.7", "6.013", "6.03", 7):
        start_s = Fraction(str(start))
        made, clip = cut_of(video, start_s, ends_s + Fraction(1, 2))
        assert made.num_frames == round((ends_s + Fraction(1, 2) - start_s) * 25)
        assert 11 <= made.num_held <= 14
        assert set(numbers(clip)[-made.num_held :]) == {count - 1}
        with pytest.raises(MediaError) as caught:
            cut_of(video, start_s, ends_s + Fraction(51, 100))
        assert caught.value.reason is Reason.TOO_SHORT


# Sections


@pytest.mark.parametrize(
    ("suffix", "options", "times", "why"),
    [
        (".avi", (*H264, "-bf", "0"), (6, 8), "has no index"),
        (".avi", MPEG4, (6, 8), "has no index"),
        (".ts", H264, (6, 8), "has no index"),
        (".mkv", ("-c:v", "wmv2"), (6, 8), "cannot hold wmv2"),
        (".mp4", H264, (9, 11), "ends within the segment"),
        (".mp4", (*H264, "-x264-params", "intra-refresh=1:keyint=40"), (7.2, 9), "cannot begin"),
    ],
)
def test_a_limit_of_sections_is_not_a_fault_of_the_video(
    tmp_path: Path, suffix: str, options: Sequence[str], times: tuple[int, int], why: str
) -> None:
    video = numbered.make(tmp_path / f"video{suffix}", range(250), *options)
    start_s, end_s = map(Fraction, times)
    with video.open("rb") as file, pytest.raises(MediaError, match=why) as caught:
        sections.copy_section(
            [file], tmp_path / "section.mp4", start_s=start_s, end_s=end_s, with_sound=False
        )
    assert caught.value.reason is Reason.NO_FORMATS


def test_a_section_shows_the_film_too(cut_of: Cutting, tmp_path: Path) -> None:
    film = numbered.make(tmp_path / "film.mp4", range(225), *H264)
    with cover_first(tmp_path, film).open("rb") as file:
        section = tmp_path / "section.mp4"
        times = {"start_s": Fraction(6), "end_s": Fraction(8)}
        zero_s = sections.copy_section([file], section, **times, with_sound=False)
    assert numbers(cut_of(section, 6 - zero_s, 8 - zero_s)[1]) == list(range(150, 200))


@pytest.mark.parametrize("b_frames", ["0", "3"])
@pytest.mark.parametrize(("start", "end"), [(2, 6), (10, 20)])
def test_an_original_clip_lasts_as_long_as_its_segment(
    cut_of: Cutting,
    recipe: ClipRecipe,
    ffmpeg: Path,
    tmp_path: Path,
    b_frames: str,
    start: int,
    end: int,
) -> None:
    still = "select='lt(n,100)+gt(n,600)'"  # what is shown at 3.96 s is seen for 20 s
    options = (*H264, "-bf", b_frames, "-fps_mode", "vfr")
    video = numbered.make(tmp_path / "video.mp4", range(700), *options, filters=still)
    _, clip = cut_of(video, start, end, **ORIGINAL)
    assert decode.probe(clip).duration_s == end - start
    at_25_fps = conform(clip, tmp_path / "again.mp4", recipe=recipe, binary=ffmpeg)
    assert at_25_fps.num_frames == (end - start) * 25


def test_the_program_may_be_named_from_where_the_user_is(
    recipe: ClipRecipe, make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ff").symlink_to(encode.find_ffmpeg())
    video = make_video(seconds=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "bin/ff")
    for binary in (Path("bin/ff"), encode.find_ffmpeg()):
        times = {"start_s": Fraction(0), "end_s": Fraction(1)}
        made = cut(video, tmp_path / "clip.mp4", **times, recipe=recipe, binary=binary)
        assert made.num_frames == 25


def uncoded(packet: bytes) -> bytes:
    """A frame of MPEG-4 at 25 fps as one that is not coded: decoders give nothing for it."""
    bits = "".join(f"{byte:08b}" for byte in packet[:40])
    at = bits.index(f"{0x1B6:032b}") + 34  # after the kind of the frame
    at = bits.index("0", at) + 1 + 1 + 5 + 1  # seconds, marker, time, marker
    assert bits[at] == "1"
    bits = bits[:at] + "00"
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_a_frame_that_is_not_coded_is_the_one_before_it_also_where_the_end_is_held(
    cut_of: Cutting, tmp_path: Path
) -> None:
    plain = numbered.make(tmp_path / "plain.mp4", range(223), *MPEG4, "-bf", "0", "-g", "50")
    video = tmp_path / "video.mp4"
    with av.open(str(plain)) as source, av.open(str(video), "w") as target:
        copied = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if not packet.size:
                continue
            new = av.Packet(uncoded(bytes(packet))) if number == 149 else packet
            new.pts, new.dts, new.duration = packet.pts, packet.dts, packet.duration
            new.time_base, new.stream = packet.time_base, copied
            target.mux(new)
    made, clip = cut_of(video, "5.96", 9)
    assert (made.num_frames, made.num_held) == (76, 2)
    assert numbers(clip) == [148, *range(150, 223), 222, 222]


@pytest.mark.parametrize("suffix", [".avi", ".mpg"])
def test_damage_after_the_segment_does_not_cost_its_sound(
    cut_of: Cutting, tmp_path: Path, suffix: str
) -> None:
    video = tmp_path / f"video{suffix}"
    plain = numbered.make(tmp_path / "plain.mp4", range(1000), *H264)
    sound = ("-f", "lavfi", "-i", "sine=d=40", "-map", "0", "-map", "1", "-c:a", "mp2")
    ffmpeg("-i", plain, *sound, "-c:v", "mpeg2video" if suffix == ".mpg" else "mpeg4", video)
    content = bytearray(video.read_bytes())
    at = len(content) * 4 // 5
    content[at : at + 6000] = b"\x55" * 6000
    video.write_bytes(content)
    made, clip = cut_of(video, 6, 9, keep_audio=True)
    assert not made.is_silent
    assert decode.probe(clip).num_audio == 1


@pytest.mark.parametrize("degrees", ["45", "10"])
def test_a_turn_that_is_no_quarter_does_not_stay_in_the_clip(
    cut_of: Cutting, make_video: MakeVideo, tmp_path: Path, degrees: str
) -> None:
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", degrees, "-i", make_video(seconds=2), "-c", "copy", turned)
    _, clip = cut_of(turned, 0, 1)
    assert {frame.rotation for frame in decode.decode_frames(clip)} == {0}


def test_many_joints_with_tags_are_all_followed(cut_of: Cutting, tmp_path: Path) -> None:
    stream = hls_stream(tmp_path, H264)
    tagged = tmp_path / "tagged.ts"
    packets = [stream.read_bytes()[at : at + 188] for at in range(0, stream.stat().st_size, 188)]
    groups = [b"".join(packets[at : at + 20]) for at in range(0, len(packets), 20)]
    tagged.write_bytes(TAG.join(groups))
    for start in (0, 3):
        _, expected = cut_of(stream, start, start + 2)
        content = expected.read_bytes()
        _, clip = cut_of(tagged, start, start + 2)
        assert clip.read_bytes() == content
