"""The engine `local`: worker processes of this machine."""

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
    """One process, the pipe to it, what it is lent, and the unit that it works on."""

    def __init__(self, work: Callable[..., R], unit: U, resources: WorkerResources | None) -> None:
        self.resources = resources
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, with_resources(resources, work))
        )
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


def run_local(
    units: Iterable[U], work: Callable[..., R], jobs: int | None, devices: Sequence[str]
) -> Results[U, R]:
    """Run units in processes of this machine; arguments and results as `engine.run`."""
    free = share_resources(devices, jobs or num_processors())
    limit = len(free)
    busy: dict[Any, _Worker[U, R]] = {}
    idle: list[_Worker[U, R]] = []
    with background_reader(units) as taker:
        try:
            while busy or not taker.exhausted:
                if len(busy) < limit:
                    taker.ask()
                for ready in wait([taker.wakeup_fd, *busy]):
                    if ready == taker.wakeup_fd:
                        for unit in taker.take():
                            worker = _worker_for(unit, work, idle, free)
                            busy[worker.pipe] = worker
                        continue
                    worker = busy[ready]
                    for result in worker.take():
                        idle.append(busy.pop(ready))
                        yield worker.unit, result
                if taker.exhausted:
                    _end(idle)  # it holds memory that those still at work may need
        finally:
            _end([*busy.values(), *idle])


def _worker_for(
    unit: U, work: Callable[..., R], idle: list[_Worker[U, R]], free: list[WorkerResources | None]
) -> _Worker[U, R]:
    """Give the unit to an idle process, else to a new one, which takes what is free."""
    while idle:
        worker = idle.pop()
        if worker.process.is_alive():
            worker.give(unit)
            return worker
        worker.end()  # it died of its last unit, or while it waited for another
        free.append(worker.resources)
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
        pipe.send(attempt(work, unit))


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
