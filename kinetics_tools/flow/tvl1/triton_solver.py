"""TV-L1 on a GPU: batches of pairs through the Triton kernels of `kernels`.

The steps are those of `reference`. The host only queues launches: which pairs still move, and where
the flow of each lies, is decided on the device, without asking back. So each batch takes as many
launches as its slowest pair could need, some 4,400, however few pairs still move. To queue them one
by one would take the host as long as the device needs for a clip: so a round, the same launches up
to ten times a warp, is recorded once for each level as a CUDA graph, and then queued as a whole.
"""

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

# Most pixels in a batch: 385 pairs of 340x256, 256 MiB of flow. More would fill no GPU better.
BATCH_PX: Final = 2**25
# Most pairs in a batch, however small; a launch holds 32,767 at most.
BATCH_PAIRS: Final = 1024
# Of the free memory, what a batch may take.
MEMORY_SHARE: Final = 0.8
OPTIONS: Final = {"num_warps": 4, "enable_fp_fusion": True}

Flow = npt.NDArray[np.float32]

# By device, the pixels in a batch that its memory held when it did not hold twice as many.
_held_px: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program makes; the first three are of the inner steps, see `kernels.iterate`.

    Attributes:
        steps: most in one launch.
        width: columns that it computes; it stores 2 `steps` less. 32 is a warp.
        band: rows that it stores.
        block: pixels, in the other kernels.
        lanes: sums that are added up side by side; a 340x256 pair has 60 of each step.
    """

    steps: int = 4
    width: int = 32
    band: int = 64
    block: int = 128
    lanes: int = 512

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """How many strips and bands cover an image."""
        return _parts(width, self.width - 2 * self.steps), _parts(height, self.band)


def flows(
    frames: Iterator[npt.NDArray[np.uint8]], dials: TVL1Params, device: str
) -> Iterator[Flow]:
    """Yield the flow from each frame to the next, in batches that follow from the free memory.

    While the flow of one batch is read, the next one is computed: the host holds the frames of one
    batch and the flow of two, at most BATCH_PX pixels each.

    Args:
        frames: uint8 (H, W), all of one size.
        dials: of the method.
        device: torch's name of a GPU; "cpu" where the kernels are interpreted.

    Raises:
        KineticsError: the kernels cannot run there, or one pair is too large for the memory.
    """
    before = next(frames, None)
    if before is None:
        return
    if torch.device(device).type == "cpu" and not triton_kernels.INTERPRETED:
        raise KineticsError("body 'triton' of tvl1 runs on cuda, not on cpu; choose another body")
    height, width = size = before.shape[0], before.shape[1]
    waiting = list(islice(frames, batch_size(height, width, dials, device)))
    if not waiting:
        return
    # The interpreter's time goes into calls, however long the rows are.
    tile = Tile(width=512, band=512, block=4096) if triton_kernels.INTERPRETED else Tile()

    def make(pairs: int) -> Solver:
        return Solver(pairs, size, dials, device, tile)

    solver = largest(make, len(waiting), size, device)
    under_way: Callable[[], Iterator[Flow]] | None = None
    while waiting:
        pairs = solver.pairs
        ahead = _unless_full(partial(solver.start, np.stack([before, *waiting[:pairs]])))
        if ahead:
            before = waiting[:pairs][-1]
            waiting = waiting[pairs:] or list(islice(frames, pairs))
        if under_way:
            yield from under_way()
        under_way = ahead
        if not ahead:
            # What it holds must be free before less is asked for.
            del solver
            solver = largest(make, _fewer(pairs, size, device), size, device)
    if under_way:
        yield from under_way()


def batch_size(height: int, width: int, dials: TVL1Params, device: str) -> int:
    """How many pairs to try at once: as the free memory and the bounds above allow; 1 or more."""
    most = min(BATCH_PAIRS, _held_px.get(device, BATCH_PX) // (height * width))
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        most = min(most, int(free * MEMORY_SHARE) // pair_bytes(height, width, dials))
    return max(1, most)


def pair_bytes(height: int, width: int, dials: TVL1Params) -> int:
    """Memory on the device that one more pair of a batch takes, but for some KiB."""
    area = height * width
    levels = sum(h * w for h, w in dials.level_sizes(height, width))
    # Of each pixel: three slots of flow, two of the dual field, the data term, two answers.
    return 4 * (area * (3 * 2 + 2 * 4 + 3 + 2 * 2) + levels) + area


class Sized(Protocol):
    """Something made for a number of pairs."""

    pairs: int


S = TypeVar("S", bound=Sized)
T = TypeVar("T")


def largest(make: Callable[[int], S], pairs: int, size: tuple[int, int], device: str) -> S:
    """Return `make(pairs)`; half as many, as long as the memory does not hold them.

    Raises:
        KineticsError: it does not hold one.
    """
    while True:
        made = _unless_full(partial(make, pairs))
        if made:
            return made
        pairs = _fewer(pairs, size, device)


def _unless_full(make: Callable[[], T]) -> T | None:
    """Return what `make` returns; None if the GPU's memory, or the pinned memory, is too small."""
    try:
        return make()
    except RuntimeError as error:
        # Only torch's own memory has an error of its own; Triton's and the driver's do not.
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
    return None


def _fewer(pairs: int, size: tuple[int, int], device: str) -> int:
    """Halve `pairs`, which the memory does not hold; keep that in mind, and say so the first time.

    Raises:
        KineticsError: there is only one.
    """
    if pairs == 1:
        raise KineticsError(
            "the GPU's memory does not hold one pair of frames: make them smaller (--short-side), "
            "or use --device cpu"
        )
    fewer = pairs // 2
    if device not in _held_px:
        log.warning(
            "the memory of %s does not hold %d pairs of %dx%d frames at once; from now on smaller "
            "batches are computed", device, pairs, size[1], size[0],
        )  # fmt: skip
    _held_px[device] = fewer * size[0] * size[1]
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
        limit: float64 (1,), the sum of squared changes at which a pair has settled.
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
    """Computes batches of up to `pairs` pairs of one size; all its memory is asked for at once, but
    for what the driver needs for graphs.

    Args:
        pairs: most in a batch.
        size: height and width of the frames.
        dials: of the method.
        device: torch's name of it.
        tile: how the inner steps are cut into programs; changes the flow by rounding only.

    Raises:
        torch.OutOfMemoryError: the device does not hold so many.
    """

    def __init__(
        self,
        pairs: int,
        size: tuple[int, int],
        dials: TVL1Params,
        device: str,
        tile: Tile | None = None,
    ) -> None:
        self.pairs, self.size, self.dials, self.tile = pairs, size, dials, tile or Tile()
        self.device = torch.device(device)
        area = size[0] * size[1]
        self.stored = self._empty(pairs + 1, *size, dtype=torch.uint8)
        self.levels = self._make_levels()
        self.u = self._empty(3 * pairs * 2 * area)
        self.p = self._empty(2 * pairs * 4 * area)
        self.data = self._empty(pairs * 3 * area)
        self.answers = [self._empty(pairs, *size, 2) for _ in range(2)]
        strips, bands = self.tile.grid(*size)
        # What the launch under way does; and memory for what the next one does.
        self.state = [self._empty(pairs, 4, dtype=torch.int32) for _ in range(2)]
        self.sums = self._empty(pairs * self.tile.steps * strips * bands, dtype=torch.float64)
        self.copier: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self.copier = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch's
        # Rounds by their level's size, number of pairs, and the state that they begin with; None
        # once one was queued launch by launch, which compiles its kernels: a recording cannot.
        self.rounds: dict[tuple[int, int, int, int], torch.cuda.CUDAGraph | None] = {}
        # When each answer has reached the host.
        self.arrived: list[torch.cuda.Event | None] = [None, None]

    def start(self, frames: npt.NDArray[np.uint8]) -> Callable[[], Iterator[Flow]]:
        """Queue the flow of uint8 frames (B + 1, H, W); return a call that waits for it.

        At most two batches may be under way: the answer of the last but one is written over.
        """
        stored = torch.from_numpy(frames)
        if self.copier is None:
            answer = self.solve(stored)
            return lambda: iter(answer.clone().numpy())
        with torch.cuda.device(self.device):
            overwritten = self.arrived[1]
            if overwritten is not None:
                torch.cuda.current_stream().wait_event(overwritten)
            answer = self._compiled(stored.pin_memory())
            host = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
            self.copier.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.copier):
                host.copy_(answer, non_blocking=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
                arrived.record()
        self.arrived = [arrived, self.arrived[0]]
        return lambda: _arrived(arrived, host)

    def _compiled(self, frames: Tensor) -> Tensor:
        """`solve`, which at its very first call on a machine compiles the kernels."""
        try:
            return self.solve(frames)
        except RuntimeError as error:
            if "C compiler" not in str(error):
                raise
            raise KineticsError(
                "Triton needs a C compiler here, for what launches the kernels: install gcc or set "
                "CC, or use device cpu (or, from Python, backend='torch')"
            ) from error

    def solve(self, frames: Tensor) -> Tensor:
        """Return the flow of uint8 frames (B + 1, H, W): float32 (B, H, W, 2) on the device.

        It is written over by the second call from now.
        """
        num = len(frames) - 1
        self.stored[: num + 1].copy_(frames, non_blocking=True)
        self.levels[0].frames[: num + 1].copy_(self.stored[: num + 1])
        for finer, level in zip(self.levels, self.levels[1:], strict=False):
            self._resize(finer.frames, level.frames, finer, level, num + 1, enlarges=False)
        self.u.zero_()
        self.state[0].zero_()
        above: _Level | None = None
        for level in reversed(self.levels):
            if above:
                self._bring_down(above, level, num)
            self.p.zero_()
            for _ in range(self.dials.num_warps):
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
        sizes = self.dials.level_sizes(*self.size)
        step = 1 / self.dials.scale_step
        for number, (height, width) in enumerate(sizes):
            finer = sizes[max(number - 1, 0)]
            coarser = sizes[min(number + 1, len(sizes) - 1)]
            levels.append(
                _Level(
                    height,
                    width,
                    self._empty(self.pairs + 1, height, width),
                    torch.tensor(
                        [self.dials.epsilon**2 * height * width],
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
        """For each new column, and row: the old one before it; then how far beyond that it lies.

        `steps` is how many old pixels lie between two new ones, along y and x.
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
        """Launch a kernel of one pixel a thread, for `num` pairs."""
        grid = (_parts(level.height * level.width, self.tile.block), num)
        kernel[grid](*arguments, level.height, level.width, BLOCK=self.tile.block, **OPTIONS)

    def _resize(
        self, source: Tensor, target: Tensor, old: _Level, new: _Level, planes: int, *,
        enlarges: bool,
    ) -> None:  # fmt: skip
        """Resize `planes` images; or, from a coarser level, flow from the side where it lies."""
        grid = (_parts(new.height * new.width, self.tile.block), planes)
        triton_kernels.resize[grid](
            source, target, self.state[0], *(new.from_coarser if enlarges else new.from_finer),
            old.height, old.width, new.height, new.width,
            1 / self.dials.scale_step if enlarges else 1.0,
            BLOCK=self.tile.block, SIDED=enlarges, **OPTIONS,
        )  # fmt: skip

    def _bring_down(self, above: _Level, level: _Level, num: int) -> None:
        """Enlarge the flow of the level above; on the new one it lies on side 0."""
        # The data term is written anew by each warp; until then its memory is free.
        self._resize(self.u, self.data, above, level, num * 2, enlarges=True)
        numbers = num * 2 * level.height * level.width
        self.u[:numbers].copy_(self.data[:numbers])
        self.state[0].zero_()

    def _warp(self, level: _Level, num: int) -> None:
        """Do one warp with its rounds; the flow ends on the side that `state[0]` says."""
        # Nothing has settled, nothing is to be judged; only where the flow lies is kept.
        self.state[0][:, 1:].zero_()
        self._launch(
            triton_kernels.warp, level, num, level.frames, self.u, self.data, self.state[0]
        )
        for _ in range(self.dials.outer_iterations):
            self._queue_round(level, num)
        self._iterate(level, num, 0, first=False)

    def _queue_round(self, level: _Level, num: int) -> None:
        """Queue a round: a median, then inner steps."""
        if self.copier is None:
            self._round(level, num)
            return
        which = (level.height, level.width, num, self.state[0].data_ptr())
        if which not in self.rounds:
            self.rounds[which] = None
            self._round(level, num)
            return
        graph = self.rounds[which]
        if graph is None:
            graph = self.rounds[which] = self._recorded(level, num)
        elif _parts(self.dials.inner_iterations, self.tile.steps) % 2:
            self.state.reverse()
        graph.replay()

    def _recorded(self, level: _Level, num: int) -> torch.cuda.CUDAGraph:
        """Record a round; nothing is computed, but `state` is turned as the round turns it."""
        graph = torch.cuda.CUDAGraph()
        # Torch has 32 streams of each priority and gives them in turn: this is nobody's `copier`.
        recorder = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(recorder):
            # Other threads may ask for memory meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._round(level, num)
            finally:
                graph.capture_end()
        return graph

    def _round(self, level: _Level, num: int) -> None:
        most, steps = self.dials.inner_iterations, self.tile.steps
        for done in range(0, most, steps):
            self._iterate(level, num, min(steps, most - done), first=done == 0)

    def _iterate(self, level: _Level, num: int, steps: int, *, first: bool) -> None:
        """Take inner steps, the `first` of a round after the median.

        With 0 `steps`, take only those that a settled pair has to take again.
        """
        tile, dials = self.tile, self.dials
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
            dials.lambda_ * dials.theta, dials.tau, dials.tau / dials.theta,
            STEPS=tile.steps, WIDTH=tile.width, BAND=tile.band,
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip


def _arrived(event: torch.cuda.Event, host: Tensor) -> Iterator[Flow]:
    """Wait for what was copied to the host, and yield it one by one."""
    event.synchronize()
    yield from host.numpy()
