"""The Triton backend of TV-L1: on a GPU where there is one, else in the interpreter (conftest)."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from triton.runtime import interpreter

from kinetics_tools.core.errors import KineticsError
from kinetics_tools.flow.methods import compute
from kinetics_tools.flow.tvl1 import torch_reference, triton_kernels, triton_solver
from kinetics_tools.flow.tvl1.parameters import TVL1Params
from kinetics_tools.flow.tvl1.triton_solver import Solver, Tile
from support import ROOT, environment
from textures import texture

Gray = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]

DEVICE = "cpu" if triton_kernels.INTERPRETED else "cuda"
FULL = pytest.mark.full
WHOLE = Tile(width=64, band=64, block=1024)  # one program a pair, of the images below
SMALL = Tile(steps=2, width=16, band=8, block=128)  # many
ONE_LEVEL = TVL1Params(
    num_scales=1, num_warps=1, outer_iterations=2, inner_iterations=5, epsilon=1e-9
)


def solved(frames: Gray, parameters: TVL1Params, tile: Tile) -> Flow:
    solver = Solver(len(frames) - 1, frames.shape[1:], parameters, DEVICE, tile)
    return np.stack(list(solver.start(frames)()))


def expected(frames: Gray, parameters: TVL1Params) -> Flow:
    images = torch.from_numpy(frames).float()
    flow = torch_reference.between(images[:-1], images[1:], parameters)
    return flow.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("tile", [WHOLE, pytest.param(SMALL, marks=FULL)])
def test_fixed_steps_are_those_of_the_readable_backend(tile: Tile) -> None:
    frames = texture(2, 12, 26, (1.3, -0.6))

    difference = abs(solved(frames, ONE_LEVEL, tile) - expected(frames, ONE_LEVEL))

    assert np.percentile(difference, 99.9) <= 1e-3


def test_all_levels_and_warps_are_those_of_the_readable_backend() -> None:
    parameters = replace(
        ONE_LEVEL, num_scales=2, num_warps=2, outer_iterations=1, inner_iterations=4
    )
    frames = texture(2, 24, 26, (1.3, -0.6))

    difference = abs(solved(frames, parameters, WHOLE) - expected(frames, parameters))

    assert np.percentile(difference, 99.9) <= 1e-3


@pytest.fixture
def in_another_order(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Make the interpreter run the programs of each launch in another order, by number."""
    builder = interpreter.interpreter_builder
    place, size = type(builder).set_grid_idx, type(builder).set_grid_dim
    grid = [1, 1, 1]
    order = [0]

    def set_grid_dim(x: int, y: int, z: int) -> None:
        grid[:] = x, y, z
        size(builder, x, y, z)

    def set_grid_idx(x: int, y: int, z: int) -> None:
        number = (x * grid[1] + y) * grid[2] + z
        total = grid[0] * grid[1] * grid[2]
        if order[0]:
            number = np.random.default_rng(order[0]).permutation(total)[number]
        place(builder, *(int(n) for n in np.unravel_index(number, grid)))

    monkeypatch.setattr(builder, "set_grid_dim", set_grid_dim, raising=False)
    monkeypatch.setattr(builder, "set_grid_idx", set_grid_idx, raising=False)
    yield lambda number: order.__setitem__(0, number)


@FULL
def test_the_order_of_programs_changes_no_bit(
    in_another_order: Callable[[int], None],
) -> None:
    frames = np.concatenate([texture(2, 12, 20, (0.4, 0.2)), texture(1, 12, 20, (0.4, 0.2))])
    parameters = replace(ONE_LEVEL, epsilon=0.08, inner_iterations=3)
    found = []
    for order in (0, 1):
        in_another_order(order)
        found.append(solved(frames, parameters, SMALL))

    assert np.array_equal(found[0], found[1])


# Epsilons at which these pairs stop after different numbers of steps, within launches and between.
@pytest.mark.parametrize("epsilon", [pytest.param(0.1, marks=pytest.mark.full), 0.06])
def test_pairs_stop_at_the_same_step_whatever_the_size_of_a_launch(epsilon: float) -> None:
    moving = texture(2, 10, 16, (0.5, 0.2))
    frames = np.concatenate([moving, moving[-1:], moving[:1, ::-1]])
    parameters = replace(ONE_LEVEL, epsilon=epsilon, inner_iterations=7)
    steps = steps_until_converged(frames, parameters)
    assert len(set(steps)) > 1, "pairs that all stop together test nothing"

    alone = solved(frames, parameters, replace(WHOLE, steps=1))
    together = solved(frames, parameters, WHOLE)

    # On a GPU the two are different programs, of which each multiplies and adds in one rounding
    # where it can; a step more or less moves the flow by a hundredth.
    assert abs(together - alone).max() <= (0 if triton_kernels.INTERPRETED else 1e-5)
    assert abs(together - expected(frames, parameters)).max() < 1e-3
    assert (together[1] == 0).all()


def steps_until_converged(frames: Gray, parameters: TVL1Params) -> list[int]:
    """The steps of each pair: the fewest that give the same flow in the readable backend."""
    wanted = expected(frames, parameters)
    counts = []
    for pair, flow in zip(pairwise(frames), wanted, strict=True):
        for steps in range(1, parameters.inner_iterations + 1):
            fewer = replace(parameters, inner_iterations=steps, outer_iterations=1)
            if np.array_equal(expected(np.stack(pair), fewer)[0], flow):
                counts.append(steps)
                break
        else:
            counts.append(parameters.inner_iterations + 1)
    return counts


class Captured:
    """An outer iteration as a CUDA graph: always the same launches, on the captured buffers."""

    def __init__(self, solver: Solver, level: Any, num: int) -> None:
        self.solver, self.level, self.num = solver, level, num
        self.state = list(solver.state)
        if len(range(0, solver.parameters.inner_iterations, solver.tile.steps)) % 2:
            solver.state.reverse()

    def replay(self) -> None:
        before = self.solver.state
        self.solver.state = list(self.state)
        self.solver._outer(self.level, self.num)
        self.solver.state = before


# With one launch per outer iteration, and with two: an outer iteration is launched, then captured,
# then replayed, and one with an odd number of launches begins with either state.
@pytest.mark.parametrize(("launches", "outer"), [(1, 5), pytest.param(2, 6, marks=FULL)])
def test_captured_iterations_give_the_flow_of_launched_ones(
    monkeypatch: pytest.MonkeyPatch, launches: int, outer: int
) -> None:
    frames = torch.from_numpy(texture(2, 8, 12, (0.7, 0.2)))
    steps = launches * WHOLE.steps
    parameters = replace(ONE_LEVEL, outer_iterations=outer, inner_iterations=steps, epsilon=0.02)
    solver = Solver(1, (8, 12), parameters, DEVICE, WHOLE)
    if triton_kernels.INTERPRETED:
        monkeypatch.setattr(Solver, "_capture", lambda *asked: Captured(*asked))
        solver.copy_stream = cast(Any, "there")  # as on a GPU, where iterations are captured
    queued = solver.solve(frames).clone()
    assert any(solver.graphs.values())

    monkeypatch.setattr(Solver, "_queue_outer", Solver._outer)

    assert torch.equal(queued, Solver(1, (8, 12), parameters, DEVICE, WHOLE).solve(frames))


def test_the_flow_of_a_pair_does_not_depend_on_its_batch() -> None:
    frames = np.concatenate([texture(2, 16, 20, (0.5, 0.2)), texture(1, 16, 20, (3, 2))])
    parameters = replace(ONE_LEVEL, epsilon=0.05, outer_iterations=1)

    together = solved(frames, parameters, WHOLE)

    for t, flow in enumerate(together):
        assert np.array_equal(flow, solved(frames[t : t + 2], parameters, WHOLE)[0])


def test_the_median_is_that_of_opencv() -> None:
    places = np.random.default_rng(0).random((25, 4000), np.float32)
    values = list(places)

    for low, high in triton_kernels.MEDIAN_NETWORK.value:
        small, large = np.minimum(values[low], values[high]), np.maximum(values[low], values[high])
        values[low], values[high] = small, large

    assert np.array_equal(values[12], np.median(places, axis=0))


def test_batches_that_follow_each_other_give_every_field_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = texture(6, 9, 12, (0.7, 0.2))
    options = {"num_scales": 1, "num_warps": 1, "outer_iterations": 1, "inner_iterations": 2}
    whole = compute(frames, "tvl1", DEVICE, backend="triton", **options)

    monkeypatch.setattr(triton_solver, "BATCH_PX", 2 * 9 * 12)  # batches of 2, 2 and 1

    assert np.array_equal(compute(frames, "tvl1", DEVICE, backend="triton", **options), whole)
    assert whole.shape == (5, 9, 12, 2)


@pytest.fixture
def fitting_px(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What is known of the memory: nothing; after the test what was known before."""
    known: dict[str, int] = {}
    monkeypatch.setattr(triton_solver, "_fitting_px", known)
    return known


class Full:
    """Something made for pairs, of which 6 fit the memory."""

    def __init__(self, pairs: int) -> None:
        if pairs > 6:
            raise torch.OutOfMemoryError("too many")
        self.pairs = pairs


def test_pairs_that_do_not_fit_the_memory_are_reported_once(
    caplog: pytest.LogCaptureFixture, fitting_px: dict[str, int]
) -> None:
    with caplog.at_level(logging.WARNING):
        assert [
            triton_solver.make_largest(Full, pairs, (20, 30), "cuda:1").pairs for pairs in (50, 7)
        ] == [6, 3]

    assert fitting_px == {"cuda:1": 3 * 20 * 30}
    assert [r.getMessage() for r in caplog.records] == [
        "50 pairs of 30x20 frames do not fit the memory of cuda:1 at once; from now on batches are "
        "smaller"
    ]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("too many"), RuntimeError("Triton Error [CUDA]: out of memory")],
)
def test_full_memory_at_the_start_of_a_batch_makes_batches_smaller(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fitting_px: dict[str, int],
    error: RuntimeError,
) -> None:
    images = texture(6, 5, 8, (0.7, 0.2))
    whole = np.arange(5 * 5 * 8 * 2, dtype=np.float32).reshape(5, 5, 8, 2)
    started: list[int] = []

    def full(_solver: Solver, frames: Gray) -> Callable[[], Iterator[Flow]]:
        started.append(len(frames) - 1)
        if len(started) == 2 or len(frames) > 3:
            raise error
        # The flow does not matter here, only that each field comes once and in order.
        first = next(t for t in range(5) if np.array_equal(images[t], frames[0]))
        return lambda: iter(whole[first : first + len(frames) - 1])

    monkeypatch.setattr(Solver, "start", full)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert np.array_equal(compute(images, "tvl1", DEVICE, backend="triton"), whole)

    # The first time 2 are too many as well; later no more are tried than fitted.
    assert started == [5, 2, *[1] * 5, *[1] * 5]
    assert set(fitting_px.values()) == {5 * 8}
    assert len(caplog.records) == 1


def test_an_error_that_does_not_come_from_the_memory_is_raised(
    monkeypatch: pytest.MonkeyPatch, fitting_px: dict[str, int]
) -> None:
    def broken(self: Solver, frames: Gray) -> Callable[[], Iterator[Flow]]:
        raise RuntimeError(f"no kernel for {self.pairs} of {len(frames)}")

    monkeypatch.setattr(Solver, "start", broken)
    with pytest.raises(RuntimeError, match="no kernel for 1 of 2"):
        compute(np.zeros((2, 5, 8), np.uint8), "tvl1", DEVICE, backend="triton")
    assert not fitting_px


def test_a_pair_that_does_not_fit_the_memory_is_an_error(
    fitting_px: dict[str, int],
) -> None:
    def full(pairs: int) -> Solver:
        raise torch.OutOfMemoryError(f"{pairs} are too many")

    with pytest.raises(KineticsError, match="does not fit the GPU's memory: make"):
        triton_solver.make_largest(full, 5, (4, 4), "cuda")
    assert fitting_px == {"cuda": 4 * 4}


def test_the_memory_of_a_pair_is_what_one_more_takes() -> None:
    size, parameters = (60, 80), TVL1Params()

    def num_bytes(pairs: int) -> int:
        solver = Solver(pairs, size, parameters, DEVICE)
        tensors = [solver.stored, solver.u, solver.p, solver.data, *solver.answers]
        tensors += [level.frames for level in solver.levels]
        return sum(t.nbytes for t in tensors)

    assert num_bytes(5) - num_bytes(4) == triton_solver.pair_bytes(*size, parameters)
    assert triton_solver.batch_size(10**5, 10**5, parameters, DEVICE) == 1
    assert triton_solver.batch_size(4, 4, parameters, DEVICE) <= triton_solver.BATCH_PAIRS


def test_a_launch_reads_and_writes_different_memory() -> None:
    solver = Solver(2, (16, 20), ONE_LEVEL, DEVICE, SMALL)
    slots = [*solver.state, solver.sums, solver.u, solver.p, solver.data, *solver.answers]

    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in slots)

    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_no_gpu_and_no_interpreter_is_an_error_in_one_line() -> None:
    code = (
        "import numpy as np; from kinetics_tools.flow.methods import compute; "
        "compute(np.zeros((2, 8, 8), np.uint8), backend='triton')"
    )
    plain = {k: v for k, v in environment().items() if k != "TRITON_INTERPRET"}

    done = subprocess.run(
        [sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(
        "backend 'triton' of tvl1 runs on cuda, not on cpu; choose another backend"
    )


def test_every_kernel_compiles_for_both_gpus_without_spills() -> None:
    plain = {k: v for k, v in environment().items() if k != "TRITON_INTERPRET"}

    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "aot.py"],
        env=plain, capture_output=True, text=True, check=True,
    )  # fmt: skip

    needs = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(n["kernel"], n["capability"]) for n in needs} == {
        (kernel, capability)
        for kernel in ("resize", "warp", "judge", "median", "iterate", "answer")
        for capability in (80, 90)
    }
    for need in needs:
        assert need["spilled_bytes"] == 0, need
        # 8 warps of one thread block, or 12 of blocks of one warp, share 65,536 registers.
        assert need["registers"] <= (168 if need["kernel"] == "iterate" else 64), need
