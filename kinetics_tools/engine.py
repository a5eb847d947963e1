"""The one engine: run `work` on every unit, in processes of this machine, and share units out.

Every command uses `run`. A unit is the smallest share that is done or not done; its result comes
back as it finishes. Worker processes are started afresh (no inherited locks or threads), die with
the process that started them, and take their own children (ffmpeg) with them.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from kinetics_tools.errors import KineticsError, lookup

U = TypeVar("U")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Crash:
    """In place of a result: the process that worked on the unit died (killed, out of memory)."""

    detail: str


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
    units: Iterable[U], work: Callable[[U], R], *, jobs: int, engine: str = "local"
) -> Generator[tuple[U, R | Crash], None, None]:
    """Yield `(unit, work(unit))` for every unit, in the order in which they finish.

    Args:
        units: read lazily; at most `jobs` are under way at once, so memory stays bounded.
        work: a module-level function or a `functools.partial` of one (it is sent to processes).
            An exception it raises is a bug or stops the run: it is raised here.
        jobs: how many at once. 0 works in this process, for debuggers.
        engine: a name in ENGINES.
    """
    if jobs == 0:
        return ((unit, work(unit)) for unit in units)
    return lookup("engine", engine, ENGINES)(units, work, jobs)


class _Worker(Generic[U, R]):
    """One process, the pipe to it, and the unit that it works on."""

    def __init__(self, work: Callable[[U], R], unit: U) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work))
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
            died = f"the process working on it died (exit code {self.process.exitcode})"
            return (Crash(died),)
        if not self._is_ready:
            self._is_ready = True
            return ()
        if not ok:
            raise value
        return (value,)

    def end(self) -> None:
        """Kill the process and what it started; harmless when it is already gone."""
        self.pipe.close()
        if self.process.pid is not None and self.process.is_alive():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()  # not yet the leader of its own group
        self.process.join()


def _local(
    units: Iterable[U], work: Callable[[U], R], jobs: int
) -> Generator[tuple[U, R | Crash], None, None]:
    waiting = iter(units)
    workers: dict[Any, _Worker[U, R]] = {}
    try:
        for unit in itertools.islice(waiting, jobs):
            worker: _Worker[U, R] = _Worker(work, unit)
            workers[worker.pipe] = worker
        while workers:
            for pipe in wait(list(workers)):
                worker = workers[pipe]
                done = worker.unit
                for result in worker.take():
                    # The next unit is under way before the caller looks at this result.
                    following = list(itertools.islice(waiting, 1))
                    if isinstance(result, Crash) or not following:
                        workers.pop(pipe).end()
                    for unit in following:
                        if isinstance(result, Crash):
                            worker = _Worker(work, unit)
                            workers[worker.pipe] = worker
                        else:
                            worker.give(unit)
                    yield done, result
    finally:
        for worker in workers.values():
            worker.end()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """What a worker process does: units in, results out, until the pipe closes."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_die_with_parent, daemon=True).start()
    pipe.send((True, None))
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        try:
            reply = (True, work(unit))
        except BaseException as error:  # noqa: BLE001 - carried to the parent, which raises it
            error.add_note(f"while working on {unit!r}"[:500])
            if not isinstance(error, (KineticsError, OSError)):
                error.add_note("".join(traceback.format_exception(error)))  # it stays behind
            reply = (False, error)
        pipe.send(reply)


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


ENGINES: Mapping[str, Callable[..., Generator[tuple[Any, Any], None, None]]] = {"local": _local}
