"""TV-L1 in plain torch, the readable reference: batched, any device, float32 or float64.

It follows OpenCV's `DualTVL1OpticalFlow` step by step, so that its flow can replace the flow that
published networks were trained on. Its loops, from the outermost to the innermost:

    pyramid level          coarse to fine; the dual field starts at 0 on each level, the flow is
                           that of the coarser level
      warp                 move `after` and its gradient back along the flow: the data term
        outer iteration    5x5 median filter of the flow
          inner iteration  (a step) data term, a pointwise threshold; then total variation

A pair leaves the inner iterations of a warp when its flow changes by less than `epsilon` (root mean
square, pixels). Pairs are independent: the flow of one does not depend on the rest of the batch.

Source: Zach, Pock and Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow", 2007;
Sanchez, Meinhardt-Llopis and Facciolo, "TV-L1 Optical Flow Estimation", IPOL 2013; the order of
steps, borders and stopping rule are those of OpenCV 5.0 (its remap interpolates at the exact
position; that of OpenCV 4 rounds positions to 1/32 px, which moves the flow by about 0.01 px).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from kinetics_tools.flow.tvl1.parameters import TVL1Params

# A squared gradient below this counts as 0 (float32's epsilon, in both precisions).
MIN_SQUARED_GRADIENT = 2.0**-23
# Pixels per batch. Larger batches hide the cost of calling torch on small frames, until they do not
# fit the processor's cache (80x80 frames: batches of 10 pairs are 1.7 times as fast as single ones,
# batches of 24 no faster).
BATCH_PX = {"cpu": 2**16, "cuda": 2**23}

# Shapes: B pairs, H rows, W columns; a dimension of 2 is x then y, of the flow or of a gradient.


def flows(
    frames: Iterator[npt.NDArray[np.uint8]], parameters: TVL1Params, device: str
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the flow from each frame to the next: float32 (H, W, 2).

    Args:
        frames: uint8 (H, W), all of one size; they are read in batches of BATCH_PX pixels.
        parameters: of the method.
        device: torch's name of it.
    """
    before = next(frames, None)
    if before is None:
        return
    _keep_freed_memory()
    batch = max(1, BATCH_PX.get(device.partition(":")[0], BATCH_PX["cpu"]) // before.size)
    while following := list(islice(frames, batch)):
        stack = torch.from_numpy(np.stack([before, *following])).to(device).float()
        yield from between(stack[:-1], stack[1:], parameters).permute(0, 2, 3, 1).cpu().numpy()
        before = following[-1]


@torch.inference_mode()
def between(before: Tensor, after: Tensor, parameters: TVL1Params) -> Tensor:
    """Return the flow of each pair: (B, 2, H, W), x then y, pixels, +x right, +y down.

    Args:
        before: float32 or float64 (B, H, W), values 0..255.
        after: the frames that follow, of the same shape and type.
        parameters: of the method.

    Raises:
        ValueError: the shapes or types differ, or are not these.
    """
    if before.shape != after.shape or before.dtype != after.dtype or before.ndim != 3:
        raise ValueError(
            f"two (B, H, W) tensors of one type are needed, not {tuple(before.shape)} "
            f"{before.dtype} and {tuple(after.shape)} {after.dtype}"
        )
    if before.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"float32 or float64 is needed, not {before.dtype}")
    levels = _pyramid(torch.stack([before, after], dim=1), parameters)
    u = torch.zeros_like(levels[-1])
    for number, level in enumerate(reversed(levels)):
        if number > 0:
            u = _resize(u, (level.shape[2], level.shape[3])).mul_(1 / parameters.scale_step)
        _refine(level[:, 0], level[:, 1], u, parameters)
    return u


def _keep_freed_memory() -> None:
    """Let temporaries reuse memory instead of asking the system for new pages each time.

    glibc returns freed memory to the system at once, until it has seen a large block freed (up to
    32 MiB; see mallopt(3), M_MMAP_THRESHOLD). Freeing one makes small frames 1.5 times as fast.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _pyramid(images: Tensor, parameters: TVL1Params) -> list[Tensor]:
    """Return the levels of images (B, 2, H, W) from fine to coarse, each (B, 2, h, w)."""
    levels = [images]
    for size in parameters.level_sizes(images.shape[2], images.shape[3])[1:]:
        levels.append(_resize(levels[-1], size, step=1 / parameters.scale_step))
    return levels


def _resize(images: Tensor, size: tuple[int, int], step: float | None = None) -> Tensor:
    """Resize (B, C, h, w) bilinearly, without smoothing, as cv2.resize does.

    `step` is the distance of two new pixels in old ones; by default it follows from the sizes. (The
    pyramid sets it: rounded sizes would shift its levels against each other.)
    """
    for dim, new_px in ((3, size[1]), (2, size[0])):
        old_px = images.shape[dim]
        positions = torch.arange(new_px, dtype=torch.float64, device=images.device).add_(0.5)
        positions = positions.mul_(step or old_px / new_px).sub_(0.5).clamp_(0, old_px - 1)
        low = positions.long()
        high = (low + 1).clamp_(max=old_px - 1)
        weight = (positions - low).to(images.dtype)
        if dim == 2:
            weight = weight[:, None]
        images = torch.lerp(images.index_select(dim, low), images.index_select(dim, high), weight)
    return images


def _refine(before: Tensor, after: Tensor, u: Tensor, parameters: TVL1Params) -> None:
    """Refine the flow `u` (B, 2, H, W), in place, on one pyramid level."""
    p_x, p_y = torch.zeros_like(u), torch.zeros_like(u)
    # What a warp moves: the grey values and their gradient.
    movable = torch.cat([after[:, None], _centred_gradient(after)], dim=1)
    movable = _pad_to_powers_of_two(movable)
    for _ in range(parameters.num_warps):
        pairs = _Pairs(u, p_x, p_y, *_data_term(before, movable, u))
        _solve(pairs, parameters)


def _centred_gradient(image: Tensor) -> Tensor:
    """Return half the difference of both neighbours: (B, H, W) -> (B, 2, H, W). Borders repeat."""
    padded = functional.pad(image[:, None], (1, 1, 1, 1), mode="replicate")
    along_x = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    along_y = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return torch.cat([along_x, along_y], dim=1).mul_(0.5)


def _pad_to_powers_of_two(images: Tensor) -> Tensor:
    """Add zeros on the right and below, so that grid_sample's units lose nothing to rounding.

    grid_sample takes positions from -1 to 1. With a power of two, the conversion of whole pixels is
    exact: equal frames warp to equal values, and their flow is exactly 0.
    """
    height, width = images.shape[-2:]
    right, below = ((1 << (px - 1).bit_length()) - px for px in (width, height))
    return functional.pad(images, (0, right, 0, below))


def _data_term(before: Tensor, movable: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Warp along `u` and linearise: return the last three fields of _Pairs.

    Args:
        before: (B, H, W).
        movable: (B, 3, H', W'), `after` and its gradient, padded to powers of two.
        u: (B, 2, H, W). Outside the image all is 0, so flow that leaves it has no data term.
    """
    height, width = u.shape[-2:]
    full_height, full_width = movable.shape[-2:]
    x = _unit_positions(width, full_width, u) + u[:, 0] * (2 / full_width)
    y = _unit_positions(height, full_height, u)[:, None] + u[:, 1] * (2 / full_height)
    grid = torch.stack([x, y], dim=3)
    warped = functional.grid_sample(movable, grid, "bicubic", align_corners=False)
    gradient = warped[:, 1:].contiguous()
    divisor = gradient.square().sum(1).clamp_(min=MIN_SQUARED_GRADIENT).neg_()
    offset = warped[:, 0].sub(before).sub_((gradient * u).sum(1)).div_(divisor)
    return gradient, gradient / divisor[:, None], offset


def _unit_positions(num: int, full: int, like: Tensor) -> Tensor:
    """Return the first `num` of `full` pixel centres, in grid_sample's units."""
    return torch.arange(1, 2 * num, 2, dtype=like.dtype, device=like.device).div_(full).sub_(1)


@dataclass(slots=True)
class _Pairs:
    """Flow, dual field and data term of some pairs.

    Attributes:
        u: flow (B, 2, H, W).
        p_x: dual field times theta (B, 2, H, W), its part along x; the last column stays 0.
        p_y: its part along y; the last row stays 0.
        gradient: of the warped image, (B, 2, H, W).
        slope: (B, 2, H, W); the brightness error is 0 at `offset + slope . u` times `gradient`
            from `u`.
        offset: (B, H, W).
    """

    u: Tensor
    p_x: Tensor
    p_y: Tensor
    gradient: Tensor
    slope: Tensor
    offset: Tensor

    def select(self, mask: Tensor) -> _Pairs:
        """Return copies of the pairs where `mask` (B,) is true."""
        return _Pairs(*(getattr(self, field.name)[mask] for field in fields(self)))

    def put_back(self, index: Tensor, pairs: _Pairs) -> None:
        """Set the flow and the dual field of the pairs `index` (B',) to those of `pairs`."""
        if pairs is not self:
            self.u[index], self.p_x[index], self.p_y[index] = pairs.u, pairs.p_x, pairs.p_y


class _Scratch:
    """Memory for the temporaries of the inner iterations."""

    def __init__(self, u: Tensor) -> None:
        self.g_x, self.g_y, self.delta, self.norm = (torch.empty_like(u) for _ in range(4))
        self.step = torch.empty_like(u[:, 0])
        self.one = u.new_ones(())


def _solve(pairs: _Pairs, parameters: TVL1Params) -> None:
    """Do the iterations of one warp, in place; pairs leave when they have converged."""
    area = pairs.u.shape[-2] * pairs.u.shape[-1]
    limit = parameters.epsilon**2 * area
    scratch = _Scratch(pairs.u)
    moving, index = pairs, torch.arange(len(pairs.u), device=pairs.u.device)
    for _ in range(parameters.outer_iterations):
        moving.u.copy_(_median_5x5(moving.u))
        for _ in range(parameters.inner_iterations):
            still = _step(moving, scratch, parameters) > limit
            if still.all():
                continue
            pairs.put_back(index, moving)
            moving, index = moving.select(still), index[still]
            if len(index) == 0:
                return
            scratch = _Scratch(moving.u)
    pairs.put_back(index, moving)


def _step(pairs: _Pairs, scratch: _Scratch, parameters: TVL1Params) -> Tensor:
    """Do one inner iteration in place; return each pair's squared change, float64 (B,)."""
    u, delta, step = pairs.u, scratch.delta, scratch.step
    # Data term: go along the gradient until the brightness error is 0, at most by `reach`.
    torch.addcmul(pairs.offset, pairs.slope[:, 0], u[:, 0], out=step)
    step.addcmul_(pairs.slope[:, 1], u[:, 1])
    reach = parameters.lambda_ * parameters.theta
    torch.mul(pairs.gradient, step.clamp_(-reach, reach)[:, None], out=delta)
    _add_divergence(pairs.p_x, pairs.p_y, delta)
    u.add_(delta)
    _forward_gradient(u, scratch.g_x, scratch.g_y)
    # Dual field: ascend along the gradient of the flow, then shrink towards the unit ball.
    norm = torch.mul(scratch.g_x, scratch.g_x, out=scratch.norm)
    norm.addcmul_(scratch.g_y, scratch.g_y).sqrt_()
    torch.add(scratch.one, norm, alpha=parameters.tau / parameters.theta, out=norm)
    pairs.p_x.add_(scratch.g_x, alpha=parameters.tau).div_(norm)
    pairs.p_y.add_(scratch.g_y, alpha=parameters.tau).div_(norm)
    # By rows first: one long sum may be split between threads, and then depends on their number.
    torch.mul(delta[:, 0], delta[:, 0], out=step).addcmul_(delta[:, 1], delta[:, 1])
    return step.sum(2, dtype=torch.float64).sum(1)


# Seen as one long row of B * 2 * H * W numbers, the left neighbour of a pixel is one back and the
# upper one W back. At the border these are pixels of another row or image, in the last column of
# p_x or the last row of p_y, which are 0. So every operation below runs over contiguous memory.


def _add_divergence(p_x: Tensor, p_y: Tensor, to: Tensor) -> None:
    """Add the backward differences of p_x along x and of p_y along y to `to` (B, 2, H, W)."""
    width = to.shape[-1]
    row = to.view(-1)
    to.add_(p_x)
    row[1:].sub_(p_x.view(-1)[:-1])
    to.add_(p_y)
    row[width:].sub_(p_y.view(-1)[:-width])


def _forward_gradient(u: Tensor, g_x: Tensor, g_y: Tensor) -> None:
    """Write the forward differences of `u`; they are 0 in the last column, and in the last row."""
    width = u.shape[-1]
    row = u.view(-1)
    torch.sub(row[1:], row[:-1], out=g_x.view(-1)[:-1])
    g_x[..., -1] = 0
    torch.sub(row[width:], row[:-width], out=g_y.view(-1)[:-width])
    g_y[..., -1, :] = 0


def _median_5x5(images: Tensor) -> Tensor:
    """Return the median of each pixel's 5x5 surroundings, (..., H, W). Borders repeat.

    Sorting networks over whole images: columns of 5 are sorted first, then neighbouring columns are
    merged once for all windows that share them.
    """
    height, width = images.shape[-2:]
    padded = functional.pad(images, (2, 2, 2, 2), mode="replicate")
    row = padded.view(-1)
    # Entry i of every tensor below belongs to the window whose corner is number i of `row`.
    num = row.numel() - 4 * (width + 4)
    column = _sort([row[k * (width + 4) :][:num] for k in range(5)])
    pair = _merge([part[:-1] for part in column], [part[1:] for part in column])
    left = [part[: num - 4] for part in pair]
    right = _merge([part[2 : num - 2] for part in pair], [part[4:] for part in column])
    # The 13th of 25: i from the left, 13 - i from the right, in the best of all such ways.
    median = right[12].clone()
    for i in range(1, 11):
        torch.minimum(median, torch.maximum(left[i - 1], right[12 - i]), out=median)
    padded.view(-1)[: num - 4] = median
    return padded[..., :height, :width]


def _sort(values: Sequence[Tensor]) -> list[Tensor]:
    """Sort elementwise, lowest first (Batcher's merge exchange sort)."""
    half = len(values) // 2
    return _merge(_sort(values[:half]), _sort(values[half:])) if half else list(values)


def _merge(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Merge two elementwise sorted lists (Batcher's odd-even merge)."""
    if not (a and b):
        return [*a, *b]
    if len(a) == len(b) == 1:
        return [torch.minimum(a[0], b[0]), torch.maximum(a[0], b[0])]
    odd, even = _merge(a[0::2], b[0::2]), _merge(a[1::2], b[1::2])
    merged = odd[:1]
    for low, high in zip(even, odd[1:], strict=False):
        merged += [torch.minimum(low, high), torch.maximum(low, high)]
    return merged + even[len(odd) - 1 :] + odd[len(even) + 1 :]
