"""The one engine: run `work` on every unit, here or on a Ray cluster, and share units out.

Every command uses `run`. A unit is the smallest share that is done or not done; its result comes
back as it finishes. Worker processes are started afresh (no inherited locks or threads), die with
the process that started them, and take their own children (ffmpeg) with them.

A unit may be worked on twice (Ray tries again where a node was lost), so work is idempotent: it
publishes its files whole.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from kinetics_tools.ahead import Box, each, taking
from kinetics_tools.errors import KineticsError, lookup

U = TypeVar("U")
R = TypeVar("R")

RETRIES = 3  # of a unit whose process or node died under Ray
_CANCEL_S = 30  # how long a cancelled unit's process may take to die
# A Ray of our own serves this process only: on loopback, calling nobody, no more memory than small
# results need, no GPU hidden from (and no words about it to) a task that asked for none. An
# environment that says otherwise is left alone.
_OWN_RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# A cluster that answers and refuses (it asks for a token, say) is asked again this often, once a
# second; Ray itself would do so 20 times, with a line for each.
_CLUSTER_RAY_ENVIRONMENT = {"RAY_NUM_REDIS_GET_RETRIES": "5"}
_OWN_RAY_STORE_BYTES = 128 * 2**20
_QUIET_RAY: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_CONNECT_S = 10


@dataclass(frozen=True, slots=True)
class Crash:
    """In place of a result: the process that worked on the unit died (killed, out of memory)."""

    detail: str


@dataclass(frozen=True, slots=True)
class Lent:
    """What a process that works on units may use, until it ends.

    Attributes:
        device: one of those that the run was given; no other process has it meanwhile.
        threads: how many processors are its share.
    """

    device: str
    threads: int


Results = Generator[tuple[U, R | Crash], None, None]


@dataclass(frozen=True, slots=True)
class Part:
    """The `index`-th of `count` shares of a job, counted from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    def of(self, units: Sequence[U]) -> list[U]:
        """This part's units. All parts together have every unit once."""
        return list(units[self.index :: self.count])


WHOLE = Part()


def part_from(task: str | None, environ: Mapping[str, str]) -> Part:
    """Which part this process does: `--task I/N`, else Slurm's array variables, else all of it.

    Raises:
        KineticsError: `task` is not I/N with 0 <= I < N, or the Slurm array has holes.
    """
    if task is not None:
        index, slash, count = task.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise KineticsError(f"--task {task!r} is not I/N with I from 0 to N-1, such as 0/8")
        return Part(int(index), int(count))
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return WHOLE
    number, first, last, count_ = (
        int(environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
    )
    if last - first + 1 != count_:
        raise KineticsError(
            f"the Slurm array {first}..{last} has only {count_} tasks, so shares cannot be told "
            "from it; use a contiguous array, or give --task I/N"
        )
    return Part(number - first, count_)


def run(
    units: Iterable[U],
    work: Callable[..., R],
    *,
    jobs: int | None,
    engine: str = "local",
    devices: Sequence[str] = (),
) -> Results[U, R]:
    """Yield `(unit, work(unit))` for every unit, in the order in which they finish.

    Args:
        units: read in a thread, the next one only when somebody is free for it, so that memory
            stays bounded and no result waits for a slow unit. A generator is closed there when the
            run ends; one that is then in the middle of a step is waited for `ahead.STOP_S`, and is
            closed after that step. What it raises is raised here.
        work: a module-level function or a `functools.partial` of one (it is sent to processes).
            An exception it raises is a bug or stops the run: it is raised here.
        jobs: how many at once; None for as many as the engine has processors. 0 works in this
            process, for debuggers.
        engine: a name in ENGINES.
        devices: lent out: there is one process for each, the jobs are shared among these, and the
            work is called as `work(unit, lent=Lent)`. A device named n times is lent n times. Under
            Ray, which knows its nodes' devices, one word: "cpu"; "cuda", a GPU for each unit;
            "auto", a GPU for each unit where the cluster has any. Ray then shows a unit its GPU
            only, the work is told the word, and `jobs` is how many units at once.

    Raises:
        KineticsError: the engine cannot be used, or has no such device.
    """
    if jobs == 0:
        return _here(units, _with(_shares(devices, 1)[0], work))
    return lookup("engine", engine, ENGINES)(units, work, jobs, devices)


def num_processors() -> int:
    """How many processors this process may use: it is bound to them, or Slurm's task has them."""
    bound = len(os.sched_getaffinity(0))
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(granted)) if granted.isdecimal() else bound


def _shares(devices: Sequence[str], jobs: int) -> list[Lent | None]:
    """What each process is lent, nothing where there is nothing to lend."""
    if not devices:
        return [None] * jobs
    # Jobs that cannot be shared evenly go to the last ones.
    return [
        Lent(device, max((jobs + number) // len(devices), 1))
        for number, device in enumerate(devices)
    ]


def _with(lent: Lent | None, work: Callable[..., R]) -> Callable[[U], R]:
    return work if lent is None else partial(work, lent=lent)


def _here(units: Iterable[U], work: Callable[[U], R]) -> Results[U, R]:
    with closing(each(units)) as waiting:
        for unit in waiting:
            yield unit, work(unit)


class _Worker(Generic[U, R]):
    """One process, the pipe to it, what it is lent, and the unit that it works on."""

    def __init__(self, work: Callable[..., R], unit: U, lent: Lent | None) -> None:
        self.lent = lent
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, _with(lent, work)))
        with _ctrl_c_ignored():  # by the process too, until it says so itself
            self.process.start()
        theirs.close()
        self._is_ready = False
        self.give(unit)

    def give(self, unit: U) -> None:
        """Hand over the next unit."""
        self.unit = unit
        with contextlib.suppress(BrokenPipeError):  # it died; `take` will say so
            self.pipe.send(unit)

    def take(self) -> tuple[R | Crash, ...]:
        """The result of its unit: nothing yet when this was only its word that it has started."""
        try:
            ok, value = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join()
            if not self._is_ready:
                raise RuntimeError(
                    "a worker process could not start; a script that uses several jobs needs "
                    'its work below `if __name__ == "__main__":`'
                ) from error
            died = (
                f"the process working on it died (exit code {self.process.exitcode}); if memory "
                "was short, give fewer --jobs"
            )
            return (Crash(died),)
        if not self._is_ready:
            self._is_ready = True
            return ()
        if not ok:
            raise value
        return (value,)

    def end(self) -> None:
        """Kill the process and what it started; harmless when it is already gone."""
        if self.process.pid is not None and self.process.is_alive():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()  # not yet the leader of its own group
        self.process.join()
        self.pipe.close()  # not before: a process that still sends would print what it met


def _local(
    units: Iterable[U], work: Callable[..., R], jobs: int | None, devices: Sequence[str]
) -> Results[U, R]:
    free = _shares(devices, jobs or num_processors())
    limit = len(free)
    busy: dict[Any, _Worker[U, R]] = {}
    idle: list[_Worker[U, R]] = []
    with taking(units) as taker:
        try:
            while busy or not taker.is_through:
                if len(busy) < limit:
                    taker.ask()
                for ready in wait([taker.bell, *busy]):
                    if ready == taker.bell:
                        for unit in taker.take():
                            worker = _worker_for(unit, work, idle, free)
                            busy[worker.pipe] = worker
                        continue
                    worker = busy[ready]
                    for result in worker.take():
                        idle.append(busy.pop(ready))
                        yield worker.unit, result
                if taker.is_through:
                    _end(idle)  # it holds memory that those still at work may need
        finally:
            _end([*busy.values(), *idle])


def _worker_for(
    unit: U, work: Callable[..., R], idle: list[_Worker[U, R]], free: list[Lent | None]
) -> _Worker[U, R]:
    """Give the unit to an idle process, else to a new one, which takes what is free."""
    while idle:
        worker = idle.pop()
        if worker.process.is_alive():
            worker.give(unit)
            return worker
        worker.end()  # it died of its last unit, or while it waited for another
        free.append(worker.lent)
    return _Worker(work, unit, free.pop(0))


def _end(workers: list[_Worker[U, R]]) -> None:
    while workers:
        workers.pop().end()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """What a worker process does: units in, results out, until the pipe closes."""
    os.setpgid(0, 0)
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)  # the parent decides what they mean
    threading.Thread(target=_die_with_parent, daemon=True).start()
    pipe.send((True, None))
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        pipe.send(_attempt(work, unit))


def _attempt(work: Callable[[U], R], unit: U) -> tuple[bool, R | BaseException]:
    """Whether the work on a unit came to a result, and that, or what it raised."""
    try:
        return True, work(unit)
    except BaseException as error:  # noqa: BLE001 - carried to the parent, which raises it
        error.add_note(f"while working on {unit!r}"[:500])
        if not isinstance(error, (KineticsError, OSError)):
            error.add_note("".join(traceback.format_exception(error)))  # it stays behind
        return False, error


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _ray(
    units: Iterable[U], work: Callable[..., R], jobs: int | None, devices: Sequence[str]
) -> Results[U, R]:
    """One Ray task a unit: on the cluster that RAY_ADDRESS names, else on a Ray of our own."""
    finished: Box[Any] = Box()
    with closing(finished), _connected_ray(jobs) as ray, taking(units) as taker:
        lent, asked = _ray_share(ray, devices)
        scarce = "GPU" if "num_gpus" in asked else "CPU"
        task = ray.remote(max_retries=RETRIES, **asked)(_work_on_node)
        shared = ray.put(_with(lent, work))  # once, not with every unit
        running: dict[Any, U] = {}

        def start(unit: U) -> None:
            reference = task.remote(shared, unit)
            running[reference] = unit
            reference.future().add_done_callback(lambda _: finished.put(reference))

        try:
            while running or not taker.is_through:
                # Asked each time: nodes come and go.
                if len(running) < (jobs or max(int(ray.cluster_resources().get(scarce, 0)), 1)):
                    taker.ask()
                for ready in wait([taker.bell, finished.bell]):
                    if ready == taker.bell:
                        for unit in taker.take():
                            start(unit)
                    else:
                        reference = finished.take()
                        unit = running.pop(reference)
                        yield unit, _ray_result(ray, reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=_CANCEL_S)


def _ray_share(ray: Any, devices: Sequence[str]) -> tuple[Lent | None, dict[str, float]]:
    """What a task's work is told that it may use, and what the task asks the cluster for."""
    if not devices:
        return None, {"num_cpus": 1}
    (wanted,) = devices
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # Of the nodes with GPUs, the processors that there are for each.
    cpus = [node.get("CPU", 0.0) / node["GPU"] for node in nodes if node.get("GPU", 0.0) >= 1]
    if wanted == "cpu" or (wanted == "auto" and not cpus):
        return Lent("cpu", 1), {"num_cpus": 1}
    if not cpus:
        raise KineticsError(
            "no node of the Ray cluster has a GPU; start nodes that have one, or use its CPUs"
        )
    share = min(cpus)
    return Lent(wanted, max(int(share), 1)), {
        "num_cpus": int(share) if share >= 1 else share,  # Ray takes no other fractions
        "num_gpus": 1,
    }


def _ray_result(ray: Any, reference: Any) -> Any:
    """What a finished task gives: its result, or a Crash; raises what its work raised."""
    errors = ray.exceptions
    died = (
        errors.WorkerCrashedError,
        errors.NodeDiedError,
        errors.OutOfMemoryError,
        errors.ObjectLostError,
    )
    try:
        ok, value = ray.get(reference)
    except died as error:
        words = " ".join(str(error).split())[:300]
        return Crash(f"the process working on it died, {RETRIES + 1} times: {words}")
    except errors.RayError as error:  # never the work's own: that comes as a value
        words = str(error).strip().rpartition("\n")[2]
        raise KineticsError(
            f"Ray could not hand over a unit or its result: {words}; every node needs the same "
            "Python and the same kinetics-tools as this one"
        ) from error
    if not ok:
        raise value
    return value


@contextlib.contextmanager
def _connected_ray(jobs: int | None) -> Iterator[Any]:
    """Yield the module `ray`, connected; a connection that was there before stays."""
    address = os.environ.get("RAY_ADDRESS")
    settings = _CLUSTER_RAY_ENVIRONMENT if address else _OWN_RAY_ENVIRONMENT
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise KineticsError("the engine ray needs Ray; install it with: pip install ray") from error
    if ray.is_initialized():
        yield ray
        return
    if address:
        _join_cluster(ray, address)
    else:
        ray.init(
            address="local",
            num_cpus=jobs or num_processors(),
            include_dashboard=False,
            object_store_memory=_OWN_RAY_STORE_BYTES,
            **_QUIET_RAY,
        )
    try:
        yield ray
    finally:
        ray.shutdown()


def _join_cluster(ray: Any, address: str) -> None:
    """Connect to the cluster at an address of Ray's: HOST:PORT, ray://HOST:PORT or auto."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        ray.init(address=address, **_QUIET_RAY)
    except (OSError, RuntimeError) as error:
        words = " ".join(str(error).split())[:300]
        raise KineticsError(
            f"RAY_ADDRESS={address} is not a Ray cluster that can be used: {words}; one that asks "
            "for a token needs its RAY_AUTH_MODE and RAY_AUTH_TOKEN here too"
        ) from error


def _work_on_node(work: Callable[[U], R], unit: U) -> tuple[bool, R | BaseException]:
    """What a Ray task does, in a process of Ray's that does many."""
    _end_children_with_process()
    return _attempt(work, unit)


@cache
def _end_children_with_process() -> "subprocess.Popen[bytes] | None":
    """Let what this process starts end with it, also when it is killed: Ray leaves it running.

    A guard in the same process group waits for the other end of its pipe to close.
    """
    with contextlib.suppress(PermissionError):  # it leads a session, and so its group
        os.setpgid(0, 0)
    if os.getpgrp() != os.getpid():
        return None
    guard = "import os, signal, sys; sys.stdin.read(); os.killpg(0, signal.SIGKILL)"
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", guard], stdin=subprocess.PIPE)


ENGINES: Mapping[str, Callable[..., Generator[tuple[Any, Any], None, None]]] = {
    "local": _local,
    "ray": _ray,
}
