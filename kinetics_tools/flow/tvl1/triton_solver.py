"""TV-L1 on a GPU: batches of pairs through the Triton kernels of `triton_kernels`.

The steps are those of `torch_reference`. The host only queues launches: the device decides which
pairs have converged and on which side the flow of each is, without synchronising with the host. So
each batch takes as many launches as its slowest pair could need, about 4,400, however few pairs
still change. To queue them one by one would take the host as long as the device needs for a clip:
so an outer iteration, the same launches up to ten times per warp, is captured once for each level
as a CUDA graph, and then replayed as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kinetics_tools.core.errors import KineticsError
from kinetics_tools.flow.tvl1 import triton_kernels
from kinetics_tools.flow.tvl1.parameters import TVL1Params

log = logging.getLogger(__name__)

# Largest batch in pixels: 385 pairs of 340x256, 256 MiB of flow. A larger one is not faster.
BATCH_PX: Final = 2**25
# Largest batch in pairs, however small they are; a launch takes 32,767 at most.
BATCH_PAIRS: Final = 1024
# The share of the free memory that a batch may take.
MEMORY_SHARE: Final = 0.8
OPTIONS: Final = {"num_warps": 4, "enable_fp_fusion": True}

Flow = npt.NDArray[np.float32]

# By device, the pixels of a batch that fits its memory, after one of twice as many did not.
_fitting_px: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Tile:
    """The size of one program; the first three are for `triton_kernels.iterate`.

    Attributes:
        steps: largest number of steps (inner iterations) per launch.
        width: columns that it computes; it stores 2 `steps` less. 32 is a warp.
        band: rows that it stores.
        block: pixels per program of the other kernels.
        lanes: partial sums that are added in parallel; a 340x256 pair has 60 per step.
    """

    steps: int = 4
    width: int = 32
    band: int = 64
    block: int = 128
    lanes: int = 512

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the numbers of strips and bands that cover an image."""
        return _parts(width, self.width - 2 * self.steps), _parts(height, self.band)


def flows(
    frames: Iterator[npt.NDArray[np.uint8]], parameters: TVL1Params, device: str
) -> Iterator[Flow]:
    """Yield the flow from each frame to the next: float32 (H, W, 2).

    The size of the batches follows from the free memory. While the flow of one batch is read, the
    next one is computed: the host has the frames of one batch and the flow of two in memory, at
    most BATCH_PX pixels each.

    Args:
        frames: uint8 (H, W), all of one size.
        parameters: of the method.
        device: torch's name of a GPU; "cpu" where the kernels are interpreted.

    Raises:
        KineticsError: the kernels cannot run there, or one pair does not fit the memory.
    """
    before = next(frames, None)
    if before is None:
        return
    if torch.device(device).type == "cpu" and not triton_kernels.INTERPRETED:
        raise KineticsError(
            "backend 'triton' of tvl1 runs on cuda, not on cpu; choose another backend"
        )
    height, width = size = before.shape[0], before.shape[1]
    waiting = list(islice(frames, batch_size(height, width, parameters, device)))
    if not waiting:
        return
    # In the interpreter each call takes the same time, however long the rows are.
    tile = Tile(width=512, band=512, block=4096) if triton_kernels.INTERPRETED else Tile()

    def make(pairs: int) -> Solver:
        return Solver(pairs, size, parameters, device, tile)

    solver = make_largest(make, len(waiting), size, device)
    pending: Callable[[], Iterator[Flow]] | None = None
    while waiting:
        pairs = solver.pairs
        started = _none_if_out_of_memory(
            partial(solver.start, np.stack([before, *waiting[:pairs]]))
        )
        if started:
            before = waiting[:pairs][-1]
            waiting = waiting[pairs:] or list(islice(frames, pairs))
        if pending:
            yield from pending()
        pending = started
        if not started:
            # Its memory must be free before a smaller solver is made.
            del solver
            solver = make_largest(make, _fewer(pairs, size, device), size, device)
    if pending:
        yield from pending()


def batch_size(height: int, width: int, parameters: TVL1Params, device: str) -> int:
    """Return how many pairs to try at once, by the free memory and the bounds above; from 1."""
    most = min(BATCH_PAIRS, _fitting_px.get(device, BATCH_PX) // (height * width))
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        most = min(most, int(free * MEMORY_SHARE) // pair_bytes(height, width, parameters))
    return max(1, most)


def pair_bytes(height: int, width: int, parameters: TVL1Params) -> int:
    """Return the bytes of device memory that one more pair of a batch takes, within some KiB."""
    area = height * width
    levels = sum(h * w for h, w in parameters.level_sizes(height, width))
    # Per pixel: three slots of flow, two of the dual field, the data term, two answers.
    return 4 * (area * (3 * 2 + 2 * 4 + 3 + 2 * 2) + levels) + area


class Sized(Protocol):
    """Something that is made for a number of pairs."""

    pairs: int


S = TypeVar("S", bound=Sized)
T = TypeVar("T")


def make_largest(make: Callable[[int], S], pairs: int, size: tuple[int, int], device: str) -> S:
    """Return `make(pairs)`, with half as many pairs for as long as they do not fit the memory.

    Raises:
        KineticsError: not even one pair fits.
    """
    while True:
        made = _none_if_out_of_memory(partial(make, pairs))
        if made:
            return made
        pairs = _fewer(pairs, size, device)


def _none_if_out_of_memory(make: Callable[[], T]) -> T | None:
    """Return what `make` returns; None if the GPU's memory, or the pinned memory, is too small."""
    try:
        return make()
    except RuntimeError as error:
        # Only torch has an error class for it; Triton and the driver have messages.
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
    return None


def _fewer(pairs: int, size: tuple[int, int], device: str) -> int:
    """Halve `pairs`, which do not fit the memory; remember that, and warn the first time.

    Raises:
        KineticsError: there is only one.
    """
    if pairs == 1:
        raise KineticsError(
            "one pair of frames does not fit the GPU's memory: make them smaller (--short-side), "
            "or use --device cpu"
        )
    fewer = pairs // 2
    if device not in _fitting_px:
        log.warning(
            "%d pairs of %dx%d frames do not fit the memory of %s at once; from now on batches are "
            "smaller", pairs, size[1], size[0], device,
        )  # fmt: skip
    _fitting_px[device] = fewer * size[0] * size[1]
    return fewer


def _parts(length: int, part: int) -> int:
    return -(-length // part)


@dataclass(frozen=True, slots=True)
class _Level:
    """A level of the pyramid on the device.

    Attributes:
        height: of its images.
        width: of its images.
        frames: float32 (B + 1, height, width).
        limit: float64 (1,), the sum of squared changes at which a pair has converged.
        from_finer: tables that resize the next finer level to this one; see `_table`.
        from_coarser: tables that resize the next coarser level's flow to this one.
    """

    height: int
    width: int
    frames: Tensor
    limit: Tensor
    from_finer: Sequence[Tensor]
    from_coarser: Sequence[Tensor]


class Solver:
    """Computes batches of pairs of one size; allocates all its memory when it is made, except what
    the driver needs for graphs.

    Args:
        pairs: largest number in a batch.
        size: height and width of the frames.
        parameters: of the method.
        device: torch's name of it.
        tile: the size of the programs; changes the flow by rounding only.

    Raises:
        torch.OutOfMemoryError: so many pairs do not fit the device's memory.
    """

    def __init__(
        self,
        pairs: int,
        size: tuple[int, int],
        parameters: TVL1Params,
        device: str,
        tile: Tile | None = None,
    ) -> None:
        self.pairs, self.size, self.parameters, self.tile = pairs, size, parameters, tile or Tile()
        self.device = torch.device(device)
        area = size[0] * size[1]
        self.stored = self._empty(pairs + 1, *size, dtype=torch.uint8)
        self.levels = self._make_levels()
        self.u = self._empty(3 * pairs * 2 * area)
        self.p = self._empty(2 * pairs * 4 * area)
        self.data = self._empty(pairs * 3 * area)
        self.answers = [self._empty(pairs, *size, 2) for _ in range(2)]
        strips, bands = self.tile.grid(*size)
        # What the current launch does, and what the next one does.
        self.state = [self._empty(pairs, 4, dtype=torch.int32) for _ in range(2)]
        self.sums = self._empty(pairs * self.tile.steps * strips * bands, dtype=torch.float64)
        self.copy_stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self.copy_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch's
        # Graphs of an outer iteration by the level's size, the number of pairs and the state that
        # it begins with; None after the first one, which runs launch by launch to compile kernels.
        self.graphs: dict[tuple[int, int, int, int], torch.cuda.CUDAGraph | None] = {}
        # Done when each answer has been copied to the host.
        self.copied: list[torch.cuda.Event | None] = [None, None]

    def start(self, frames: npt.NDArray[np.uint8]) -> Callable[[], Iterator[Flow]]:
        """Queue the flow of uint8 frames (B + 1, H, W); return a function that waits for it.

        At most two batches may be queued: the answer of the last but one is overwritten.
        """
        stored = torch.from_numpy(frames)
        if self.copy_stream is None:
            answer = self.solve(stored)
            return lambda: iter(answer.clone().numpy())
        with torch.cuda.device(self.device):
            overwritten = self.copied[1]
            if overwritten is not None:
                torch.cuda.current_stream().wait_event(overwritten)
            answer = self._compile_and_solve(stored.pin_memory())
            host = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
            self.copy_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.copy_stream):
                host.copy_(answer, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
                copied.record()
        self.copied = [copied, self.copied[0]]
        return lambda: _wait_for(copied, host)

    def _compile_and_solve(self, frames: Tensor) -> Tensor:
        """Call `solve`, which compiles the kernels at its first call on a machine."""
        try:
            return self.solve(frames)
        except RuntimeError as error:
            if "C compiler" not in str(error):
                raise
            raise KineticsError(
                "Triton needs a C compiler for the code that launches kernels: install gcc or set "
                "CC, or use device cpu (from Python also backend='torch')"
            ) from error

    def solve(self, frames: Tensor) -> Tensor:
        """Return the flow of uint8 frames (B + 1, H, W): float32 (B, H, W, 2) on the device.

        The second call after this one overwrites it.
        """
        num = len(frames) - 1
        self.stored[: num + 1].copy_(frames, non_blocking=True)
        self.levels[0].frames[: num + 1].copy_(self.stored[: num + 1])
        for finer, level in zip(self.levels, self.levels[1:], strict=False):
            self._resize(finer.frames, level.frames, finer, level, num + 1, enlarge=False)
        self.u.zero_()
        self.state[0].zero_()
        above: _Level | None = None
        for level in reversed(self.levels):
            if above:
                self._enlarge(above, level, num)
            self.p.zero_()
            for _ in range(self.parameters.num_warps):
                self._warp(level, num)
            above = level
        self.answers.reverse()
        answer = self.answers[0]
        self._launch(triton_kernels.answer, level, num, self.u, self.state[0], answer)
        return answer[:num]

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _make_levels(self) -> list[_Level]:
        levels: list[_Level] = []
        sizes = self.parameters.level_sizes(*self.size)
        step = 1 / self.parameters.scale_step
        for number, (height, width) in enumerate(sizes):
            finer = sizes[max(number - 1, 0)]
            coarser = sizes[min(number + 1, len(sizes) - 1)]
            levels.append(
                _Level(
                    height,
                    width,
                    self._empty(self.pairs + 1, height, width),
                    torch.tensor(
                        [self.parameters.epsilon**2 * height * width],
                        dtype=torch.float64,
                        device=self.device,
                    ),
                    self._tables(finer, (height, width), (step, step)),
                    self._tables(
                        coarser, (height, width), (coarser[0] / height, coarser[1] / width)
                    ),
                )
            )
        return levels

    def _tables(
        self, old: tuple[int, int], new: tuple[int, int], steps: tuple[float, float]
    ) -> tuple[Tensor, ...]:
        """Return, for new columns and rows, the old one before each, then the distances from it.

        `steps` is the distance of two new pixels in old ones, along y and x.
        """
        lows, weights = [], []
        for old_px, new_px, step in ((old[1], new[1], steps[1]), (old[0], new[0], steps[0])):
            positions = torch.arange(new_px, dtype=torch.float64).add_(0.5).mul_(step).sub_(0.5)
            positions.clamp_(0, old_px - 1)
            low = positions.int()
            lows.append(low.to(self.device))
            weights.append((positions - low).float().to(self.device))
        return (*lows, *weights)

    def _launch(self, kernel: Any, level: _Level, num: int, *arguments: Any) -> None:
        """Launch a kernel with one pixel per thread, for `num` pairs."""
        grid = (_parts(level.height * level.width, self.tile.block), num)
        kernel[grid](*arguments, level.height, level.width, BLOCK=self.tile.block, **OPTIONS)

    def _resize(
        self, source: Tensor, target: Tensor, old: _Level, new: _Level, planes: int, *,
        enlarge: bool,
    ) -> None:  # fmt: skip
        """Resize `planes` images; or, with `enlarge`, the flow of a coarser level from its side."""
        grid = (_parts(new.height * new.width, self.tile.block), planes)
        triton_kernels.resize[grid](
            source, target, self.state[0], *(new.from_coarser if enlarge else new.from_finer),
            old.height, old.width, new.height, new.width,
            1 / self.parameters.scale_step if enlarge else 1.0,
            BLOCK=self.tile.block, SIDED=enlarge, **OPTIONS,
        )  # fmt: skip

    def _enlarge(self, above: _Level, level: _Level, num: int) -> None:
        """Enlarge the flow of the level above to side 0 of this level."""
        # Each warp overwrites the data term; until then its memory is free.
        self._resize(self.u, self.data, above, level, num * 2, enlarge=True)
        numbers = num * 2 * level.height * level.width
        self.u[:numbers].copy_(self.data[:numbers])
        self.state[0].zero_()

    def _warp(self, level: _Level, num: int) -> None:
        """Do one warp with its iterations; the flow ends on the side that `state[0]` names."""
        # No pair has converged and no steps are judged; only the side of the flow stays.
        self.state[0][:, 1:].zero_()
        self._launch(
            triton_kernels.warp, level, num, level.frames, self.u, self.data, self.state[0]
        )
        for _ in range(self.parameters.outer_iterations):
            self._queue_outer(level, num)
        self._iterate(level, num, 0, first=False)

    def _queue_outer(self, level: _Level, num: int) -> None:
        """Queue an outer iteration: a median, then inner iterations."""
        if self.copy_stream is None:
            self._outer(level, num)
            return
        which = (level.height, level.width, num, self.state[0].data_ptr())
        if which not in self.graphs:
            self.graphs[which] = None
            self._outer(level, num)
            return
        graph = self.graphs[which]
        if graph is None:
            graph = self.graphs[which] = self._capture(level, num)
        elif _parts(self.parameters.inner_iterations, self.tile.steps) % 2:
            self.state.reverse()
        graph.replay()

    def _capture(self, level: _Level, num: int) -> torch.cuda.CUDAGraph:
        """Capture an outer iteration without computing it; `state` is reversed as if it ran."""
        graph = torch.cuda.CUDAGraph()
        # Torch hands out 32 streams of each priority in turn: this is never a `copy_stream`.
        capture_stream = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(capture_stream):
            # Other threads may allocate memory meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._outer(level, num)
            finally:
                graph.capture_end()
        return graph

    def _outer(self, level: _Level, num: int) -> None:
        most, steps = self.parameters.inner_iterations, self.tile.steps
        for done in range(0, most, steps):
            self._iterate(level, num, min(steps, most - done), first=done == 0)

    def _iterate(self, level: _Level, num: int, steps: int, *, first: bool) -> None:
        """Take steps (inner iterations); the `first` of an outer iteration follow the median.

        With 0 `steps`, only pairs that have just converged repeat steps.
        """
        tile, parameters = self.tile, self.parameters
        strips, bands = tile.grid(level.height, level.width)
        triton_kernels.judge[(num,)](
            *self.state, self.sums, level.limit, strips * bands, steps, int(first),
            STEPS=tile.steps, LANES=tile.lanes, **OPTIONS,
        )  # fmt: skip
        self.state.reverse()
        if first:
            triton_kernels.median[(_parts(level.height * level.width, tile.block), num, 2)](
                self.u, self.state[0], level.height, level.width, BLOCK=tile.block, **OPTIONS
            )
        triton_kernels.iterate[(strips, bands, num)](
            self.u, self.p, self.data, self.state[0], self.sums, level.height, level.width,
            parameters.lambda_ * parameters.theta, parameters.tau,
            parameters.tau / parameters.theta,
            STEPS=tile.steps, WIDTH=tile.width, BAND=tile.band,
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip


def _wait_for(event: torch.cuda.Event, host: Tensor) -> Iterator[Flow]:
    """Wait until the fields are copied to the host, and yield them one by one."""
    event.synchronize()
    yield from host.numpy()
