"""The engine `local`: worker processes on this machine.

Not a ProcessPoolExecutor: one killed worker fails all units of its pool (BrokenProcessPool), and a
pool tells no exit code and, before Python 3.14, cannot end a worker that is at work.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

from kinetics_tools.core.prefetch import background_reader
from kinetics_tools.core.system import num_processors
from kinetics_tools.core.units import (
    Crash,
    R,
    Results,
    U,
    WorkerResources,
    attempt,
    share_resources,
    with_resources,
)


class _Worker(Generic[U, R]):
    """A worker process, the pipe to it, its resources, and its current unit."""

    def __init__(self, work: Callable[..., R], unit: U, resources: WorkerResources | None) -> None:
        self.resources = resources
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, with_resources(resources, work))
        )
        with _ctrl_c_ignored():  # the process inherits that, until it sets its own handlers
            self.process.start()
        theirs.close()
        self._is_ready = False
        self.give(unit)

    def give(self, unit: U) -> None:
        """Send the next unit."""
        self.unit = unit
        with contextlib.suppress(BrokenPipeError):  # the process died, which `take` will find
            self.pipe.send(unit)

    def take(self) -> tuple[R | Crash, ...]:
        """Receive the result of the unit, or a Crash; () for the first message, "started"."""
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
        """Kill the process and its children; does nothing if it has ended."""
        if self.process.pid is not None and self.process.is_alive():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()  # it does not lead its own group yet
        self.process.join()
        self.pipe.close()  # not earlier: a process that is sending would print a traceback


def run_local(
    units: Iterable[U], work: Callable[..., R], jobs: int | None, devices: Sequence[str]
) -> Results[U, R]:
    """Run units in processes on this machine; arguments and results as for `engine.run`."""
    free = share_resources(devices, jobs or num_processors())
    limit = len(free)
    busy: dict[Any, _Worker[U, R]] = {}
    idle: list[_Worker[U, R]] = []
    with background_reader(units) as reader:
        try:
            while busy or not reader.exhausted:
                if len(busy) < limit:
                    reader.ask()
                for ready in wait([reader.wakeup_fd, *busy]):
                    if ready == reader.wakeup_fd:
                        for unit in reader.take():
                            worker = _worker_for(unit, work, idle, free)
                            busy[worker.pipe] = worker
                        continue
                    worker = busy[ready]
                    for result in worker.take():
                        idle.append(busy.pop(ready))
                        yield worker.unit, result
                if reader.exhausted:
                    _end(idle)  # they hold memory that busy ones may need
        finally:
            _end([*busy.values(), *idle])


def _worker_for(
    unit: U, work: Callable[..., R], idle: list[_Worker[U, R]], free: list[WorkerResources | None]
) -> _Worker[U, R]:
    """Give the unit to an idle process, else to a new one with the first free resources."""
    while idle:
        worker = idle.pop()
        if worker.process.is_alive():
            worker.give(unit)
            return worker
        worker.end()  # it died of its last unit, or since then
        free.append(worker.resources)
    return _Worker(work, unit, free.pop(0))


def _end(workers: list[_Worker[U, R]]) -> None:
    while workers:
        workers.pop().end()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Run in a worker process: receive units and send results until the pipe closes."""
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent handles them for all
    threading.Thread(target=_die_with_parent, daemon=True).start()
    pipe.send((True, None))
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(work, unit))


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _die_with_parent() -> None:
    """Run in a thread: when the parent ends, kill this process and its children."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
