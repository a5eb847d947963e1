"""One engine: results come back, dead workers are told apart, nothing outlives the run."""

import itertools
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import environment

from kinetics_tools import engine
from kinetics_tools.engine import Crash, Part, part_from
from kinetics_tools.errors import KineticsError, MediaError, Reason


def square(number: int) -> int:
    return number * number


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def fail(number: int) -> int:
    raise MediaError(Path(f"/v/{number}.mp4"), "torn", reason=Reason.TOO_SHORT)


def sleep_with_child(seconds: float, *, pids: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    with pids.open("a") as file:
        file.write(f"{os.getpid()}\n{child.pid}\n")
    child.wait()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: object, *, seconds: float = 20) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize("jobs", [0, 1, 3])
def test_every_unit_is_worked_on_once(jobs: int) -> None:
    assert sorted(engine.run(range(7), square, jobs=jobs)) == [(n, n * n) for n in range(7)]


def test_units_are_read_as_they_are_needed() -> None:
    taken = []

    def units() -> object:
        for number in range(1000):
            taken.append(number)
            yield number

    running = engine.run(units(), square, jobs=2)  # type: ignore[arg-type]  # a generator
    next(running)
    running.close()
    assert len(taken) <= 4


def test_a_worker_that_dies_costs_its_unit_only() -> None:
    results = dict(engine.run(range(6), square_or_die, jobs=2))
    died = results.pop(3)
    assert isinstance(died, Crash)
    assert "exit code -9" in died.detail
    assert results == {n: n * n for n in (0, 1, 2, 4, 5)}


def test_an_error_comes_back_whole() -> None:
    with pytest.raises(MediaError, match="torn") as caught:
        list(engine.run([4], fail, jobs=1))
    assert caught.value.reason is Reason.TOO_SHORT
    assert any("while working on 4" in note for note in caught.value.__notes__)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(KineticsError, match="Did you mean 'local'"):
        engine.run([1], square, jobs=1, engine="locale")


def test_ending_a_run_ends_its_workers_and_their_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    running = engine.run([0.0, 600.0], partial(sleep_with_child, pids=pids), jobs=2)
    assert next(running)[0] == 0.0
    wait_until(lambda: len(pids.read_text().split()) == 4)
    running.close()
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))


def test_workers_and_their_children_die_with_a_killed_run(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import sys, pathlib, functools; from kinetics_tools import engine; import test_engine\n"
        "if __name__ == '__main__':\n"
        "    pids = pathlib.Path(sys.argv[1])\n"
        "    work = functools.partial(test_engine.sleep_with_child, pids=pids)\n"
        "    list(engine.run([600.0, 600.0], work, jobs=2))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    paths = environment()["PYTHONPATH"] + os.pathsep + str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, script, pids], env=environment() | {"PYTHONPATH": paths}
    ) as parent:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4)
        parent.kill()
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))


@given(st.integers(0, 50), st.integers(1, 9))
def test_the_parts_of_a_job_have_every_unit_once(num_units: int, count: int) -> None:
    units = list(range(num_units))
    parts = [Part(index, count).of(units) for index in range(count)]
    assert sorted(itertools.chain(*parts)) == units
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def slurm(number: int, first: int, last: int, count: int) -> dict[str, str]:
    names = ("ID", "MIN", "MAX", "COUNT")
    values = (number, first, last, count)
    return {
        f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in zip(names, values, strict=True)
    }


def test_the_part_follows_from_the_option_or_from_slurm() -> None:
    assert part_from(None, {}) == Part(0, 1)
    assert part_from("2/8", slurm(5, 3, 6, 4)) == Part(2, 8)
    assert part_from(None, slurm(5, 3, 6, 4)) == Part(2, 4)
    with pytest.raises(KineticsError, match="give --task I/N"):
        part_from(None, slurm(5, 1, 9, 5))
    for wrong in ("8/8", "-1/8", "a/b", "3", "1/0"):
        with pytest.raises(KineticsError, match="--task"):
            part_from(wrong, {})
