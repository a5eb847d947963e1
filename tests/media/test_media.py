"""Clips: which frames they have, what damage does, what is stored and read back."""

import errno
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import numbered
from conftest import Cutter, MakeVideo
from kinetics_tools.core.errors import KineticsError, MediaError, Reason
from kinetics_tools.media import decode, gray
from kinetics_tools.media.clips import Cut, conform, conforming_frames, cut
from kinetics_tools.media.encode import ffmpeg_version, find_ffmpeg, write_video
from kinetics_tools.media.recipe import ClipRecipe
from numbered import numbers, picture
from support import environment, run


@pytest.fixture(scope="module")
def numbered_video(
    ffmpeg: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Fraction], Path]:
    folder = tmp_path_factory.mktemp("numbered")

    def make(fps: Fraction) -> Path:
        path = folder / f"{fps.numerator}-{fps.denominator}.mp4"
        if not path.exists():
            pictures = map(picture, range(math.floor(fps * 14)))
            write_video(path, pictures, fps=fps, binary=ffmpeg)
        return path

    return make


RATES = tuple(map(Fraction, ("25", "24", "30", "30000/1001", "12.5", "60", "15")))


@given(fps=st.sampled_from(RATES), start_ms=st.integers(0, 12000), num_frames=st.integers(1, 40))
@settings(max_examples=40)
def test_a_clip_has_the_last_frame_at_or_before_each_of_its_times(
    numbered_video: Callable[[Fraction], Path],
    ffmpeg: Path,
    recipe: ClipRecipe,
    tmp_path_factory: pytest.TempPathFactory,
    fps: Fraction,
    start_ms: int,
    num_frames: int,
) -> None:
    start_s = Fraction(start_ms, 1000)
    clip = tmp_path_factory.mktemp("cut") / "clip.mp4"
    end_s = start_s + Fraction(num_frames, 25)
    cut(numbered_video(fps), clip, start_s=start_s, end_s=end_s, recipe=recipe, binary=ffmpeg)
    assert numbers(clip) == [
        math.floor((start_s + Fraction(k, 25)) * fps) for k in range(num_frames)
    ]


def test_a_variable_rate_is_held_until_the_next_frame(
    ffmpeg: Path, cutter: Cutter, tmp_path: Path
) -> None:
    steady, varied = tmp_path / "steady.mp4", tmp_path / "varied.mp4"
    write_video(steady, map(picture, range(40)), fps=10, binary=ffmpeg)
    # Frame n is shown at n*n/100 s: ever longer, up to 0.78 s.
    times = ("-vf", "settb=1/1000,setpts=N*N*10", "-fps_mode", "passthrough")
    exact = ("-enc_time_base", "1:1000")
    run(ffmpeg, "-loglevel", "error", "-i", steady, *times, *exact, varied)
    _, clip = cutter(varied, 7, 12)
    assert numbers(clip) == [math.isqrt(math.floor((7 + k / 25) * 100 + 1e-6)) for k in range(125)]


def test_times_count_from_the_first_frame_not_from_time_zero_of_the_file(
    ffmpeg: Path, cutter: Cutter, tmp_path: Path
) -> None:
    steady, late = tmp_path / "steady.mp4", tmp_path / "late.mkv"
    write_video(steady, map(picture, range(300)), fps=25, binary=ffmpeg)
    sound = ("-f", "lavfi", "-i", "sine=duration=15")
    run(
        ffmpeg,
        "-loglevel",
        "error",
        "-itsoffset",
        "3.2",
        "-i",
        steady,
        *sound,
        "-c:v",
        "copy",
        late,
    )
    for start in (0, 7):  # decoded from zero, and reached by a seek
        _, clip = cutter(late, start, start + 1)
        assert numbers(clip) == list(range(start * 25, start * 25 + 25))


def test_a_clip_is_h264_of_the_wanted_size_with_keyframes_and_nothing_else(
    make_video: MakeVideo, recipe: ClipRecipe, cutter: Cutter
) -> None:
    video = make_video(size="642x360", fps="30", sound=True)
    made, clip = cutter(video, 1, 3)
    assert made == Cut(50)
    facts = decode.probe(clip)
    assert (facts.width, facts.height, facts.codec) == (456, 256, "h264")
    assert (facts.pixel_format, facts.fps, facts.num_audio) == ("yuv420p", Fraction(25), 0)
    with av.open(str(clip)) as container:
        keys = [n for n, frame in enumerate(container.decode(video=0)) if frame.key_frame]
        assert "encoder" not in container.metadata
    assert max(b - a for a, b in zip(keys, [*keys[1:], 50], strict=True)) <= 16
    assert conforming_frames(clip, recipe) == decode.count_frames(clip)
    assert not conforming_frames(clip, replace(recipe, short_side=128))
    assert not conforming_frames(video, recipe)


@pytest.mark.parametrize(
    ("size", "changes", "shown"),
    [
        ("120x90", {}, (120, 90)),
        ("121x91", {}, (120, 90)),
        ("120x90", {"enlarge": True}, (342, 256)),
        ("360x640", {}, (256, 456)),
        ("360x640", {"short_side": None}, (360, 640)),
        ("642x360", {"keep_original": True}, (642, 360)),
    ],
)
def test_the_size_of_clips(
    make_video: MakeVideo,
    ffmpeg: Path,
    recipe: ClipRecipe,
    tmp_path: Path,
    size: str,
    changes: dict[str, object],
    shown: tuple[int, int],
) -> None:
    chosen = replace(recipe, **changes)  # type: ignore[arg-type]  # of a test's table
    video = make_video(seconds=1, size=size, options="-c:v libx264 -pix_fmt yuv444p")
    conform(video, tmp_path / "c.mp4", recipe=chosen, binary=ffmpeg)
    facts = decode.probe(tmp_path / "c.mp4")
    assert (facts.width, facts.height) == shown


def test_rotation_is_applied(
    make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path
) -> None:
    upright, turned = make_video(seconds=1, size="128x96"), tmp_path / "turned.mp4"
    turn = ("-display_rotation", "90")
    run(ffmpeg, "-loglevel", "error", *turn, "-i", upright, "-c", "copy", turned)
    assert (decode.probe(turned).width, decode.probe(turned).height) == (96, 128)
    conform(turned, tmp_path / "a.mp4", recipe=recipe, binary=ffmpeg)
    conform(upright, tmp_path / "b.mp4", recipe=recipe, binary=ffmpeg)
    a, b = (next(iter(decode.frames(tmp_path / name))) for name in ("a.mp4", "b.mp4"))
    assert a.shape == (128, 96, 3)
    assert np.abs(a.astype(int) - np.rot90(b).astype(int)).mean() < 2


def test_a_video_that_ends_too_early_is_too_short_and_half_a_second_is_held(
    make_video: MakeVideo, cutter: Cutter
) -> None:
    video = make_video(seconds=3)
    assert cutter(video, 1, 3)[0] == Cut(50)
    assert cutter(video, "1.4", "3.4")[0] == Cut(50, num_held=10)
    for start, end in ((1, 4), (3, 4), (50, 60)):
        with pytest.raises(MediaError, match="ends") as caught:
            cutter(video, start, end)
        assert caught.value.reason is Reason.TOO_SHORT


def test_sound_size_and_rate_are_kept_on_request(
    make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path
) -> None:
    video, clip = make_video(fps="30", sound=True, seconds=9), tmp_path / "clip.mp4"
    chosen = replace(recipe, keep_audio=True, keep_original=True)
    for start in (1, 6):
        times = {"start_s": Fraction(start), "end_s": Fraction(start + 2)}
        made = cut(video, clip, **times, recipe=chosen, binary=ffmpeg)
        assert made == Cut(60)
        with av.open(str(clip)) as container:
            assert container.streams.video[0].average_rate == 30
            sound = container.streams.audio[0]
            seconds = sum(f.samples for f in container.decode(sound)) / sound.rate
            assert seconds == pytest.approx(2, abs=0.1)


def test_damage_is_an_error_whatever_the_status_of_ffmpeg(
    make_video: MakeVideo, cutter: Cutter, tmp_path: Path
) -> None:
    whole = make_video(seconds=4, options="-c:v libx264 -movflags +faststart").read_bytes()
    middle = len(whole) // 2
    start = whole.index(b"mdat") + 4
    for name, content in (
        ("half.mp4", whole[:middle]),
        ("page.mp4", b"<html></html>"),
        ("empty.mp4", b""),
        ("scribble.mp4", whole[:middle] + b"\x55" * 4000 + whole[middle + 4000 :]),
        ("start.mp4", whole[:start] + b"\x55" * (len(whole) - 4000 - start) + whole[-4000:]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError) as caught:
            cutter(tmp_path / name, 0, 4)
        assert caught.value.reason is Reason.DAMAGED, name
        assert "\n" not in str(caught.value)
        # One line of ffmpeg's messages, and not one about the end of its threads.
        assert not re.search(
            r" \| |thread|Task| 0x|\] \[|Nothing was|Could not open enc", caught.value.detail
        ), caught.value


def test_a_full_disk_is_not_an_error_of_the_video(
    make_video: MakeVideo, ffmpeg: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, resource, signal; from pathlib import Path\n"
        "from kinetics_tools.media import clips\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n"
        "    clips.conform(Path(sys.argv[1]), Path(sys.argv[2]), recipe=clips.ClipRecipe(),\n"
        "        binary=Path(sys.argv[3]))\n"
        "except OSError as error: print(error.errno)\n"
    )
    video = make_video(size="320x240")
    said = subprocess.run(
        [sys.executable, "-B", "-c", code, video, tmp_path / "c.mp4", ffmpeg],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert said.stdout.strip() == str(errno.EFBIG), said.stderr


def test_bytes_do_not_depend_on_the_clock_or_the_name(
    make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path
) -> None:
    made = []
    for name in ("a.mp4", "-b.mp4"):
        conform(make_video(), tmp_path / name, recipe=recipe, binary=ffmpeg)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_frames_are_read_by_number(
    numbered_video: Callable[[Fraction], Path], ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    conform(numbered_video(Fraction(25)), clip, recipe=recipe, binary=ffmpeg)
    whole = decode.read_frames(clip)
    assert whole.dtype == np.uint8
    for source in (clip, clip.read_bytes()):
        for indices in ([0], [349], [200, 202, 204], [31, 30, 5, 30]):
            np.testing.assert_array_equal(decode.read_frames(source, indices), whole[indices])
    with pytest.raises(MediaError, match="no frame 350"):
        decode.read_frames(clip, [3, 350])
    with pytest.raises(ValueError, match="no frame"):
        decode.read_frames(clip, [])


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(2, 40), st.integers(2, 40))),
    st.data(),
)
@settings(max_examples=30)
def test_gray_frames_are_stored_without_loss(frames: decode.Frame, data: st.DataObject) -> None:
    encode = partial(gray.encode_gray, encoder="ffv1", container="matroska", options={"g": "1"})
    stored = encode(frames)
    assert stored == encode(frames)
    np.testing.assert_array_equal(gray.decode_gray(stored)[:, 0], frames)
    assert stored == encode(iter(frames))
    indices = data.draw(st.lists(st.integers(0, len(frames) - 1), min_size=1, max_size=4))
    np.testing.assert_array_equal(gray.decode_gray(stored, indices)[:, 0], frames[indices])


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", ("-c:v", "libx264", "-bf", "3", "-b_strategy", "0", "-g", "16")),
        (".mp4", ("-c:v", "libx264", "-bf", "5", "-x264-params", "b-pyramid=strict:open-gop=1")),
        (".mp4", ("-c:v", "libx264", "-bf", "0", "-g", "250")),
        (".mp4", ("-c:v", "libx265", "-x265-params", "bframes=4:keyint=20:log-level=none")),
        (".mkv", ("-c:v", "mpeg4", "-bf", "2", "-q:v", "3")),
        (".mp4", ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "3")),
        (".webm", ("-c:v", "libvpx-vp9", "-b:v", "1M", "-deadline", "realtime")),
    ],
)
def test_frames_by_number_are_those_of_the_whole_clip(
    suffix: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    """Frames that are not wanted, and that no other needs, are not decoded."""
    clip = numbered.make(tmp_path / f"clip{suffix}", range(70), *options)
    whole = decode.read_frames(clip)
    assert len(whole) == 70
    chosen = [[0], [69], [0, 69], list(range(5, 40)), list(range(0, 70, 3)), [41, 7, 7, 8, 64]]
    for indices in (*chosen, *([number] for number in range(70))):
        np.testing.assert_array_equal(decode.read_frames(clip, indices), whole[indices])
        part = decode.read_frames(clip, indices, lambda *_: (slice(3, 20), slice(5, 32)))
        np.testing.assert_array_equal(part, whole[indices][:, 3:20, 5:32])
    with pytest.raises(MediaError, match="has no frame 70"):
        decode.read_frames(clip, [3, 70])


def test_a_colour_video_is_not_taken_for_a_grey_one(make_video: MakeVideo) -> None:
    with pytest.raises(MediaError, match="is not a grey video of 1 parts but yuv420p"):
        gray.decode_gray(make_video(size="64x64", seconds=1).read_bytes())


@pytest.mark.parametrize("container", ["h264", "rawvideo"])
def test_a_grey_video_without_times_is_one_line(container: str) -> None:
    frames = [np.full((16, 16), 100 + n, np.uint8) for n in range(3)]
    data = gray.encode_gray(frames, encoder="libx264", container=container, options={"g": "1"})
    for indices in (None, [0], [1, 2]):
        with pytest.raises(MediaError):
            gray.decode_gray(data, indices)


def test_encoders_have_versions() -> None:
    assert gray.encoder_versions("ffv1").keys() == {"ffmpeg"}
    assert gray.encoder_versions("libx264")["x264"].isdecimal()


def test_damage_of_a_stored_clip_is_noticed(make_video: MakeVideo) -> None:
    stored = bytearray(make_video(size="320x240").read_bytes())
    middle = len(stored) // 2
    stored[middle : middle + 40] = b"\x55" * 40
    with pytest.raises(MediaError, match="cannot be decoded"):
        decode.read_frames(bytes(stored))


def test_another_ffmpeg_must_be_a_program_that_answers_as_ffmpeg(tmp_path: Path) -> None:
    with pytest.raises(KineticsError, match="no program there"):
        find_ffmpeg(tmp_path / "ffmpeg")
    with pytest.raises(KineticsError, match="does not answer"):
        ffmpeg_version(Path(sys.executable))


def test_real_videos_become_exact_clips(shared_data: Path, cutter: Cutter) -> None:
    clips = shared_data / "clips"
    for name, start, end in (
        ("R6llTwEh07w.mp4", 0, 10),
        ("WUzgd7C1pWA.mp4", 0, 10),
        ("long_1080p.mp4", 100, 110),
        ("h265_video.mp4", 0, 1),
        ("av1_video.mkv", 0, 1),
        ("hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi", 0, 2),
        ("RATRACE_wave_f_nm_np1_fr_goo_37.avi", 0, 2),
    ):
        assert cutter(clips / name, start, end)[0] == Cut((end - start) * 25), name
    with pytest.raises(MediaError):
        cutter(clips / "corrupted.mp4", 0, 5)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_a_text_that_names_other_files_is_no_video(
    suffix: str, make_video: MakeVideo, tmp_path: Path
) -> None:
    """An ffconcat list or a playlist, called a clip, would read the files that it names."""
    secret = make_video(seconds=1, size="64x64")
    (tmp_path / "secret.mp4").write_bytes(secret.read_bytes())
    clip = tmp_path / f"clip{suffix}"
    for text in (
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    ):
        clip.write_text(text)
        for use in (decode.probe, decode.count_frames, decode.read_frames):
            with pytest.raises(MediaError):
                use(clip)
