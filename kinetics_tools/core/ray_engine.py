"""The engine `ray`: a Ray cluster, or a local Ray started here. The only importer of ray."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from kinetics_tools.core import signals
from kinetics_tools.core.errors import KineticsError
from kinetics_tools.core.prefetch import Mailbox, background_reader
from kinetics_tools.core.system import adopt_orphans, await_group, num_processors
from kinetics_tools.core.units import Crash, R, Results, U, WorkerResources, attempt, with_resources

RETRIES = 3  # of a unit whose process or node died
_CANCEL_S = 30  # how long a cancelled unit's process may take to die
# A local Ray serves this process only: it listens on loopback, sends no usage statistics, reserves
# little memory, and hides no GPU from tasks that ask for none (nor warns of that). Variables that
# are set already stay.
_LOCAL_RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# A cluster that answers and refuses, as without its token, is tried this often, once per second.
# Ray's default is 20, with a line for each.
_CLUSTER_RAY_ENVIRONMENT = {"RAY_NUM_REDIS_GET_RETRIES": "5"}
_LOCAL_RAY_STORE_BYTES = 128 * 2**20
_QUIET_RAY: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_CONNECT_S = 10
# Ray kills the children of a worker that it ends, not theirs: the guard is a child's child.
_GUARD = """
import os, select, signal, sys
if os.fork():
    os._exit(0)
watched = [sys.stdin]
try:
    watched.append(os.pidfd_open(int(sys.argv[1])))
except (AttributeError, OSError):
    pass  # not Linux, an old kernel, or it has ended already
select.select(watched, [], [])
os.killpg(0, signal.SIGKILL)
"""


@dataclass(frozen=True, slots=True)
class _Home:
    """Where the process that started the run waits for its workers.

    Attributes:
        host: only workers of this host can be awaited.
        folder: each worker at work has a file there, named by its id.
    """

    host: str
    folder: Path

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """Leave the id of this process for the block, and for good if it dies in it.

        Raises:
            FileNotFoundError: the run is over, and nobody would wait for what is begun now.
        """
        if self.host != socket.gethostname():
            yield
            return
        mark = self.folder / str(os.getpid())
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def run_ray(
    units: Iterable[U], work: Callable[..., R], jobs: int | None, devices: Sequence[str]
) -> Results[U, R]:
    """Run one Ray task per unit, on the cluster that RAY_ADDRESS names, else on a local Ray."""
    finished: Mailbox[Any] = Mailbox()
    with (
        closing(finished),
        _awaited_workers() as home,
        _connected_ray(jobs) as ray,
        background_reader(units) as reader,
    ):
        resources, request = _task_resources(ray, devices)
        limiting = "GPU" if "num_gpus" in request else "CPU"
        task = ray.remote(max_retries=RETRIES, **request)(_work_on_node)
        shared = ray.put(with_resources(resources, work))  # sent once, not with every unit
        running: dict[Any, U] = {}

        def start(unit: U) -> None:
            reference = task.remote(shared, unit, home)
            running[reference] = unit
            reference.future().add_done_callback(lambda _: finished.put(reference))

        try:
            while running or not reader.exhausted:
                # Read each time, as nodes come and go.
                if len(running) < (jobs or max(int(ray.cluster_resources().get(limiting, 0)), 1)):
                    reader.ask()
                for ready in wait([reader.wakeup_fd, finished.wakeup_fd]):
                    if ready == reader.wakeup_fd:
                        for unit in reader.take():
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


def _task_resources(
    ray: Any, devices: Sequence[str]
) -> tuple[WorkerResources | None, dict[str, float]]:
    """The resources that the work is told, and those that a task requests from the cluster."""
    if not devices:
        return None, {"num_cpus": 1}
    (wanted,) = devices
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # Processors per GPU, of the nodes that have GPUs.
    cpus = [node.get("CPU", 0.0) / node["GPU"] for node in nodes if node.get("GPU", 0.0) >= 1]
    if wanted == "cpu" or (wanted == "auto" and not cpus):
        return WorkerResources("cpu", 1), {"num_cpus": 1}
    if not cpus:
        raise KineticsError(
            "no node of the Ray cluster has a GPU; start nodes that have one, or use its CPUs"
        )
    share = min(cpus)
    return WorkerResources(wanted, max(int(share), 1)), {
        "num_cpus": int(share) if share >= 1 else share,  # Ray allows fractions only below 1
        "num_gpus": 1,
    }


def _ray_result(ray: Any, reference: Any) -> Any:
    """The result of a finished task, or a Crash; raises what the work raised."""
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
    except errors.RayError as error:  # not the work's own, which is returned as a value
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
    """Yield the module `ray`, connected; an existing connection is used and stays open."""
    address = os.environ.get("RAY_ADDRESS")
    settings = _CLUSTER_RAY_ENVIRONMENT if address else _LOCAL_RAY_ENVIRONMENT
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise KineticsError("the engine ray needs Ray; install it with: pip install ray") from error
    if ray.is_initialized():
        yield ray
        return
    with _sigterm_kept():
        if address:
            _join_cluster(ray, address)
        else:
            ray.init(
                address="local",
                num_cpus=jobs or num_processors(),
                include_dashboard=False,
                object_store_memory=_LOCAL_RAY_STORE_BYTES,
                **_QUIET_RAY,
            )
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, in place of which Ray sets its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if signal.getsignal(signal.SIGTERM) is not before:
        signal.signal(signal.SIGTERM, before)


def _join_cluster(ray: Any, address: str) -> None:
    """Connect to the cluster at HOST:PORT, ray://HOST:PORT or auto."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        ray.init(address=address, **_QUIET_RAY)
    except (OSError, RuntimeError) as error:
        words = " ".join(str(error).split())[:300]
        raise KineticsError(
            f"RAY_ADDRESS={address} is not a Ray cluster that can be used: {words}; one that asks "
            "for a token needs its RAY_AUTH_MODE and RAY_AUTH_TOKEN here too"
        ) from error


@contextlib.contextmanager
def _awaited_workers() -> Iterator[_Home]:
    """Yield where workers leave their ids; at the end, wait for those that died at their work.

    What their children still write, the caller would not find when it cleans.
    """
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="kinetics-tools-") as name:
        folder, over = Path(name, "at-work"), Path(name, "over")
        folder.mkdir()
        try:
            yield _Home(socket.gethostname(), folder)
        finally:
            with signals.held():
                folder.rename(over)  # from now on no worker begins
                for mark in over.iterdir():
                    await_group(int(mark.name))


def _work_on_node(work: Callable[[U], R], unit: U, home: _Home) -> tuple[bool, R | BaseException]:
    """Run in a Ray task; one process of Ray's runs many."""
    _end_children_with_process()
    with home.marked():
        return attempt(work, unit)


@cache
def _end_children_with_process() -> int | None:
    """Make the children of this process end with it, also when it is killed; Ray does not.

    A guard process in the same process group waits until this process closes a pipe by ending, or
    until the node's raylet, which started this process, ends: a driver that is killed takes its
    local raylet with it, and Ray's own processes notice that late where the processors are busy.
    """
    with contextlib.suppress(PermissionError):  # it leads a session, and so its group already
        os.setpgid(0, 0)
    if os.getpgrp() != os.getpid():
        return None
    words = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getppid())]
    read_end, write_end = os.pipe()
    subprocess.run(words, stdin=read_end, check=True)
    os.close(read_end)
    return write_end  # stays open as long as this process lives
