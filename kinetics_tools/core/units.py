"""Units of work: the part that a process does, what its workers may use, and their results."""

import re
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
    """Takes the place of a result when the worker process died (killed, out of memory)."""

    detail: str


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """What a worker process may use.

    Attributes:
        device: one of the run's devices, which no other process uses at the same time.
        threads: the worker's share of the processors.
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
        """The units of this part. Each unit belongs to exactly one part."""
        return list(units[self.index :: self.count])


WHOLE = Part()
_SLURM = "SLURM_ARRAY_TASK_"


def part_from(task: str | None, environ: Mapping[str, str]) -> Part:
    """The part that this process does: by `--task I/N`, else by Slurm's array, else the whole job.

    Args:
        task: the value of `--task`, if given.
        environ: the environment, with Slurm's variables.

    Raises:
        KineticsError: `task` is not I/N with 0 <= I < N, or the Slurm array is not contiguous, or
            its variables are not there or not numbers.
    """
    if task is not None:
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", task)
        if match is None or int(match[1]) >= int(match[2]):
            raise KineticsError(
                f"--task {task[:40]!r} is not I/N with I from 0 to N-1, such as 0/8"
            )
        return Part(int(match[1]), int(match[2]))
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return WHOLE
    told = {name: environ.get(f"{_SLURM}{name}", "") for name in ("ID", "MIN", "MAX", "COUNT")}
    odd = [name for name, value in told.items() if re.fullmatch(r"[0-9]{1,9}", value) is None]
    if odd:
        raise KineticsError(
            f"{_SLURM}{odd[0]} is {told[odd[0]]!r}, not a number, so it does not say which share "
            f"to do; unset {_SLURM}ID, or give --task I/N"
        )
    number, first, last, count_ = map(int, told.values())
    if last - first + 1 != count_:
        raise KineticsError(
            f"the Slurm array {first}..{last} has only {count_} tasks, so it does not say which "
            "share to do; use a contiguous array, or give --task I/N"
        )
    if not first <= number <= last:
        raise KineticsError(f"{_SLURM}ID {number} is not in the array {first}..{last}")
    return Part(number - first, count_)


def share_resources(devices: Sequence[str], jobs: int) -> list[WorkerResources | None]:
    """The resources of each worker process: one per device; without devices, `jobs` times None."""
    if not devices:
        return [None] * jobs
    # Where the jobs cannot be divided evenly, the last devices get one more.
    return [
        WorkerResources(device, max((jobs + number) // len(devices), 1))
        for number, device in enumerate(devices)
    ]


def with_resources(resources: WorkerResources | None, work: Callable[..., R]) -> Callable[[U], R]:
    """Bind `resources` to `work`, so that it takes only a unit; None binds nothing."""
    return work if resources is None else partial(work, resources=resources)


def attempt(work: Callable[[U], R], unit: U) -> tuple[bool, R | BaseException]:
    """Work on a unit: True and the result, or False and the exception."""
    try:
        return True, work(unit)
    except BaseException as error:  # noqa: BLE001 - carried to the parent, which raises it
        error.add_note(f"while working on {unit!r}"[:500])
        if not isinstance(error, (KineticsError, OSError)):  # a bug
            error.add_note("".join(traceback.format_exception(error)))  # not pickled
        return False, error
