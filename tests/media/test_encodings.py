"""Encodings of clips: the frames and times are the same, folders hold one of them."""

import math
import shutil
import tarfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MakeVideo
from kinetics_tools.core.errors import UnknownNameError
from kinetics_tools.core.files import digest
from kinetics_tools.media import decode
from kinetics_tools.media.clips import conform, conforming_frames, cut
from kinetics_tools.media.recipe import ENCODINGS, ClipRecipe, all_parameters
from numbered import make, numbers, times_s
from support import run_command, tree

# Of all recipes before there were encodings.
HASHES = {
    "bilinear": "61d138130f022ab0455997354969abb91a1f8f5d8ded0c7349e0f7ad8f67e880",
    "bicubic": "ba28cae0f04ec27ee55d379764fe03ef32f3ee33be57d826a411faa6f7a214a9",
}
OTHERS = [name for name in ENCODINGS if name != "compact"]
CODERS = {"compact": "ac", "fastdecode": "vlc"}


@pytest.mark.parametrize("scaler", HASHES)
def test_recipes_without_the_option_keep_their_hash(scaler: str) -> None:
    recipe = ClipRecipe(scaler=scaler, ffmpeg="9.0.2")
    assert digest(recipe.as_json()) == HASHES[scaler]
    assert "encoding" not in recipe.as_json()
    assert next(iter(ENCODINGS)) == recipe.encoding == "compact"
    assert recipe.x264_options() == {"preset": "medium", "crf": 18, "g": 16}


@pytest.mark.parametrize("encoding", OTHERS)
def test_another_encoding_is_recorded_and_has_a_hash_of_its_own(encoding: str) -> None:
    recipe = ClipRecipe(encoding=encoding, ffmpeg="9.0.2")
    assert recipe.as_json()["encoding"] == encoding
    assert digest(recipe.as_json()) not in HASHES.values()
    assert ClipRecipe.from_json(recipe.as_json()) == recipe
    assert all_parameters(ClipRecipe().as_json())["encoding"] == "compact"


def test_an_unknown_encoding_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown encoding 'fastdecod'.*fastdecode"):
        ClipRecipe(encoding="fastdecod").x264_options()


def test_quality_cannot_be_better_than_without_loss() -> None:
    assert ClipRecipe(encoding="fastdecode", crf=0).x264_options()["crf"] == 0


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 14 s at 30 frames per second whose frames show their number."""
    return make(tmp_path_factory.mktemp("counting") / "video.mp4", range(420), fps=30)


@given(
    encoding=st.sampled_from(OTHERS),
    start_ms=st.integers(0, 12000),
    num_frames=st.integers(1, 40),
    keep_original=st.booleans(),
)
@settings(max_examples=20)
def test_a_cut_has_the_same_frames_at_the_same_times_by_every_encoding(
    counting: Path,
    ffmpeg: Path,
    recipe: ClipRecipe,
    tmp_path_factory: pytest.TempPathFactory,
    encoding: str,
    start_ms: int,
    num_frames: int,
    keep_original: bool,
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    start_s = Fraction(start_ms, 1000)
    times: dict[str, Any] = {"start_s": start_s, "end_s": start_s + Fraction(num_frames, 25)}
    found = []
    for name in ("compact", encoding):
        clip = folder / f"{name}.mp4"
        own = replace(recipe, encoding=name, keep_original=keep_original)
        cut(counting, clip, **times, recipe=own, binary=ffmpeg)
        found.append((numbers(clip), times_s(clip)))
    assert found[0] == found[1]
    if not keep_original:
        shown = [math.floor((start_s + Fraction(k, 25)) * 30) for k in range(num_frames)]
        assert found[1] == (shown, [Fraction(k, 25) for k in range(num_frames)])


@pytest.mark.parametrize("encoding", OTHERS)
def test_a_conformed_clip_has_the_same_form_and_its_header_says_the_coder(
    make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path, encoding: str
) -> None:
    video = make_video(seconds=3, size="642x360")
    other = replace(recipe, encoding=encoding)
    usual, clip = tmp_path / "usual.mp4", tmp_path / "clip.mp4"
    made = conform(video, usual, recipe=recipe, binary=ffmpeg)
    assert conform(video, clip, recipe=other, binary=ffmpeg) == made
    assert times_s(clip) == times_s(usual)
    before, after = decode.probe(usual), decode.probe(clip)
    assert (before.coder, after.coder) == ("ac", CODERS[encoding])
    assert replace(after, coder=before.coder) == before
    with av.open(str(clip)) as container:
        keys = [n for n, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert max(b - a for a, b in zip(keys, [*keys[1:], made.num_frames], strict=True)) <= 16
    # One that decodes faster is good anywhere; another one is encoded again where that is asked.
    assert conforming_frames(clip, other) == conforming_frames(clip, recipe) == made.num_frames
    assert conforming_frames(usual, other) == 0


@given(header=st.binary(max_size=60))
def test_a_header_that_is_no_header_names_no_coder_or_one_of_two(header: bytes) -> None:
    for extradata in (header, b"\1" + header, None):
        codec = SimpleNamespace(name="h264", extradata=extradata)
        assert decode._coder(codec) in (None, "vlc", "ac")
    assert decode._coder(SimpleNamespace(name="mpeg4", extradata=b"\1" + header)) is None


def test_a_folder_of_clips_refuses_another_encoding(make_video: MakeVideo, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    shutil.copy(make_video(seconds=4), videos / "abcdefghijk.mp4")
    table = tmp_path / "list.csv"
    table.write_text("label,youtube_id,time_start,time_end,split\nresting,abcdefghijk,0,2,train\n")
    words = ("kinetics-download", table, out, "--source", f"dir:{videos}")
    assert run_command(*words, "--encoding", "fastdecode").returncode == 0
    before = tree(out)
    said = run_command(*words)
    assert said.returncode == 2
    assert "made with encoding = fastdecode, this run has encoding = compact" in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert tree(out) == before
    assert run_command(*words, "--encoding", "fastdecode").stdout.startswith("1 of 1 clips")
    said = run_command(*words, "--encoding", "fast")
    assert said.returncode == 2
    assert "unknown encoding 'fast'" in said.stderr


@pytest.mark.full
def test_shards_keep_clips_that_decode_fast_and_make_them_on_request(
    make_video: MakeVideo, ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "clips" / "yoga"
    folder.mkdir(parents=True)
    video = make_video(seconds=1, size="160x128")
    for name in ENCODINGS:
        own = replace(recipe, encoding=name, short_side=64)
        conform(video, folder / f"{name}.mp4", recipe=own, binary=ffmpeg)
    base = ("extract-flow", tmp_path / "clips")
    size = ("--short-side", "64")
    for out, options in {"usual": (), "fast": ("--encoding", "fastdecode")}.items():
        said = run_command(*base, tmp_path / out, *size, *options)
        assert said.returncode == 0, said.stderr
    stored = {out: _samples(tmp_path / out) for out in ("usual", "fast")}
    clips = {name: (folder / f"{name}.mp4").read_bytes() for name in ENCODINGS}
    assert stored["usual"] == clips
    assert stored["fast"]["fastdecode"] == clips["fastdecode"]
    assert stored["fast"]["compact"] != clips["compact"]
    again = tmp_path / "again.mp4"
    again.write_bytes(stored["fast"]["compact"])
    assert (decode.probe(again).coder, decode.count_frames(again)) == ("vlc", 25)
    said = run_command(*base, tmp_path / "fast", *size)
    assert said.returncode == 2
    assert "rgb there: encoding = fastdecode, in this run: encoding = compact" in said.stderr


def _samples(folder: Path) -> dict[str, bytes]:
    """The videos in a folder of shards, by key."""
    found = {}
    for path in folder.glob("all/rgb-*.tar"):
        with tarfile.open(path) as shard:
            for member in shard:
                content = shard.extractfile(member)
                if content is not None and member.name.endswith(".mp4"):
                    found[member.name.removesuffix(".mp4")] = content.read()
    return found
