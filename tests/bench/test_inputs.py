"""From stored bytes to the inputs of networks: the numbers are those of whole frames in floats."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kinetics_bench.archs.registry import Sampling
from kinetics_bench.data.inputs import Crops, network_inputs
from kinetics_bench.data.loader import Reader
from kinetics_bench.data.views import View, resized_size
from kinetics_tools.flow.methods import dequantise
from kinetics_tools.shards.reader import ShardFolder
from tiny import ArrayClip, tiny_recipe, tiny_shards

CPU = torch.device("cpu")
CROP = 32
BOUND = 12.0  # of the weights; the flow of the clip has another
RANDOM = np.random.default_rng(0)


def clip(height: int, width: int) -> ArrayClip:
    frames = RANDOM.integers(0, 256, (12, height, width, 3), dtype=np.uint8)
    codes = RANDOM.integers(0, 256, (11, height, width, 2), dtype=np.uint8)
    return ArrayClip(frames, codes, bound=15.0)


def reader(short_side: int) -> Reader:
    sampling = {"rgb": Sampling(4, 2), "flow": Sampling(4, 2)}
    return Reader(tiny_recipe(sampling=sampling, short_side=short_side, crop_px=CROP), BOUND)


def resized(values: npt.NDArray[Any], short_side: int) -> npt.NDArray[Any]:
    """Pictures or vectors (T, H, W, C) resized to the short side."""
    height, width = values.shape[1:3]
    size = resized_size(height, width, short_side)
    if size == (height, width):
        return values
    images = torch.from_numpy(values).permute(0, 3, 1, 2)
    done = functional.interpolate(
        images, size=size, mode="bilinear", antialias=min(size) < min(height, width)
    )
    return np.asarray(done.permute(0, 2, 3, 1).numpy())


def cropped(values: npt.NDArray[Any], view: View) -> Tensor:
    """The crop and flip of a view, (C, T, h, w)."""
    height, width = values.shape[1:3]
    top = min(int(view.top * (height - CROP + 1)), height - CROP)
    left = min(int(view.left * (width - CROP + 1)), width - CROP)
    crop = values[:, top : top + CROP, left : left + CROP]
    crop = crop[:, :, ::-1] if view.flip else crop
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(3, 0, 1, 2)))


def expected(of: ArrayClip, view: View, short_side: int) -> tuple[Tensor, Tensor]:
    """The inputs as version 0.1 computed them, of whole frames in floats."""
    rgb = cropped(resized(of.frames[view.indices["rgb"]], short_side), view) / 127.5 - 1
    stored = dequantise(of.all_codes[view.indices["flow"]], bound=of.bound)
    vectors = resized(stored, short_side)
    vectors[..., 0] *= vectors.shape[2] / stored.shape[2]
    vectors[..., 1] *= vectors.shape[1] / stored.shape[1]
    flow = (cropped(vectors, view) / BOUND).clamp(-1, 1)
    if view.flip:
        flow[0] *= -1
    return rgb, flow


INDICES = np.array([1, 3, 5, 7])
LOOPED = np.array([9, 10, 0, 1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("indices", [INDICES, LOOPED])
@pytest.mark.parametrize("size", [(40, 48), (41, 57), (80, 60), (33, 32), (64, 200)])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.31, 0.77), (1.0, 1.0)])
def test_inputs_are_those_of_whole_frames_in_floats(
    size: tuple[int, int], place: tuple[float, float], indices: npt.NDArray[np.int64], flip: bool
) -> None:
    of = clip(*size)
    view = View({"rgb": indices, "flow": indices}, *place, flip)
    for short_side in (min(size), 36, 50):
        if short_side < CROP:
            continue
        crops = reader(short_side).clips(of, view)
        assert {each.dtype for each in crops.streams.values()} == {torch.uint8}
        rgb, flow = network_inputs(crops, CPU)
        want_rgb, want_flow = expected(of, view, short_side)
        torch.testing.assert_close(rgb[0], want_rgb, atol=1e-6, rtol=0)
        # Resized codes are rounded to whole ones: half of what one is in the input.
        code = max(*crops.flow_scale[0].tolist()) / 255
        is_resized = short_side != min(size)
        torch.testing.assert_close(flow[0], want_flow, atol=code * is_resized + 1e-6, rtol=0)
        decoded = {stream: reader(short_side).decode(of, stream) for stream in ("rgb", "flow")}
        cached = reader(short_side).clips(of, view, decoded)
        for stream, values in crops.streams.items():
            assert torch.equal(values, cached.streams[stream])
        assert torch.equal(crops.flow_scale, cached.flow_scale)


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.13, 0.21), (0.5, 0.37), (1.0, 1.0)])
def test_a_crop_of_a_sample_has_the_pixels_of_the_whole_frames(place: tuple[float, float]) -> None:
    samples = ShardFolder(tiny_shards()).samples("all", ("rgb", "flow"), flow="opencv-tvl1")
    sample = samples[0]
    for indices in ([3, 4, 5, 6], [9, 2, 2, 11]):
        whole = ArrayClip(sample.rgb(), sample.codes(), sample.bound)
        view = View({"rgb": np.array(indices), "flow": np.array(indices)}, *place)
        own = replace(reader(40), bound=sample.bound)  # 40: nothing is resized
        crops, want = own.clips(sample, view), own.clips(whole, view)
        for stream, values in crops.streams.items():
            assert torch.equal(values, want.streams[stream])


def test_rgb_becomes_minus_one_to_one_and_flow_is_clamped() -> None:
    values = torch.tensor([0, 255], dtype=torch.uint8)
    crops = Crops(
        {
            "rgb": values.reshape(1, 2, 1, 1, 1).expand(1, 2, 4, 4, 3),
            "flow": values.flip(0).reshape(1, 1, 2, 1, 1).expand(1, 2, 2, 4, 4),
        },
        torch.tensor([True]),
        torch.tensor([[0.5, 1.5]]),
    )
    rgb, flow = network_inputs(crops, CPU)
    assert (rgb.shape, flow.shape) == ((1, 3, 2, 4, 4), (1, 2, 2, 4, 4))
    assert (rgb[:, :, 0] == -1).all()
    assert (rgb[:, :, 1] == 1).all()
    assert (flow[:, 0] == -0.5).all()  # flipped
    assert (flow[:, 1] == -1).all()


def test_clips_of_a_batch_are_flipped_and_scaled_one_by_one() -> None:
    own = reader(40)
    views = [
        View({"rgb": INDICES, "flow": INDICES}, 0.5, 0.5, flip) for flip in (True, False, True)
    ]
    each = [
        own.clips(clip(*size), view)
        for size, view in zip([(40, 50), (80, 90), (40, 40)], views, strict=True)
    ]
    together = network_inputs(Crops.joined(each), CPU)
    for number, crops in enumerate(each):
        for one, all_of_them in zip(network_inputs(crops, CPU), together, strict=True):
            assert torch.equal(one[0], all_of_them[number])
    for values in together:
        assert values.dtype == torch.float32
        assert values.is_contiguous(memory_format=torch.channels_last_3d)


def test_empty_crops_have_the_shapes_of_real_ones() -> None:
    real = reader(40).clips(clip(40, 50), View({"rgb": INDICES, "flow": INDICES}))
    empty = Crops.empty(1, {"rgb": 4, "flow": 4}, CROP)
    for stream, values in real.streams.items():
        assert (values.shape, values.dtype) == (
            empty.streams[stream].shape,
            empty.streams[stream].dtype,
        )
    assert (len(real), len(empty)) == (1, 1)
