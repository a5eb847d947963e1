"""The engine `local`: worker processes on this machine.

Not a ProcessPoolExecutor: one killed worker fails all units of its pool (BrokenProcessPool), and a
pool tells no exit code and, before Python 3.14, cannot end a worker that is at work.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

from kinetics_tools.core import signals
from kinetics_tools.core.prefetch import background_reader
from kinetics_tools.core.system import adopt_orphans, await_group, num_processors
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

logger = logging.getLogger(__name__)


class _Worker(Generic[U, R]):
    """A worker process, the pipe to it, its resources, and its current unit."""

    def __init__(self, work: Callable[..., R], unit: U, resources: WorkerResources | None) -> None:
        self.resources = resources
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, with_resources(resources, work))
        )
        self.process.start()
        theirs.close()
        self._is_ready = self._has_ended = False
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
            wait([self.process.sentinel])  # so that its exit code is its own
            self.end()
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

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return bool(wait([self.process.sentinel], timeout=0))

    def kill(self) -> None:
        """Kill the process; `end` waits for it."""
        if not self._has_ended:
            self.process.kill()

    def end(self) -> None:
        """Kill the process and all that it started, and return when none of them is left.

        What is still about to die may still write, and removing its files would race with it.
        """
        if self._has_ended:
            return
        self.kill()
        wait([self.process.sentinel])  # from now on it starts no other process
        pid = self.process.pid
        assert pid is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # there is no such group
            os.killpg(pid, signal.SIGKILL)
        self.process.join()
        await_group(pid)
        self.pipe.close()  # not earlier: a process that is sending would print a traceback
        self._has_ended = True


def run_local(
    units: Iterable[U], work: Callable[..., R], jobs: int | None, devices: Sequence[str]
) -> Results[U, R]:
    """Run units in processes on this machine; arguments and results as for `engine.run`."""
    adopt_orphans()
    workers = _Workers[U, R](work, share_resources(devices, jobs or num_processors()))
    busy: dict[Any, _Worker[U, R]] = {}
    with background_reader(units) as reader, contextlib.closing(workers):
        while busy or not reader.exhausted:
            if len(busy) < workers.limit:
                reader.ask()
            for ready in wait([reader.wakeup_fd, *busy]):
                if ready == reader.wakeup_fd:
                    for unit in reader.take():
                        worker = workers.give(unit)
                        busy[worker.pipe] = worker
                    continue
                worker = busy[ready]
                for result in worker.take():
                    workers.idle.append(busy.pop(ready))
                    yield worker.unit, result
            if reader.exhausted:
                workers.end_idle()  # they hold memory that busy ones may need


class _Workers(Generic[U, R]):
    """The processes of a run.

    Attributes:
        limit: how many there may be at once.
        idle: those that wait for a unit.
    """

    def __init__(self, work: Callable[..., R], resources: list[WorkerResources | None]) -> None:
        self.limit = len(resources)
        self.idle: list[_Worker[U, R]] = []
        self._work = work
        self._free = resources
        self._started: list[_Worker[U, R]] = []  # all, so that an interruption loses none

    def give(self, unit: U) -> _Worker[U, R]:
        """Give the unit to an idle process, else to a new one with the first free resources."""
        while self.idle:
            worker = self.idle.pop()
            if not worker.is_dead:
                worker.give(unit)
                return worker
            worker.end()  # it died of its last unit, or since then
            self._free.append(worker.resources)
        resource_tracker.ensure_running()  # its start would unblock the signals that are held
        with signals.held():
            worker = _Worker(self._work, unit, self._free.pop(0))
            self._started.append(worker)
        return worker

    def end_idle(self) -> None:
        """End those that wait for a unit: there is none."""
        _end(self.idle)
        self.idle.clear()

    def close(self) -> None:
        """End all; none is left then, nor what they started."""
        with signals.held():
            _end(self._started)


def _end(workers: Sequence[_Worker[U, R]]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.end()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Run in a worker process: receive units and send results until the pipe closes."""
    os.setpgid(0, 0)
    signals.ignore_in_worker()  # the parent handles them for all
    threading.Thread(target=_die_with_parent, daemon=True).start()
    pipe.send((True, None))
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(work, unit))


def _die_with_parent() -> None:
    """Run in a thread: when the parent ends, kill this process and its children."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
