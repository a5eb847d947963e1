"""What is worked on: units, the part of them that a process does, and what it may use."""

import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from kinetics_tools.core.errors import KineticsError

U = TypeVar("U")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Crash:
    """In place of a result: the process that worked on the unit died (killed, out of memory)."""

    detail: str


@dataclass(frozen=True, slots=True)
class WorkerResources:
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


def share_resources(devices: Sequence[str], jobs: int) -> list[WorkerResources | None]:
    """What each process is lent, nothing where there is nothing to lend."""
    if not devices:
        return [None] * jobs
    # Jobs that cannot be shared evenly go to the last ones.
    return [
        WorkerResources(device, max((jobs + number) // len(devices), 1))
        for number, device in enumerate(devices)
    ]


def with_resources(resources: WorkerResources | None, work: Callable[..., R]) -> Callable[[U], R]:
    """The work as a function of the unit alone; `resources` None: it takes none."""
    return work if resources is None else partial(work, resources=resources)


def attempt(work: Callable[[U], R], unit: U) -> tuple[bool, R | BaseException]:
    """Whether the work on a unit came to a result, and that, or what it raised."""
    try:
        return True, work(unit)
    except BaseException as error:  # noqa: BLE001 - carried to the parent, which raises it
        error.add_note(f"while working on {unit!r}"[:500])
        if not isinstance(error, (KineticsError, OSError)):
            error.add_note("".join(traceback.format_exception(error)))  # it stays behind
        return False, error
