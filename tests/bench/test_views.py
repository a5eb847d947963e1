"""Views: which frames, which pixels, and what happens to vectors."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.archs.registry import ARCHS, Sampling, build
from kinetics_bench.data import views
from kinetics_bench.data.views import (
    View,
    all_of,
    crop_of,
    eval_view,
    seeded_rng,
    several_views,
    train_view,
    whole_view,
)
from kinetics_bench.protocols import PROTOCOLS, Extents, protocol_named
from kinetics_bench.recipes import RECIPES, Recipe
from kinetics_tools.core.errors import UnknownNameError
from tiny import tiny_recipe

SMALL = RECIPES["small"]["i3d"]["rgb"]
NUM, STRIDE = SMALL.sampling["rgb"].num, SMALL.sampling["rgb"].stride
ONE = {"rgb": np.arange(1), "flow": np.arange(1)}


@cache
def extents(
    protocol: str, arch: str = "i3d", stream: str = "rgb", recipe: str = "small"
) -> Extents:
    """The extents of a protocol, for a network trained by a recipe."""
    with torch.device("meta"):
        specs = build(arch, stream, 2).input_specs
    return PROTOCOLS[protocol].extents(arch, specs, RECIPES[recipe][arch][stream].sampling)


def seen(num_frames: int, *asked: str) -> dict[str, list[int]]:
    """Frames and fields of the evaluation view of a clip of `num_frames`."""
    indices = eval_view(num_frames, extents(*asked)).indices
    return {stream: numbers.tolist() for stream, numbers in indices.items()}


def test_a_training_view_follows_from_seed_epoch_and_key() -> None:
    view = train_view(80, SMALL, seeded_rng(0, 3, "daria_bend"))
    # numpy's PCG64 and SHA-256 are the same everywhere.
    assert view.indices["rgb"].tolist() == list(range(48, 80, 2))
    again = train_view(80, SMALL, seeded_rng(0, 3, "daria_bend"))
    assert (again.top, again.left, again.flip) == (view.top, view.left, view.flip)
    others = [seeded_rng(1, 3, "daria_bend"), seeded_rng(0, 4, "daria_bend"), seeded_rng(0, 3, "x")]
    assert all(train_view(80, SMALL, other).top != view.top for other in others)


@given(st.integers(1, 400), st.integers(0, 1000))
def test_training_views_are_within_the_clip_and_keep_their_stride(
    num_frames: int, seed: int
) -> None:
    for stream in ("rgb", "flow"):
        chosen = RECIPES["small"]["i3d"][stream]
        indices = train_view(num_frames, chosen, seeded_rng(seed, 0, "key")).indices[stream]
        assert len(indices) == NUM
        assert indices.min() >= 0
        length = max(num_frames - (stream == "flow"), 1)  # there is no flow from the last frame
        assert indices.max() < length
        if length >= (NUM - 1) * STRIDE + 1:
            assert set(np.diff(indices)) == {STRIDE}


TOGETHER = [
    (recipe, arch) for recipe in RECIPES for arch in RECIPES[recipe] if ARCHS[arch].joint_training
]


@pytest.mark.parametrize(("recipe", "arch"), TOGETHER)
@given(num_frames=st.integers(2, 400), seed=st.integers(0, 1000))
def test_a_frame_is_the_first_of_its_ten_fields_in_every_view(
    recipe: str, arch: str, num_frames: int, seed: int
) -> None:
    chosen: Recipe = RECIPES[recipe][arch]["joint"]
    shown = [train_view(num_frames, chosen, seeded_rng(seed, 0, "key"))]
    shown += [eval_view(num_frames, extents(name, arch, "joint", recipe)) for name in PROTOCOLS]
    for view in shown:
        rgb, flow = view.indices["rgb"], view.indices["flow"]
        assert len(flow) == 10 * len(rgb)
        assert flow[::10].tolist() == rgb.tolist()
        assert flow.max() < num_frames - 1


def test_training_views_reach_both_ends() -> None:
    views_of = (train_view(34, SMALL, seeded_rng(s, 0, "k")) for s in range(60))
    starts = {int(view.indices["rgb"][0]) for view in views_of}
    assert starts == {0, 1, 2, 3}  # 34 frames, a span of 31
    own = RECIPES["small"]["i3d"]["flow"]
    views_of = (train_view(34, own, seeded_rng(s, 0, "k")) for s in range(60))
    starts = {int(view.indices["flow"][0]) for view in views_of}
    assert starts == {0, 1, 2}  # 33 pairs
    fused = RECIPES["small"]["3d-fused"]["joint"]
    views_of = (train_view(53, fused, seeded_rng(s, 0, "k")) for s in range(60))
    starts = {int(view.indices["flow"][0]) for view in views_of}
    assert starts == {0, 1, 2}  # 52 pairs, a span of 50: the flow's, not the frames'


def test_short_clips_are_looped() -> None:
    assert views.looped(1, 6, stride=2, length=5).tolist() == [1, 3, 0, 2, 4, 1]
    assert seen(4, "whole")["rgb"] == [0, 2] * 8
    assert seen(4, "whole", "i3d", "flow")["flow"][:6] == [*(0, 2, 1)] * 2
    looped = seen(14, "whole", "3d-fused", "joint")
    assert looped["rgb"] == [0, 10, 7, 4, 1]  # of 13 pairs, like the flow
    assert looped["flow"][:15] == [*range(13), 0, 1]


@pytest.mark.parametrize(
    ("num_frames", "stream", "count", "last"),
    [
        (250, "rgb", 250, 249),
        (250, "flow", 249, 248),
        (300, "rgb", 250, 249),
        (300, "flow", 249, 248),
        (100, "rgb", 250, 49),
        (100, "flow", 249, 50),
    ],
)
def test_the_papers_protocol_sees_250_frames_and_249_fields(
    num_frames: int, stream: str, count: int, last: int
) -> None:
    view = eval_view(num_frames, extents("paper", "i3d", stream, "paper"))
    assert (len(view.indices[stream]), view.indices[stream][-1]) == (count, last)
    assert (view.top, view.left, view.flip) == (0.5, 0.5, False)


@pytest.mark.parametrize("protocol", ["paper", "whole"])
@pytest.mark.parametrize(
    ("arch", "stream"), [(a, s) for a in ARCHS for s in ARCHS[a].networks if a != "i3d"]
)
def test_baselines_see_table_1_of_a_clip_of_250_frames(
    arch: str, stream: str, protocol: str
) -> None:
    asked = (protocol, arch, stream, "paper")
    found = seen(250, *asked)
    assert not eval_view(250, extents(*asked)).is_looped
    sees_any = asked[:3] == ("whole", "two-stream", "rgb")
    assert eval_view(9, extents(*asked)).is_looped is not sees_any
    assert found.keys() == set(ARCHS[arch].clips_of(stream))
    for name, numbers in found.items():
        sampling: Sampling = ARCHS[arch].test[name]
        expected = [sampling.stride * at for at in range(sampling.num)]
        if name == "flow":
            expected[-1] = 0  # there are 249 fields
        assert numbers == expected


@pytest.mark.parametrize("length", [101, 173, 233, 245, 246])
def test_a_looped_view_is_one_even_if_its_frames_all_differ(length: int) -> None:
    view = eval_view(length, extents("paper", "convnet-lstm", "rgb", "paper"))
    # 50 frames of stride 5: for 245 frames one is missing, as one field is for 250 frames.
    assert view.is_looped is (length < 245)
    assert len(set(view.indices["rgb"].tolist())) == (49 if length == 245 else 50)


def test_the_whole_protocol_sees_every_frame_at_the_recipes_stride() -> None:
    assert seen(80, "whole")["rgb"] == list(range(0, 80, 2))
    assert seen(80, "whole", "i3d", "flow")["flow"] == list(range(0, 79, 2))
    assert seen(81, "whole", "convnet-lstm")["rgb"] == list(range(0, 81, 3))


def test_an_incomplete_last_step_is_left_out() -> None:
    assert seen(95, "whole", "c3d")["rgb"] == list(range(80))
    found = seen(119, "whole", "3d-fused", "joint")
    assert (len(found["rgb"]), found["flow"]) == (10, list(range(100)))
    found = seen(119, "whole", "two-stream", "joint")
    assert (len(found["rgb"]), found["flow"]) == (11, list(range(110)))


@pytest.mark.parametrize(
    ("recipe", "arch", "stream"),
    [(r, a, s) for r in RECIPES for a in RECIPES[r] for s in RECIPES[r][a]],
)
@given(num_frames=st.integers(2, 400))
def test_a_whole_view_has_every_step_and_is_never_looped(
    recipe: str, arch: str, stream: str, num_frames: int
) -> None:
    chosen = extents("whole", arch, stream, recipe)
    view = whole_view(num_frames, chosen)
    num_steps = set()
    for name, numbers in view.indices.items():
        extent = chosen[name]
        length = num_frames - 1 if "flow" in chosen else num_frames
        assert numbers.tolist() == [extent.stride * at for at in range(len(numbers))]
        assert len(numbers) % extent.multiple == 0
        num_steps.add(len(numbers) // extent.multiple)
        if len(numbers):
            assert numbers[-1] < length
        if len(chosen) == 1 and extent.multiple == 1:
            assert len(numbers) == -(-length // extent.stride)
        else:
            assert num_steps == {length // (extent.multiple * extent.stride)}
    assert len(num_steps) == 1


@given(st.integers(16, 300), st.integers(16, 300), st.integers(16, 256))
def test_resizing_gives_the_short_side(height: int, width: int, short_side: int) -> None:
    new_height, new_width = views.resized_size(height, width, short_side)
    assert min(new_height, new_width) == short_side
    longer, shorter = max(height, width), min(height, width)
    assert abs(max(new_height, new_width) - longer * short_side / shorter) <= 0.5 + 1e-9


def test_crops_reach_the_corners_and_the_centre() -> None:
    corners = {
        (top, left): crop_of(View(ONE, top, left), 10, 12, 4)
        for top, left in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5))
    }
    assert corners == {
        (0.0, 0.0): (slice(0, 4), slice(0, 4)),
        (1.0, 1.0): (slice(6, 10), slice(8, 12)),
        (0.5, 0.5): (slice(3, 7), slice(4, 8)),
    }


# Several views


FRAMING = tiny_recipe(sampling={"rgb": Sampling(9, 2), "flow": Sampling(9, 2)}, flip=1.0)


@given(st.integers(2, 400), st.integers(1, 12), st.integers(1, 4))
def test_several_views_are_uniform_in_time_and_none_counts_twice(
    num_frames: int, clips: int, crops: int
) -> None:
    views = several_views(num_frames, FRAMING, clips, crops)
    starts = [int(view.indices["rgb"][0]) for view in views[::crops]]
    room = max(num_frames - 1 - 17, 0)
    assert len(views) == min(clips, len(set(starts))) * crops
    assert starts == sorted(set(starts))
    if clips == 1:
        assert starts == [room // 2]
    else:
        assert (starts[0], starts[-1]) == (0, room)
        steps = np.diff(starts)
        assert len(steps) == 0 or steps.max() - steps.min() <= 1
    for at, view in enumerate(views):
        assert view.along == (0.5 if crops == 1 else at % crops / (crops - 1))
        assert not view.flip
        assert np.array_equal(view.indices["rgb"], view.indices["flow"])
    read = all_of(views).indices
    for stream, numbers in read.items():
        assert np.all(np.diff(numbers) > 0)
        seen = {int(number) for view in views for number in view.indices[stream]}
        assert set(numbers.tolist()) == seen


def test_crops_are_along_the_longer_side_from_edge_to_edge() -> None:
    views = several_views(30, FRAMING, 1, 3)
    wide = [crop_of(view, 36, 48, 32) for view in views]
    assert [(rows.start, columns.start) for rows, columns in wide] == [(2, 0), (2, 8), (2, 16)]
    tall = [crop_of(view, 48, 36, 32) for view in views]
    assert [(rows.start, columns.start) for rows, columns in tall] == [(0, 2), (8, 2), (16, 2)]
    assert crop_of(all_of(views), 48, 36, 32) == (slice(0, 48), slice(0, 36))


@pytest.mark.parametrize(
    "name", ["0x3", "3x0", "100x3", "10x10", "10x", "x3", "10x3 ", "ten", "1_0x3"]
)
def test_what_is_no_number_of_views_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="protocol"):
        protocol_named(name)


def test_protocols_have_hashes_of_their_own_and_those_of_one_view_are_as_they_were() -> None:
    names = (*PROTOCOLS, "4x3", "3x4", "12x1")
    assert len({protocol_named(name).hash for name in names}) == len(names)
    assert protocol_named("10x3") is PROTOCOLS["10x3"]
    assert PROTOCOLS["paper"].hash[:12] == "219244840216"
    assert PROTOCOLS["whole"].hash[:12] == "3ad898b9154d"
