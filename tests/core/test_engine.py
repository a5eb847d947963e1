"""The engine: results come back, a dead worker costs one unit, nothing outlives the run."""

import ast
import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_tools.core import engine, ray_engine
from kinetics_tools.core.errors import KineticsError, MediaError, Reason
from kinetics_tools.core.units import Crash, Part, WorkerResources, part_from
from support import environment, wait_until


def square(number: int) -> int:
    return number * number


def square_or_die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def own_pid(_: int) -> int:
    return os.getpid()


def fail(number: int) -> int:
    raise MediaError(Path(f"/v/{number}.mp4"), "torn", reason=Reason.TOO_SHORT)


def die_once(number: int, *, folder: Path) -> int:
    mark = folder / str(number)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def mark_and_wait(number: int, *, folder: Path) -> int:
    """Record which process works on the unit, then wait for the file "go on"."""
    (folder / f"{number}-{os.getpid()}").touch()
    wait_until(lambda: (folder / "go on").exists(), seconds=60)
    return number * number


def hold_device(
    number: int, *, resources: WorkerResources, folder: Path
) -> tuple[WorkerResources, int]:
    """Use the device for a while; fails if another process uses it. Unit 2 kills its process."""
    held = folder / resources.device
    held.touch(exist_ok=False)
    time.sleep(0.05)
    held.unlink()
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return resources, os.getpid()


def say_what_is_seen(
    number: int, *, resources: WorkerResources, folder: Path
) -> tuple[WorkerResources, str]:
    """The resources, and the GPU that Ray shows, while another unit is at work too."""
    (folder / f"{number}").touch()
    wait_until(lambda: len(list(folder.iterdir())) >= 2)
    return resources, os.environ.get("CUDA_VISIBLE_DEVICES", "all")


def sleep_with_child(seconds: float, *, pids: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    with pids.open("a") as file:
        file.write(f"{os.getpid()}\n{child.pid}\n")
    child.wait()


def sleep_with_slow_children(seconds: float, *, pids: Path) -> None:
    """The same with children that take a moment to end: they give back 256 MiB; one left them."""
    code = "import os, time; ballast = b'x' * 2**28; os.fork(); print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read(2)  # both are ready
        with pids.open("a") as file:
            file.write(f"{os.getpid()}\n{child.pid}\n")
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)


def members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        num_threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except FileNotFoundError:
        return False
    return state != "Z" or num_threads > 1  # its parent is told when all have ended


def still_at_work(pids: Path) -> tuple[int, int]:
    """Of two processes and their children, the pair whose child has not ended."""
    wait_until(lambda: len(pids.read_text().split()) == 4)
    worker, child, other_worker, other_child = map(int, pids.read_text().split())
    return (worker, child) if is_alive(child) else (other_worker, other_child)


def give_much(_: int) -> bytes:
    return bytes(2**24)  # more than a pipe holds, so the sender waits until it is read


@pytest.mark.parametrize("jobs", [0, 1, 3])
def test_every_unit_is_worked_on_once(jobs: int) -> None:
    assert sorted(engine.run(range(7), square, jobs=jobs)) == [(n, n * n) for n in range(7)]


def test_each_device_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    work = partial(hold_device, folder=tmp_path)
    results = dict(engine.run(range(12), work, jobs=5, devices=("one", "two")))

    assert isinstance(results.pop(2), Crash)  # its device is used again
    assert set(results) == {*range(12)} - {2}
    held = {result for result in results.values() if not isinstance(result, Crash)}
    assert {resources for resources, _ in held} == {
        WorkerResources("one", 2),
        WorkerResources("two", 3),
    }
    assert 2 <= len({pid for _, pid in held}) <= 3


def test_a_process_that_is_ended_while_it_sends_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kill = os.killpg

    def kill_late(pid: int, number: int) -> None:
        time.sleep(0.5)  # as on a busy machine
        kill(pid, number)

    monkeypatch.setattr(os, "killpg", kill_late)
    with closing(engine.run([0, 1, 2, 3], give_much, jobs=2)) as results:
        next(results)

    assert capfd.readouterr().err == ""


def test_a_run_in_this_process_has_the_first_device(tmp_path: Path) -> None:
    work = partial(hold_device, folder=tmp_path)
    here = list(engine.run([0, 1], work, jobs=0, devices=("one", "two")))
    assert here == [(n, (WorkerResources("one", 1), os.getpid())) for n in (0, 1)]


def test_units_are_read_as_they_are_needed() -> None:
    taken = []

    def units() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    running = engine.run(units(), square, jobs=2)
    next(running)
    running.close()
    assert len(taken) <= 4


@dataclass
class Slow:
    """Units of which the last one comes only when the test sets `go_on`, or after a minute."""

    before: int
    go_on: threading.Event = field(default_factory=threading.Event)
    waits: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)

    def units(self) -> Generator[int, None, None]:
        try:
            yield from range(self.before)
            self.waits.set()
            self.go_on.wait(60)
            yield self.before
        finally:
            self.closed.set()


@pytest.mark.parametrize("before", [1, 3])
def test_results_come_while_the_next_unit_is_awaited(before: int) -> None:
    slow = Slow(before)
    with closing(engine.run(slow.units(), square, jobs=2)) as running:
        assert sorted(itertools.islice(running, before)) == [(n, n * n) for n in range(before)]
        assert not slow.go_on.is_set()
        slow.go_on.set()
        assert list(running) == [(before, before * before)]
    assert slow.closed.is_set()


def test_no_unit_is_taken_before_the_last_result_was_seen() -> None:
    """So that a result can make the caller end the units."""
    seen: list[int] = []
    taken_after = []

    def units() -> Iterator[int]:
        for number in range(5):
            taken_after.append(len(seen))
            yield number

    for unit, _ in engine.run(units(), square, jobs=1):
        time.sleep(0.05)
        seen.append(unit)
    assert taken_after == [0, 1, 2, 3, 4]


def test_a_run_may_end_while_a_unit_is_awaited() -> None:
    """A run that waits for a silent server can still be stopped."""
    slow = Slow(before=1)
    running = engine.run(slow.units(), square, jobs=2)
    assert next(running) == (0, 0)
    assert slow.waits.wait(20)
    running.close()
    assert not slow.closed.is_set(), "it was still waiting"
    slow.go_on.set()
    assert slow.closed.wait(20)


def test_what_the_units_raise_is_raised_by_the_run(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def units() -> Iterator[float]:
        yield 600.0
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        raise OSError(28, "No space left on device", "here")

    with pytest.raises(OSError, match="No space left"):
        list(engine.run(units(), partial(sleep_with_child, pids=pids), jobs=2))
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))


def test_a_worker_that_dies_while_it_waits_costs_no_unit() -> None:
    pids: list[int] = []

    def units() -> Iterator[int]:
        yield 0
        wait_until(lambda: pids)
        os.kill(pids[0], signal.SIGKILL)
        # Its parent is told only when the last of its threads has ended.
        wait_until(lambda: len(list(Path(f"/proc/{pids[0]}/task").iterdir())) == 1)
        wait_until(lambda: not is_alive(pids[0]))
        yield 1

    # With two at once, the second unit is awaited while the first one's process waits.
    running = engine.run(units(), own_pid, jobs=2)
    pids.append(cast(int, next(running)[1]))
    ((unit, pid),) = running
    assert unit == 1
    assert pid not in (pids[0], os.getpid())
    assert isinstance(pid, int)


INTERRUPTED = """
import sys, threading, time
from kinetics_tools.core import cli, engine
def units():
    yield 1
    print("waiting", flush=True)
    time.sleep(600)
if __name__ == "__main__":
    cli.run(lambda: len([print(*done, flush=True) for done in engine.run(units(), abs, jobs=2)]))
"""


def test_ctrl_c_ends_a_run_that_waits_for_a_unit(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(INTERRUPTED)
    with subprocess.Popen(
        [sys.executable, script],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        try:
            assert {run.stdout.readline(), run.stdout.readline()} == {"waiting\n", "1 1\n"}
            os.killpg(run.pid, signal.SIGINT)
            _, said = run.communicate(timeout=60)
        finally:
            run.kill()  # or a run that does not end would keep the tests waiting too
    assert run.returncode == 130
    assert said == "interrupted; the same command continues where this one stopped\n"


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


def test_when_a_run_has_ended_so_has_all_that_it_started(tmp_path: Path) -> None:
    """At once, not soon: its files are removed then."""
    pids = tmp_path / "pids"
    work = partial(sleep_with_slow_children, pids=pids)
    with closing(engine.run([600.0, 600.0, 0.0], work, jobs=3)) as running:
        assert isinstance(next(running)[1], Crash)  # of the worker that killed itself
        wait_until(lambda: len(pids.read_text().split()) == 6)
        groups = [int(pid) for pid in pids.read_text().split()[::2]]
        assert sum(len(members(group)) > 0 for group in groups) == 2
    assert [members(group) for group in groups] == [[], [], []]


def test_an_interruption_while_a_worker_starts_is_not_lost_and_loses_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = multiprocessing.context.SpawnProcess.start

    def start_and_interrupt(process: multiprocessing.context.SpawnProcess) -> None:
        start(process)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(engine.run([1.0, 1.0], time.sleep, jobs=2))
    assert multiprocessing.active_children() == []


SLEEPERS = """
import functools, pathlib, sys
from kinetics_tools.core import engine
import test_engine
if __name__ == "__main__":
    work = functools.partial(test_engine.sleep_with_child, pids=pathlib.Path(sys.argv[1]))
    list(engine.run([600.0, 600.0], work, jobs=2, engine=sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("name", "signal_number"),
    [
        ("local", signal.SIGKILL),
        pytest.param("ray", signal.SIGKILL, marks=pytest.mark.full),
        pytest.param("ray", signal.SIGINT, marks=pytest.mark.full),
    ],
)
def test_workers_and_their_children_end_with_the_run(
    name: str, signal_number: int, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    script = tmp_path / "run.py"
    script.write_text(SLEEPERS)
    with subprocess.Popen(
        [sys.executable, script, pids, name],
        env=environment(),
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    ) as parent:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4, seconds=60)
        if signal_number == signal.SIGKILL:
            parent.kill()
        else:
            os.killpg(parent.pid, signal_number)  # as a terminal does
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()), seconds=60)


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
    for odd in ({}, {"ID": "x"}, {"MIN": ""}, {"COUNT": "-1"}, {"MAX": "9" * 5000}, {"ID": "7"}):
        environ = slurm(5, 3, 6, 4) if odd else {"SLURM_ARRAY_TASK_ID": "3"}
        environ |= {f"SLURM_ARRAY_TASK_{name}": value for name, value in odd.items()}
        with pytest.raises(KineticsError, match="SLURM_ARRAY_TASK_"):
            part_from(None, environ)
    with pytest.raises(KineticsError, match="is not I/N"):
        part_from(f"0/{'9' * 5000}", {})


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """A local Ray that the engine started; later runs of this module use it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # the same on machines that have GPUs
        with ray_engine._connected_ray(2):
            yield


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("jobs", [None, 1, 3])
def test_ray_works_on_every_unit_once(jobs: int | None) -> None:
    results = sorted(engine.run(range(7), square, jobs=jobs, engine="ray"))
    assert results == [(n, n * n) for n in range(7)]


@pytest.mark.usefixtures("own_ray")
def test_ray_reads_units_as_they_are_needed() -> None:
    taken = []

    def units() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    running = engine.run(units(), square, jobs=2, engine="ray")
    next(running)
    running.close()
    assert len(taken) <= 4


@pytest.mark.usefixtures("own_ray")
def test_results_come_from_ray_while_the_next_unit_is_awaited() -> None:
    slow = Slow(before=1)
    with closing(engine.run(slow.units(), square, jobs=2, engine="ray")) as running:
        assert next(running) == (0, 0)
        assert not slow.go_on.is_set()
        slow.go_on.set()
        assert list(running) == [(1, 1)]
    assert slow.closed.is_set()


@pytest.mark.usefixtures("own_ray")
def test_an_error_comes_back_whole_from_ray() -> None:
    with pytest.raises(MediaError, match="torn") as caught:
        list(engine.run([4], fail, jobs=1, engine="ray"))
    assert caught.value.reason is Reason.TOO_SHORT
    assert any("while working on 4" in note for note in caught.value.__notes__)


@pytest.mark.usefixtures("own_ray")
def test_ray_tries_a_unit_again_whose_process_died(tmp_path: Path) -> None:
    work = partial(die_once, folder=tmp_path)
    assert sorted(engine.run(range(3), work, jobs=2, engine="ray")) == [(0, 0), (1, 1), (2, 4)]


@pytest.mark.usefixtures("own_ray")
def test_a_unit_that_always_kills_its_process_is_a_crash_under_ray() -> None:
    results = dict(engine.run(range(2, 5), square_or_die, jobs=2, engine="ray"))
    died = results.pop(3)
    assert isinstance(died, Crash)
    assert "died, 4 times" in died.detail
    assert results == {2: 4, 4: 16}


@pytest.mark.usefixtures("own_ray")
def test_ending_a_run_ends_what_ray_works_on(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    running = engine.run([0.0, 600.0], partial(sleep_with_child, pids=pids), jobs=2, engine="ray")
    assert next(running)[0] == 0.0
    at_work = still_at_work(pids)
    running.close()
    wait_until(lambda: not any(map(is_alive, at_work)))


@pytest.mark.usefixtures("own_ray")
def test_the_children_of_a_killed_ray_worker_die(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    work = partial(sleep_with_child, pids=pids)
    running = engine.run([0.0, 600.0], work, jobs=2, engine="ray")
    assert next(running)[0] == 0.0
    worker, child = still_at_work(pids)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_alive(child))
    running.close()


@pytest.mark.usefixtures("own_ray")
def test_a_node_that_lacks_the_code_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def work(unit):\n    return unit\n")
    monkeypatch.syspath_prepend(tmp_path)
    only_here = importlib.import_module("only_here")
    with pytest.raises(KineticsError, match=r"No module named 'only_here'; every node needs"):
        list(engine.run([1], only_here.work, jobs=1, engine="ray"))


@pytest.mark.usefixtures("own_ray")
def test_a_cluster_without_gpus_works_on_processors_unless_it_may_not(tmp_path: Path) -> None:
    work = partial(hold_device, folder=tmp_path)
    for word in ("auto", "cpu"):
        ((_, result),) = engine.run([1], work, jobs=1, engine="ray", devices=(word,))
        assert not isinstance(result, Crash)
        assert result[0] == WorkerResources("cpu", 1)
    with pytest.raises(KineticsError, match="no node of the Ray cluster has a GPU"):
        list(engine.run([1], work, jobs=1, engine="ray", devices=("cuda",)))


@pytest.mark.usefixtures("own_ray")
def test_our_own_ray_listens_on_loopback_only() -> None:
    ours = descendants(os.getpid())
    assert any("raylet" in Path(f"/proc/{pid}/cmdline").read_text() for pid in ours)
    inodes = {inode for pid in ours for inode in sockets_of(pid)}
    addresses = {address for address, inode in listeners() if inode in inodes}
    # 127.0.0.1 as the kernel writes it, in IPv4 and mapped into IPv6.
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}


def descendants(pid: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    found: set[int] = set()
    while more := {p for p, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def sockets_of(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")


def listeners() -> Iterator[tuple[str, str]]:
    """Address and inode of every socket that listens."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                yield fields[1].partition(":")[0], fields[9]


def test_without_ray_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KineticsError, match=r"with: pip install ray$"):
        list(engine.run([1], square, jobs=1, engine="ray"))


ONE_RUN = """
from kinetics_tools.core import cli, engine
cli.run(lambda: len(list(engine.run([1], abs, jobs=1, engine="ray"))))
"""


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    said = subprocess.run(
        [sys.executable, "-c", ONE_RUN],
        capture_output=True,
        text=True,
        env=environment() | {"RAY_ADDRESS": "127.0.0.1:1"},
        check=False,
    )
    assert said.returncode == 2
    assert said.stderr.startswith("error: RAY_ADDRESS=127.0.0.1:1 is not a Ray cluster")
    assert said.stderr.count("\n") == 1


@pytest.mark.full
def test_a_cluster_that_asks_for_a_token_is_not_asked_for_long(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"start --head --block --node-ip-address=127.0.0.1 --port={port} --num-cpus=1"
    guarded = environment() | ray_engine._LOCAL_RAY_ENVIRONMENT
    guarded |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    with subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words.split(), "--include-dashboard=false"],
        env=guarded,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as head:
        try:
            wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, seconds=60)
            said = subprocess.run(
                [sys.executable, "-c", ONE_RUN],
                capture_output=True,
                text=True,
                env=guarded | {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_TOKEN": "b" * 64},
                check=False,
            )
        finally:
            os.killpg(head.pid, signal.SIGTERM)
    assert said.returncode == 2
    assert said.stderr.count("InvalidAuthToken") <= 6
    assert said.stderr.splitlines()[-1].endswith("RAY_AUTH_MODE and RAY_AUTH_TOKEN here too")


WITH_GPUS = """
import functools, os, pathlib, sys
from ray.cluster_utils import Cluster
from kinetics_tools.core import engine
import test_engine
folder = pathlib.Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
cluster.add_node(num_cpus=5, num_gpus=2)
os.environ["RAY_ADDRESS"] = cluster.address
work = functools.partial(test_engine.say_what_is_seen, folder=folder)
for word in ("auto", "cuda", "cpu"):
    running = engine.run(range(4), work, jobs=None, engine="ray", devices=(word,))
    print(sorted((own.device, own.threads, seen) for _, (own, seen) in running))
    for path in folder.iterdir():
        path.unlink()
cluster.shutdown()
"""


@pytest.mark.full
def test_each_unit_asks_a_cluster_with_gpus_for_one(tmp_path: Path) -> None:
    """The machine needs no GPUs: Ray believes the numbers that it is given."""
    env = environment() | ray_engine._LOCAL_RAY_ENVIRONMENT
    env.pop("CUDA_VISIBLE_DEVICES", None)  # own_ray hides all, and may still be there
    said = subprocess.run(
        [sys.executable, "-c", WITH_GPUS, tmp_path],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()[-3:]
    auto, cuda, cpu = ([*map(tuple, ast.literal_eval(line))] for line in lines)
    for word, seen in (("auto", auto), ("cuda", cuda)):
        # Five processors for two GPUs: two each.
        assert {(device, threads) for device, threads, _ in seen} == {(word, 2)}
        assert {gpu for _, _, gpu in seen} == {"0", "1"}
    assert {(device, threads) for device, threads, _ in cpu} == {("cpu", 1)}


TWO_NODES = """
import functools, os, pathlib, sys
from ray.cluster_utils import Cluster
from kinetics_tools.core import engine
import test_engine
from support import wait_until
folder = pathlib.Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
work = functools.partial(test_engine.mark_and_wait, folder=folder)
running = engine.run(range(6), work, jobs=None, engine="ray")
results = []
import threading
thread = threading.Thread(target=lambda: results.extend(running))
thread.start()
wait_until(lambda: len(list(folder.glob("[0-9]*"))) == 2, seconds=60)
cluster.remove_node(other, allow_graceful=False)
(folder / "go on").touch()
thread.join()
print(results)
cluster.shutdown()
"""


@pytest.mark.full
def test_a_lost_node_costs_no_unit(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", TWO_NODES, tmp_path],
        capture_output=True,
        text=True,
        env=environment() | ray_engine._LOCAL_RAY_ENVIRONMENT,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    results = ast.literal_eval(said.stdout.splitlines()[-1])
    assert sorted(results) == [(n, n * n) for n in range(6)]
    started = [path.name.partition("-")[0] for path in tmp_path.glob("*-*")]
    assert len(started) == len(set(started)) + 1, "the lost node's unit was worked on again"
