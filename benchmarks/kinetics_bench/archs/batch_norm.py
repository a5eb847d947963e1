"""What the batch norms share, and batch norm over the values of several processes.

torch's SyncBatchNorm is for CUDA only, keeps the unbiased variance, and would drop the offset of a
batch norm that has no scale. Here a process may hold no value at all.

Shapes: B images or clips of this process, may be 0; C channels; P processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Processes(Protocol):
    """Processes that compute together. All of them make the same calls in the same order."""

    def all_gather(self, values: Tensor) -> Tensor:
        """The values (n,) of every process: (P, n)."""

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes."""


class BatchNorm(nn.Module):
    """A batch norm, in training over the values of this process, or of `processes`."""

    processes: Processes | None = None


class BatchNormSingleSampleError(ValueError):
    """Batch norm got one value per channel in training: the variance of one value is 0."""


def count_values(values: Tensor) -> int:
    """How many values each channel of (B, C, ...) has."""
    return values.shape[0] * math.prod(values.shape[2:])


def require_multiple_samples(num_values: int) -> None:
    """Raise BatchNormSingleSampleError if there is one value per channel."""
    if num_values == 1:
        raise BatchNormSingleSampleError(
            "batch norm cannot train on one clip with one value per channel; "
            "use micro-batches of at least 2 clips"
        )


class Moments:
    """Mean and variance of each channel over the values of all processes.

    Attributes:
        processes: all of them.
        mean: (C,).
        var: (C,), of the values, not the unbiased estimate.
        num_values: per channel, a tensor; 1 where there is none.
        is_empty: whether no process has a value; mean and variance are then 0.
    """

    def __init__(self, values: Tensor, processes: Processes) -> None:
        """The moments of `values` (B, C, ...), one part in each process.

        Raises:
            BatchNormSingleSampleError: all processes together have one value per channel.
        """
        num_own = count_values(values)
        wide = _wide(values.detach())
        own = wide.new_zeros(2, values.shape[1])
        if num_own:
            own = torch.stack(torch.var_mean(wide, _axes(values), correction=0))
        rows = processes.all_gather(torch.cat([own.new_tensor([num_own]), own.flatten()]))
        counts, (variances, means) = rows[:, :1], rows[:, 1:].chunk(2, dim=1)
        total = counts.sum()
        self.processes = processes
        self.is_empty = False
        if num_own <= 1:  # reading a number waits for the device; with two values there is no need
            num_all = round(float(total))
            require_multiple_samples(num_all)
            self.is_empty = num_all == 0
        self.num_values = total.clamp(min=1)
        weights = counts / self.num_values
        self.mean = (weights * means).sum(0)
        self.var = (weights * (variances + (means - self.mean).square())).sum(0)


def normalise(
    values: Tensor,
    moments: Moments,
    weights: tuple[Tensor, Tensor | None],
    eps: float,
) -> Tensor:
    """Normalise the values (B, C, ...) of this process by the moments over all processes.

    The gradient of the values is that of the sum of all processes' losses; that of the weights is
    the part of this process, as of any layer.

    Args:
        values: of this process.
        moments: of the values of all of them.
        weights: scale and offset, (C,) each.
        eps: is added to the variance.
    """
    normalised: Tensor = _Normalise.apply(values, *weights, moments, eps)  # type: ignore[no-untyped-call]  # torch's
    return normalised


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        moments: Moments,
        eps: float,
    ) -> Tensor:
        inverse_std = (moments.var + eps).rsqrt()
        ctx.save_for_backward(values, scale, moments.mean, inverse_std, moments.num_values)
        ctx.processes = moments.processes
        # With given statistics.
        return functional.batch_norm(values, moments.mean, moments.var, scale, offset, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, mean, inverse_std, num_values = ctx.saved_tensors

        def by_channel(numbers: Tensor) -> Tensor:
            return numbers.reshape(-1, *[1] * (values.ndim - 2))

        wide = _wide(gradient)
        normal = (_wide(values) - by_channel(mean)) * by_channel(inverse_std)
        of_offset = wide.sum(_axes(values))
        of_scale = (wide * normal).sum(_axes(values))
        # Every value moves mean and variance, and with them the outputs of all processes.
        sums = torch.stack([of_offset, of_scale])
        ctx.processes.all_reduce_sum([sums])
        of_mean, of_deviation = (by_channel(each) for each in sums / num_values)
        of_values = by_channel(scale * inverse_std) * (wide - of_mean - normal * of_deviation)
        return (
            of_values.to(values.dtype),
            of_scale.to(scale.dtype) if ctx.needs_input_grad[1] else None,
            of_offset.to(scale.dtype) if ctx.needs_input_grad[2] else None,
            *(None, None),
        )


def _axes(values: Tensor) -> list[int]:
    """All axes but that of the channels."""
    return [0, *range(2, values.ndim)]


def _wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
