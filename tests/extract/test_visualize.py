"""`extract-flow show`: its colours, its pictures, and what it refuses."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kinetics_tools.core.errors import KineticsError, MediaError
from kinetics_tools.core.files import publish
from kinetics_tools.extract import cli
from kinetics_tools.extract.canvas import Board, fit, resize, shorten, width_of
from kinetics_tools.extract.flow_colours import HUES, colours, ramp, wheel
from kinetics_tools.extract.visualize import (
    Excerpt,
    Film,
    Moment,
    Scale,
    Strip,
    draw_sheet,
    film_pictures,
    num_in_sheet,
    open_clip,
)
from kinetics_tools.flow.methods import compute
from kinetics_tools.media import decode, encode, opencv
from kinetics_tools.media.recipe import ClipRecipe
from support import environment, run_command

MakeVideo = Callable[..., Path]
Pixels = npt.NDArray[np.uint8]


def colour_of(x: float, y: float, full_px: float = 1.0) -> list[int]:
    found: list[int] = colours(np.array([x, y], np.float32), full_px=full_px).tolist()
    return found


@pytest.mark.parametrize(
    ("vector", "rgb"),
    [
        # Worked out by hand from Middlebury's colorcode.cpp.
        ((0, 0), [255, 255, 255]),
        ((1, 0), [255, 0, 0]),
        ((0, 1), [255, 229, 0]),
        ((-1, 0), [0, 209, 255]),
        ((0, -1), [88, 0, 255]),
        ((0.5, 0), [255, 127, 127]),
        ((2, 0), [191, 0, 0]),
        ((0, 30), [191, 172, 0]),
        ((float("nan"), 0), [0, 0, 0]),
        ((2e9, 0), [0, 0, 0]),
    ],
)
def test_vectors_have_the_colours_of_middlebury(
    vector: tuple[float, float], rgb: list[int]
) -> None:
    assert colour_of(*vector) == rgb


def test_the_wheel_has_55_hues_without_a_jump() -> None:
    assert HUES.shape == (55, 3)
    assert HUES[[0, 15, 21, 25, 36, 49]].tolist() == [
        [255, 0, 0],
        [255, 255, 0],
        [0, 255, 0],
        [0, 255, 255],
        [0, 0, 255],
        [255, 0, 255],
    ]
    assert abs(np.diff(np.vstack([HUES, HUES[:1]]), axis=0)).max() <= 64
    assert (HUES.max(axis=1) == 255).all()


def test_twice_the_speed_on_twice_the_scale_is_the_same_colour() -> None:
    field = np.random.default_rng(0).normal(0, 3, (7, 9, 2)).astype(np.float32)

    assert np.array_equal(colours(field, full_px=4), colours(2 * field, full_px=8))
    with pytest.raises(ValueError, match="above 0, not 0"):
        colours(field, full_px=0)


def test_the_key_shows_right_at_its_right() -> None:
    disc = wheel(101)

    assert disc.shape == (101, 101, 3)
    assert abs(disc[51, 99].astype(int) - colour_of(0.97, 0)).max() <= 12  # red, just below which
    assert abs(disc[49, 99].astype(int) - colour_of(0.97, -0.0)).max() <= 12  # and above differ
    assert abs(disc[99, 50].astype(int) - colour_of(0, 0.97)).max() <= 12
    assert disc[50, 50].min() > 245
    assert (disc[0, 0] == 255).all()


def test_the_ramp_goes_from_white_to_dark_and_stops() -> None:
    steps = ramp(np.linspace(0, 2, 9, dtype=np.float32), full=1.0)

    assert steps[0].tolist() == [255, 255, 255]
    brightness = steps.astype(int).sum(axis=1)
    assert (np.diff(brightness[:5]) < 0).all()
    assert (steps[4:] == steps[4]).all()
    assert brightness[4] < 30


def test_panels_are_shown_at_whole_multiples_of_their_pixels() -> None:
    assert fit((144, 180), at_least=256, at_most=960) == (2, 1)
    assert fit((256, 340), at_least=256, at_most=960) == (1, 1)
    assert fit((4, 4), at_least=256, at_most=960) == (64, 1)
    assert fit((4, 700), at_least=256, at_most=960) == (1, 1)
    assert fit((4320, 7680), at_least=256, at_most=960) == (1, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(resize(pixels, (3, 1))[1::3, 1::3], pixels)
    halves = resize(pixels, (1, 2))
    assert halves.shape == (2, 3, 3)
    assert np.array_equal(halves[0, 0], pixels[:2, :2].mean(axis=(0, 1)).round())
    assert resize(pixels[:1], (1, 2)).shape == (1, 3, 3)


def test_a_board_keeps_its_panels_and_writes_beside_them() -> None:
    panel = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    board = Board(121, 63)
    board.paste(panel, (10, 40))
    board.write((10, 20), "a $1 clip \U0001f600")

    drawn = board.render()

    assert drawn.shape == (63, 121, 3)
    assert np.array_equal(drawn[40:60, 10:40], panel)
    assert (drawn[39, 9:41] < 255).all()
    assert drawn[10:30, 10:100].min() < 100
    assert (drawn[:8] == 255).all()


def test_text_is_as_wide_as_it_says_and_is_shortened_to_fit() -> None:
    board = Board(300, 30)
    board.write((10, 15), "a_rather_long_name", bold=True)
    columns = np.flatnonzero((board.render() < 200).any(axis=(0, 2)))
    width = width_of("a_rather_long_name", bold=True)

    assert abs(columns[-1] - columns[0] + 1 - width) <= 0.05 * width
    short = shorten("a_rather_long_name", width / 2, bold=True)
    assert 0.3 * width < width_of(short, bold=True) <= width / 2
    head, tail = short.split("…")
    assert "a_rather_long_name".startswith(head)
    assert "a_rather_long_name".endswith(tail)
    assert shorten("short", 60) == "short"


def moment(step: float = 2.0, *, num_flows: int = 1, size: tuple[int, int] = (64, 96)) -> Moment:
    """A frame of noise that moves to the right; a second flow that says it a little slower."""
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    flows = [np.full((*size, 2), [step * (1 - 0.1 * n), 0], np.float32) for n in range(num_flows)]
    return Moment(number=3, frame=frame, flows=tuple(flows))


def test_the_scale_is_a_round_number_that_suits_the_clip() -> None:
    assert Scale.of([moment(2.3)]) == Scale(full_px=3, difference_px=0.1)
    assert Scale.of([moment(14, num_flows=2)]) == Scale(full_px=15, difference_px=1.5)
    assert Scale.of([moment(0)]).full_px == 0.5
    assert Scale.of([moment(2.3)], full_px=7.7).full_px == 7.7


def test_one_method_is_beside_its_frame() -> None:
    shown = moment(2.0)

    (picture,) = film_pictures([shown], "clip", ("tvl1",), Scale(full_px=2, difference_px=1))

    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    up = 4  # 64 pixels are shown on 256
    frame = shown.frame.repeat(up, 0).repeat(up, 1)
    assert np.array_equal(picture[35 : 35 + 64 * up, 18 : 18 + 96 * up], frame)
    right = picture[35 : 35 + 64 * up, 18 + 96 * up + 12 :][:, : 96 * up]
    assert (right == [255, 0, 0]).all()
    foot = picture[35 + 64 * up + 4 :]
    assert len(np.unique(foot.reshape(-1, 3), axis=0)) > 500  # the wheel is there


def test_two_methods_are_below_and_their_difference_beside_the_frame() -> None:
    shown = moment(2.0, num_flows=2)

    (picture,) = film_pictures([shown], "clip", ("a", "b"), Scale(full_px=2, difference_px=0.4))

    height, width = 64 * 4, 96 * 4
    right, lower = 18 + width + 12, 35 + height + 12 + 26
    ours, theirs = (picture[lower:][:height, x:][:, :width] for x in (18, right))
    assert (ours == colour_of(2, 0, 2)).all()
    assert (theirs == colour_of(1.8, 0, 2)).all()
    difference = picture[35:][:height, right:][:, :width]
    assert (difference == ramp(np.full(1, 0.2, np.float32), full=0.4)).all()


def test_a_sheet_shows_every_strip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    strips = [
        Strip(title=f"clip {n}", names=("tvl1", "b"), moments=[moment(n, num_flows=2)] * 3)
        for n in (1, 2)
    ]

    draw_sheet(path, strips, Scale(full_px=2, difference_px=1))

    (picture,) = decode.read_frames(path, None)
    frame = strips[0].moments[0].frame.repeat(4, 0).repeat(4, 1)
    strip = 28 + 26 + 4 * (256 + 12) + 26 + 12  # title, times, panels, figures, gap
    for y in (9 + 28 + 26, 9 + 28 + 26 + strip):
        for x in (122, 122 + 384 + 12, 122 + 2 * (384 + 12)):
            assert np.array_equal(picture[y : y + 256, x : x + 384], frame)
            assert (picture[y + 256 + 12 :, x:][:256, :384] == colour_of(1, 0, 2)).all() == (y < 99)
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_a_film_shows_the_frames_and_flow_that_would_be_stored(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    clip = make_video(seconds=0.4, fps="25", size="64x48")
    recipe = ClipRecipe(short_side=32, enlarge=True)
    with open_clip(clip, recipe, start=0, num_frames=None, tmp_dir=tmp_path) as whole:
        film = Film(title="a", part=whole, methods=("tvl1", "opencv-tvl1"), device="cpu")
        frames = decode.read_frames(whole.path)
        found = list(film.moments())
        few = list(film.some(4))
    grey = opencv.gray(frames)

    assert whole.num_frames == len(frames) == 10
    assert [m.number for m in found] == list(range(9))
    assert np.array_equal(np.stack([m.frame for m in found]), frames[:-1])
    for at, method in enumerate(("tvl1", "opencv-tvl1")):
        expected = compute(grey, method)
        assert np.array_equal(np.stack([m.flows[at] for m in found]), expected)
    assert [m.number for m in few] == [1, 3, 5, 7]
    assert all(np.array_equal(m.frame, frames[m.number]) for m in few)
    assert np.allclose(few[0].flows[0], found[1].flows[0], atol=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_a_part_has_the_numbers_of_the_whole_clip(tmp_path: Path, make_video: MakeVideo) -> None:
    clip = make_video(seconds=2, fps="30", size="64x48")  # conforms in nothing
    recipe = ClipRecipe(short_side=None, enlarge=True)
    with open_clip(clip, recipe, start=0, num_frames=None, tmp_dir=tmp_path) as whole:
        everything = decode.read_frames(whole.path)
        assert (whole.start, whole.number, whole.num_frames) == (0, 0, 50)
    with open_clip(clip, recipe, start=30, num_frames=7, tmp_dir=tmp_path) as part:
        some = decode.read_frames(part.path)
        assert (part.start, part.number, part.num_frames) == (0, 30, 7)
    assert abs(some.astype(int) - everything[30:37]).mean() < 3  # encoded by itself
    stored = make_video(seconds=1, fps="25", size="64x48", options="-c:v libx264 -g 16")
    with open_clip(stored, recipe, start=20, num_frames=None, tmp_dir=tmp_path) as end:
        assert end == Excerpt(stored, 20, 5, 20)  # such a clip is read as it is
        film = Film(title="a", part=end, methods=("tvl1",), device="cpu")
        assert [m.number for m in film.moments()] == [20, 21, 22, 23]


def frames_of(path: Path) -> Pixels:
    return np.stack(list(decode.frames(path)))


@pytest.mark.parametrize("method", ["tvl1", "tvl1,opencv-tvl1"])
def test_the_command_draws_a_film(tmp_path: Path, make_video: MakeVideo, method: str) -> None:
    clip = make_video(seconds=0.4, fps="25", size="64x48")
    options = ("--method", method, "--short-side", "keep", "--frames", 5, "--start", 2)

    done = run_command("extract-flow", "show", clip, tmp_path / "o.mp4", *options)

    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/o.mp4: 4 frames, full colour" in done.stdout
    assert ("mean difference of tvl1 and opencv-tvl1: 0.0" in done.stdout) == ("," in method)
    video = decode.probe(tmp_path / "o.mp4")
    assert (video.codec, video.pixel_format) == ("h264", "yuv420p")
    assert video.fps == 25
    pictures = frames_of(tmp_path / "o.mp4")
    assert len(pictures) == 4
    shown = pictures[:, 35 : 35 + 48 * 5, 18 : 18 + 64 * 5][:, 2::5, 2::5]
    assert abs(shown.astype(int) - frames_of(clip)[2:6]).mean() < 12  # encoded, half the colour
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]


def test_the_command_draws_a_sheet_of_a_real_clip(shared_data: Path, tmp_path: Path) -> None:
    clip = shared_data / "weizmann" / "jack" / "daria_jack.avi"

    done = run_command(
        "extract-flow", "show", clip, tmp_path / "o.png", "--short-side", 48, "--full", 3
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/o.png: 6 moments, full colour 3 px\n"
    (picture,) = decode.read_frames(tmp_path / "o.png", None)
    assert picture.shape[1] > 6 * 60 * 5
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 5000


def test_wide_clips_have_fewer_moments_in_a_sheet() -> None:
    assert [num_in_sheet(256, width) for width in (256, 340, 456)] == [6, 6, 4]
    assert num_in_sheet(1080, 1920) == 2
    assert num_in_sheet(4320, 7680) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["absent.mp4", "o.png"], "absent.mp4: no such file"),
        (["clip.mp4", "o.gif"], "'o.gif' does not end in .mp4 or .png"),
        (["one.mp4", "o.mp4"], "one.mp4: frames: 1; flow needs 2"),
        (["clip.mp4", "o.png", "--start", "9"], "clip.mp4: frames from frame 9 on: 1; flow needs"),
        (["clip.mp4", "o.png", "--start", "99"], "holds no frame from 3.96 s on (frame 99)"),
        (["clip.mp4", "o.png", "--frames", "1"], "clip.mp4: frames: 1; flow needs 2"),
        (["clip.mp4", "o.png", "--method", "tvl"], "unknown flow method 'tvl'. Did you mean 'tvl"),
        (["clip.mp4", "o.png", "--method", "tvl1,tvl1"], "is not one method, or two"),
        (["clip.mp4", "o.png", "--device", "cuda:97"], "no device 'cuda:97' here"),
        (["clip.mp4", "o.png", "--full", "-1"], "'-1' is not a number of pixels from 0.001"),
        (["dot.mp4", "o.png", "--short-side", "keep"], "dot.mp4: is 2x2 pixels; flow needs 4"),
        (["half.mp4", "o.mp4"], "half.mp4: "),
        (["text.mp4", "o.mp4"], "text.mp4: cannot be decoded"),
        (["folder.mp4", "o.png"], "folder.mp4: is a folder"),
        (["clip.mp4", "folder.mp4"], "folder.mp4 is a folder; choose another FILE"),
        (["clip.mp4", "clip.mp4"], "is both CLIP and FILE"),
        (["clip.mp4", "o.png", "--tmp-dir", "/proc/x"], "/proc/x cannot be made; choose another"),
        (["clip.mp4", "/proc/x/o.png"], "/proc/x cannot be made; choose another"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_no_file(
    tmp_path: Path,
    make_video: MakeVideo,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    shutil.copy(make_video(seconds=0.4, fps="25", size="64x48"), tmp_path / "clip.mp4")
    shutil.copy(make_video(seconds=0.04, fps="25", size="64x48"), tmp_path / "one.mp4")
    shutil.copy(make_video(seconds=0.2, fps="25", size="2x2"), tmp_path / "dot.mp4")
    whole = make_video(seconds=4, fps="30").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)

    with pytest.raises((KineticsError, SystemExit)) as ended:
        cli.show_main(options)

    said = str(ended.value) if isinstance(ended.value, KineticsError) else capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_ends_in_one_line(tmp_path: Path, make_video: MakeVideo) -> None:
    clip = make_video(seconds=0.4, fps="25", size="64x48")
    (tmp_path / "text").touch()

    absent = run_command("extract-flow", "show", tmp_path / "absent.mp4", tmp_path / "o.png")
    below = run_command("extract-flow", "show", clip, tmp_path / "text" / "o.png")

    assert (absent.returncode, below.returncode) == (2, 2)
    assert absent.stderr == f"error: {tmp_path}/absent.mp4: no such file\n"
    assert below.stderr.count("\n") == 1
    assert below.stderr == f"error: {tmp_path}/text is not a folder; choose another\n"


def test_damage_in_the_middle_of_a_film_leaves_no_file(tmp_path: Path) -> None:
    def pictures() -> Iterator[Pixels]:
        yield np.zeros((48, 64, 3), np.uint8)
        raise MediaError(tmp_path, "damaged")

    with pytest.raises(MediaError), publish(tmp_path / "o.mp4") as scratch:
        encode.write_video(scratch, pictures(), fps=25, binary=encode.find_ffmpeg())

    assert list(tmp_path.iterdir()) == []


def test_a_film_is_drawn_as_it_is_read(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_video(seconds=4, fps="25", size="64x48", options="-c:v libx264 -g 16")
    methods = ("tvl1", "opencv-tvl1")
    film = Film(title="a", part=Excerpt(clip, 0, 100, 0), methods=methods, device="cpu")
    num_read = 0
    decoded = decode.frames

    def frames(source: Path | bytes) -> Iterator[Pixels]:
        nonlocal num_read
        for frame in decoded(source):
            num_read += 1
            yield frame

    monkeypatch.setattr(decode, "frames", frames)
    drawn = film_pictures(film.moments(), "a", methods, Scale(full_px=1, difference_px=1))

    first, second = next(drawn), next(drawn)

    assert not np.array_equal(first, second)
    assert 3 <= num_read <= 3 + 2**16 // (64 * 48)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kinetics_tools.extract.cli import show_parser; "
        "show_parser().format_help(); "
        "print(*{'torch', 'cv2', 'numpy', 'av', 'matplotlib', 'numba'} & {*sys.modules})"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []
