"""The engine of all commands: run `work` on every unit, on this machine or on a Ray cluster.

A unit is the smallest piece of work that is either done or not done. Worker processes are spawned
(no inherited locks or threads); they and their children (ffmpeg) end with the process that started
them.

A unit may be worked on twice, as Ray retries units of a lost node, so work must be idempotent: it
publishes complete files.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from kinetics_tools.core.errors import lookup
from kinetics_tools.core.local_engine import run_local
from kinetics_tools.core.prefetch import as_generator
from kinetics_tools.core.ray_engine import run_ray
from kinetics_tools.core.units import R, Results, U, share_resources, with_resources


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
        units: iterated in a thread, each one only when a worker is free for it: memory stays
            bounded, and no result waits for a slow iterator. When the run ends, the thread closes a
            generator, after its current step if it is in the middle of one; the run waits for that
            at most `prefetch.STOP_S`. Exceptions of the iterator are raised here.
        work: a module-level function or a `functools.partial` of one (it is sent to processes).
            Its exceptions end the run: they are raised here.
        jobs: the number of units at once; None for the engine's number of processors. 0 works in
            this process, for debuggers.
        engine: a name in ENGINES.
        devices: one process is started for each, and the jobs are divided among these; work is
            called as `work(unit, resources=WorkerResources)`. A device may be named several times.
            Under Ray, which knows the devices of its nodes, one word: "cpu"; "cuda", a GPU for each
            unit; "auto", a GPU for each unit if the cluster has any. Ray shows each unit its own
            GPU only, `resources.device` is that word, and `jobs` is the number of units at once.

    Raises:
        KineticsError: the engine cannot be used, or does not have such a device.
    """
    if jobs == 0:
        return _run_here(units, with_resources(share_resources(devices, 1)[0], work))
    return lookup("engine", engine, ENGINES)(units, work, jobs, devices)


def _run_here(units: Iterable[U], work: Callable[[U], R]) -> Results[U, R]:
    with closing(as_generator(units)) as remaining:
        for unit in remaining:
            yield unit, work(unit)


ENGINES: Mapping[str, Callable[..., Generator[tuple[Any, Any], None, None]]] = {
    "local": run_local,
    "ray": run_ray,
}
