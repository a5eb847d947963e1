"""The Numba backend: threads, errors and interrupts in a stream, and very large frames."""

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kinetics_tools.flow.methods import compute, stream
from kinetics_tools.flow.tvl1 import numba_cpu
from kinetics_tools.flow.tvl1.parameters import TVL1Params
from textures import texture

Gray = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_numba_backend_reads_few_frames_ahead_and_leaves_no_thread(threads: int) -> None:
    read = 0

    def endless() -> Iterator[Gray]:
        nonlocal read
        while True:
            read += 1
            yield np.full((20, 30), read % 256, np.uint8)

    before = threading.active_count()
    fields = stream(endless(), threads=threads, backend="numba")
    for number in range(1, 6):
        next(fields)
        assert read <= number + 1 + threads
    fields.close()  # type: ignore[attr-defined]  # an iterator that is a generator

    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_a_pair_that_fails_is_an_error_and_does_not_hang(threads: int) -> None:
    class Broken(numba_cpu.Workspace):
        def solve(self, before: Gray, after: Gray) -> Flow:
            if after[0, 0] >= 3:
                raise MemoryError
            return super().solve(before, after)

    frames = (np.full((9, 9), number, np.uint8) for number in range(12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_cpu, "Workspace", Broken)
        fields = stream(frames, threads=threads, backend="numba")

        assert [next(fields).shape for _ in range(2)] == [(9, 9, 2)] * 2
        with pytest.raises(MemoryError):
            next(fields)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_the_frames_comes_after_the_flow_before_it(threads: int) -> None:
    def frames() -> Iterator[Gray]:
        yield from texture(4, 20, 30, (1, 0))
        raise OSError("the disk is gone")

    fields = stream(frames(), threads=threads, backend="numba")

    assert [next(fields).shape for _ in range(3)] == [(20, 30, 2)] * 3
    with pytest.raises(OSError, match="the disk is gone"):
        next(fields)


def test_an_interrupt_does_not_wait_for_pairs_that_have_not_begun() -> None:
    begun = 0

    class Interrupting(numba_cpu.Workspace):
        def solve(self, before: Gray, after: Gray) -> Flow:
            nonlocal begun
            begun += 1
            if begun == 2:  # the third waits for a thread
                time.sleep(0.2)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(1)
            return super().solve(before, after)

    fields = stream(texture(40, 20, 30, (1, 0)), threads=2, backend="numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_cpu, "Workspace", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            next(fields)

    assert begun == 2


def test_a_workspace_refuses_frames_that_are_not_of_its_size() -> None:
    space = numba_cpu.Workspace(20, 30, TVL1Params())
    good = np.zeros((20, 30), np.uint8)
    for bad in (np.zeros((30, 20), np.uint8), np.zeros((21, 30), np.uint8), good.astype(float)):
        with pytest.raises(ValueError, match=r"uint8 \(20, 30\) is needed, not"):
            space.solve(good, bad)


@pytest.mark.full
def test_8k_frames_have_finite_flow() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4320, 7680), np.uint8)
    least: dict[str, Any] = {"num_scales": 1, "num_warps": 1}
    least |= {"outer_iterations": 1, "inner_iterations": 1}

    found = compute(frames, backend="numba", **least)

    assert found.shape == (1, 4320, 7680, 2)
    assert np.isfinite(found).all()
