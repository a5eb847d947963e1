"""Every body of TV-L1 takes the same tests: the readable one's flow, OpenCV's, and hostile input.

A new body needs its name in `tvl1.BODIES`, and nothing here, unless it is too slow (SMALL) or is
not to be had on every machine (`available`).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kinetics_tools.flow.methods import compute, quantise, stream
from kinetics_tools.flow.tvl1 import numba_cache, numba_cpu, torch_reference
from kinetics_tools.flow.tvl1.method import BACKENDS, FASTEST
from kinetics_tools.flow.tvl1.parameters import TVL1Params
from kinetics_tools.media import decode, opencv
from support import environment
from textures import texture

Gray = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]

# A fixed amount of work: no pair settles at this epsilon (but for equal frames). One warp a level:
# with more, pixels whose flow leaves the image amplify the last bit of float32 to tenths of a pixel
# (the readable body in float32 and in float64 differ as much there).
FIXED: dict[str, Any] = {
    "epsilon": 1e-9,
    "inner_iterations": 8,
    "outer_iterations": 2,
    "num_warps": 1,
}
# The interpreter of triton is a thousand times slower than what it stands for.
SMALL: dict[str, Any] = {
    "num_scales": 2,
    "num_warps": 1,
    "inner_iterations": 4,
    "outer_iterations": 2,
}


def available(body: str) -> bool:
    """Whether this machine can run a body: triton needs a GPU, or its interpreter."""
    return body != "triton" or torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ


def is_slow(body: str) -> bool:
    return body == "triton" and not torch.cuda.is_available()


HERE = [body for body in BACKENDS if available(body)]
OTHERS = [body for body in HERE if body != "torch"]
QUICK = [body for body in HERE if not is_slow(body)]
QUICK_OTHERS = [body for body in QUICK if body != "torch"]
# For what a slow body's other tests nearly say: it takes these among the full ones.
QUICK_FIRST = [pytest.param(b, marks=pytest.mark.full if is_slow(b) else ()) for b in HERE]
QUICK_FIRST_OTHERS = [each for each in QUICK_FIRST if each.values != ("torch",)]


def flow_of(body: str, frames: Gray, *, threads: int = 1, **dials: Any) -> Flow:
    """Flow (T-1, H, W, 2) by a body; dials of slow ones ask for less work."""
    device = "cuda" if body == "triton" and torch.cuda.is_available() else "cpu"
    return compute(frames, device=device, threads=threads, backend=body, **dials)


def real_frames(folder: Path, name: str, start: int, num: int = 2) -> Gray:
    return opencv.gray(decode.read_frames(folder / name)[start : start + num])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_fastest_bodies_are_bodies() -> None:
    assert set(FASTEST.values()) <= set(BACKENDS)


@pytest.mark.parametrize("size", [(47, 66), (20, 131), (16, 16), (33, 35)])
@pytest.mark.parametrize("body", OTHERS)
def test_a_body_takes_the_steps_of_the_readable_one(body: str, size: tuple[int, int]) -> None:
    dials = {**FIXED, **(SMALL if is_slow(body) else {})}
    frames = texture(2, *size, (1.4, -0.6))

    difference = abs(flow_of(body, frames, **dials) - flow_of("torch", frames, **dials))

    assert np.percentile(difference, 99.9) <= 1e-3


FAITHFUL = [
    ("clips/R6llTwEh07w.mp4", 10),
    ("clips/R6llTwEh07w.mp4", 14),
    ("clips/v_SoccerJuggling_g23_c01.avi", 14),
    ("clips/RATRACE_wave_f_nm_np1_fr_goo_37.avi", 18),
    ("weizmann/jack/daria_jack.avi", 18),
    ("weizmann/run/denis_run.avi", 10),
    ("weizmann/wave2/eli_wave2.avi", 10),
]
REAL = [
    ("clips/arm_wrestling.mp4", 40),
    ("clips/v_SoccerJuggling_g23_c01.avi", 10),
    ("weizmann/run/denis_run.avi", 12),
]


@pytest.mark.parametrize(("name", "start"), REAL)
@pytest.mark.parametrize("body", QUICK_OTHERS)
def test_a_body_takes_the_steps_of_the_readable_one_on_real_clips(
    shared_data: Path, body: str, name: str, start: int
) -> None:
    frames = real_frames(shared_data, name, start)

    difference = abs(flow_of(body, frames, **FIXED) - flow_of("torch", frames, **FIXED))

    assert np.percentile(difference, 99.9) <= 1e-3


@pytest.mark.parametrize("body", QUICK_FIRST_OTHERS)
def test_a_body_stops_where_the_readable_one_stops(body: str) -> None:
    dials = SMALL if is_slow(body) else {"num_warps": 1}
    frames = texture(3, 40, 52, (0.8, 0.3))

    difference = abs(flow_of(body, frames, **dials) - flow_of("torch", frames, **dials))

    assert np.percentile(difference, 99.9) <= 0.02


@pytest.mark.parametrize(("name", "start"), REAL)
@pytest.mark.parametrize("body", QUICK_OTHERS)
def test_a_body_stops_where_the_readable_one_stops_on_real_clips(
    shared_data: Path, body: str, name: str, start: int
) -> None:
    frames = real_frames(shared_data, name, start)

    difference = abs(flow_of(body, frames, num_warps=1) - flow_of("torch", frames, num_warps=1))

    assert np.percentile(difference, 99.9) <= 0.02


@pytest.mark.parametrize("dials", [{}, FIXED | {"num_warps": 5}], ids=["stopping", "fixed"])
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("weizmann/run/denis_run.avi", 12),
        *(
            pytest.param(name, start, marks=pytest.mark.full)
            for name, start in [*REAL[:2], *FAITHFUL[:2]]
        ),
    ],
)
@pytest.mark.parametrize("body", QUICK_OTHERS)
def test_a_body_is_as_near_to_float64_as_the_readable_one_is_in_float32(
    shared_data: Path, body: str, name: str, start: int, dials: dict[str, Any]
) -> None:
    # With all its warps no float32 settles on one flow: see FIXED.
    frames = real_frames(shared_data, name, start)
    images = torch.from_numpy(frames).double()
    truth = (
        torch_reference.between(images[:1], images[1:], TVL1Params(**dials))
        .permute(0, 2, 3, 1)
        .numpy()
    )

    ours, theirs = (
        np.percentile(abs(flow_of(b, frames, **dials) - truth), 99.9) for b in (body, "torch")
    )

    assert ours <= 1.5 * theirs


@pytest.mark.parametrize(("name", "start"), REAL)
@pytest.mark.parametrize("body", QUICK_OTHERS)
def test_a_body_stores_the_codes_of_the_readable_one(
    shared_data: Path, body: str, name: str, start: int
) -> None:
    frames = real_frames(shared_data, name, start)

    assert_same_codes(flow_of(body, frames), flow_of("torch", frames))


def assert_same_codes(ours: Flow, theirs: Flow) -> None:
    """At least 99 % of the codes within 1, and a mean absolute difference of 0.03 px."""
    codes = abs(quantise(ours).astype(int) - quantise(theirs))
    assert (codes <= 1).mean() >= 0.99
    assert abs(ours - theirs).mean() <= 0.03


@pytest.mark.parametrize(("name", "start"), FAITHFUL)
@pytest.mark.parametrize("body", QUICK_OTHERS)
def test_a_body_stores_the_codes_of_opencv(
    shared_data: Path, body: str, name: str, start: int
) -> None:
    frames = real_frames(shared_data, name, start)

    assert_same_codes(flow_of(body, frames), compute(frames, "opencv-tvl1"))


@pytest.mark.parametrize(("name", "start"), REAL[2:])
@pytest.mark.parametrize(
    "body", [pytest.param(b, marks=pytest.mark.full) for b in HERE if is_slow(b)]
)
def test_a_slow_body_goes_through_all_levels_and_warps_on_a_piece_of_a_real_clip(
    shared_data: Path, body: str, name: str, start: int
) -> None:
    frames = np.ascontiguousarray(real_frames(shared_data, name, start)[:, 60:108, 60:124])
    # The same steps where a body settles on one flow (see FIXED), the same codes with all of them.
    few = {"num_scales": 2, "num_warps": 1, "outer_iterations": 2, "inner_iterations": 4}
    for dials, limit in (({**few, "epsilon": 1e-9}, 1e-3), (few, 0.02)):
        difference = abs(flow_of(body, frames, **dials) - flow_of("torch", frames, **dials))
        assert np.percentile(difference, 99.9) <= limit
    rounds = {"outer_iterations": 2, "inner_iterations": 4}
    assert len(TVL1Params().level_sizes(*frames.shape[1:])) == TVL1Params().num_scales

    assert_same_codes(flow_of(body, frames, **rounds), flow_of("torch", frames, **rounds))


@pytest.mark.parametrize(("name", "limit"), [("RubberWhale", 0.158), ("Dimetrodon", 0.182)])
@pytest.mark.parametrize("body", QUICK_OTHERS)
def test_a_body_meets_the_known_end_point_error(
    shared_data: Path, body: str, name: str, limit: float
) -> None:
    folder = shared_data / "flow" / name
    frames = np.stack(
        [opencv.gray(decode.read_frames(folder / f"frame{n}.png", None)[0]) for n in (10, 11)]
    )
    truth = np.fromfile(folder / "flow10.flo", np.float32, offset=12).reshape(*frames.shape[1:], 2)
    known = (abs(truth) < 1e9).all(axis=2)

    error = np.linalg.norm(flow_of(body, frames)[0] - truth, axis=2)[known].mean()

    assert error <= limit


@pytest.mark.parametrize("body", QUICK_FIRST)
def test_equal_frames_have_exactly_no_flow(body: str) -> None:
    dials = SMALL if is_slow(body) else {}
    random = np.random.default_rng(0)
    for frame in (random.integers(0, 256, (1, 37, 53), np.uint8), texture(1, 40, 31, (0, 0))):
        frames = np.repeat(frame, 2 if is_slow(body) else 3, axis=0)
        assert (flow_of(body, frames, **dials) == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (4, 4), (5, 70), (17, 16)])
@pytest.mark.parametrize("body", HERE)
def test_tiny_and_hostile_frames_have_finite_flow(body: str, size: tuple[int, int]) -> None:
    dials = SMALL if is_slow(body) else {}
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2, *size), np.uint8)
    black_and_white = (random.random((2, *size)) < 0.5).astype(np.uint8) * 255
    flash = np.stack([np.full(size, value, np.uint8) for value in (0, 255)])

    for frames in (noise, black_and_white, flash):
        found = flow_of(body, frames, **dials)
        assert found.shape == (1, *size, 2)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()


@pytest.mark.full
def test_8k_frames_have_finite_flow() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4320, 7680), np.uint8)
    least = dict.fromkeys(("num_scales", "num_warps", "outer_iterations", "inner_iterations"), 1)

    found = flow_of("numba", frames, **least)

    assert found.shape == (1, 4320, 7680, 2)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (5, 70), (17, 16)])
@pytest.mark.parametrize("body", OTHERS)
def test_tiny_frames_take_the_steps_of_the_readable_one(body: str, size: tuple[int, int]) -> None:
    dials = {**FIXED, "inner_iterations": 3, "num_warps": 1}
    frames = texture(2, *size, (0.4, -0.3))

    difference = abs(flow_of(body, frames, **dials) - flow_of("torch", frames, **dials))

    assert difference.max() <= 1e-3


@pytest.mark.parametrize("body", QUICK_FIRST)
def test_black_and_white_frames_have_no_flow(body: str) -> None:
    dials = SMALL if is_slow(body) else {}
    for value in (0, 255):
        assert (flow_of(body, np.full((2, 19, 33), value, np.uint8), **dials) == 0).all()


@pytest.mark.parametrize("body", QUICK_FIRST)
def test_flow_of_a_pair_does_not_depend_on_the_others(body: str) -> None:
    dials = {"num_warps": 2} | (SMALL if is_slow(body) else {})
    size = (17, 20) if is_slow(body) else (40, 52)
    still = np.repeat(texture(1, *size, (0, 0)), 2, axis=0)
    frames = np.concatenate([texture(3, *size, (2.3, 1.1)), still, texture(2, *size, (-6, 3))])

    together = flow_of(body, frames, **dials)

    for t, found in enumerate(together):
        assert np.array_equal(found, flow_of(body, frames[t : t + 2], **dials)[0])


@pytest.mark.parametrize("body", QUICK_OTHERS)
def test_flow_does_not_depend_on_the_number_of_threads(body: str) -> None:
    frames = texture(9, 60, 70, (2.3, 1.1))
    frames[4] = frames[3]  # one pair is done long before its neighbours

    assert np.array_equal(flow_of(body, frames, threads=3), flow_of(body, frames))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_numba_body_reads_few_frames_ahead_and_leaves_no_thread(threads: int) -> None:
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


def test_a_function_that_cannot_be_cached_is_compiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x", names)  # Numba finds no file to keep its code beside

    assert numba_cache.compile_cached(names["double"])(4) == 8


@pytest.mark.full
def test_processes_that_compile_at_once_share_a_cache_and_agree(tmp_path: Path) -> None:
    code = (
        "import hashlib, numpy as np; from kinetics_tools.flow.methods import compute; "
        "frames = np.random.default_rng(0).integers(0, 256, (2, 40, 50), np.uint8); "
        "print(hashlib.sha256(compute(frames, backend='numba').tobytes()).hexdigest())"
    )
    words = [sys.executable, "-c", code]
    own = environment() | {"NUMBA_CACHE_DIR": str(tmp_path)}
    started = [subprocess.Popen(words, env=own, stdout=subprocess.PIPE) for _ in range(3)]

    said = {process.communicate()[0] for process in started}

    assert all(process.returncode == 0 for process in started)
    assert said == {subprocess.run(words, env=own, capture_output=True, check=True).stdout}
    assert list(tmp_path.rglob("*.nbc"))


COMPILES = """
import logging, sys
import numpy as np
from kinetics_tools.flow.tvl1 import numba_cpu as cpu
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
cpu.prepare()
signatures = list(cpu._solve.signatures)
frames = np.random.default_rng(0).integers(0, 256, (4, 40, 50), np.uint8)
read_only = np.frombuffer(frames[2].tobytes(), np.uint8).reshape(40, 50)
odd = [frames[0], frames[1, ::-1, ::-1], read_only, frames[3]]
flows = [*cpu.flows(iter(odd), cpu.TVL1Params(), 1)]
assert list(cpu._solve.signatures) == signatures and len(signatures) == 1
print(sum(cpu._solve.stats.cache_hits.values()), cpu._solve.stats.cache_path)
"""


def compile_and_solve(
    cache: Path, *, folder: Path | None = None, before: str = "", **variables: str
) -> tuple[int, Path, str]:
    """Solve pairs in a fresh process: how often it found code in the cache, where, what it logs.

    The package in `folder`, where one is given, is the one that does it.
    """
    done = subprocess.run(
        ["/bin/sh", "-c", f'{before} exec "$@"', "sh", sys.executable, "-c", COMPILES],
        env=environment() | {"NUMBA_CACHE_DIR": str(cache)} | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    hits, kept_in = done.stdout.split(maxsplit=1)
    return int(hits), Path(kept_in.strip()), done.stderr


def test_what_is_prepared_is_all_that_is_compiled_and_is_kept(tmp_path: Path) -> None:
    hits, folder, said = compile_and_solve(tmp_path)
    assert hits == 0
    assert re.fullmatch(r"compiling TV-L1 .*\ncompiled TV-L1 in \d+ s\n", said)

    assert compile_and_solve(tmp_path) == (1, folder, "")  # found, and nothing to say


@pytest.mark.full
def test_machine_code_that_was_lost_with_the_power_is_compiled_anew(tmp_path: Path) -> None:
    _, folder, _ = compile_and_solve(tmp_path)
    (code,) = folder.glob("*.nbc")
    code.write_bytes(b"")
    assert compile_and_solve(tmp_path)[0] == 0
    assert compile_and_solve(tmp_path)[0] == 1


@pytest.mark.full
def test_kinds_of_processors_share_no_file_of_machine_code(tmp_path: Path) -> None:
    _, here, _ = compile_and_solve(tmp_path)

    hits, other, _ = compile_and_solve(tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")

    assert hits == 0
    assert here != other
    assert {len(list(folder.glob("*.nbc"))) for folder in (here, other)} == {1}
    assert compile_and_solve(tmp_path)[:2] == (1, here)


@pytest.mark.full
def test_a_new_source_shares_no_file_of_machine_code(tmp_path: Path) -> None:
    package = tmp_path / "kinetics_tools"
    shutil.copytree(Path(numba_cpu.__file__).parents[2], package)
    _, old, _ = compile_and_solve(tmp_path / "cache", folder=tmp_path)
    source = package / "flow" / "tvl1" / "numba_cpu.py"
    source.write_text(source.read_text().replace("np.float32(2.0**-23)", "np.float32(2.0**-22)"))

    hits, new, _ = compile_and_solve(tmp_path / "cache", folder=tmp_path)

    assert hits == 0
    assert old.parents[1] == new.parents[1]
    assert old != new


@pytest.mark.full
def test_a_disk_that_is_full_costs_the_cache_and_not_the_run(tmp_path: Path) -> None:
    hits, folder, said = compile_and_solve(tmp_path, before="ulimit -f 100;")

    assert hits == 0
    assert f"cannot be stored in {folder}" in said
    assert said.count("\n") == 3  # that, that it compiles and that it has


@pytest.mark.parametrize("threads", [1, 3])
def test_a_pair_that_fails_is_an_error_and_no_hang(threads: int) -> None:
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


@pytest.mark.parametrize("body", HERE)
def test_one_frame_has_no_flow_and_none_has_none(body: str) -> None:
    assert flow_of(body, np.zeros((1, 8, 9), np.uint8)).shape == (0, 8, 9, 2)
    assert list(stream([], backend=body)) == []
