"""The one engine: run `work` on every unit, here or on a Ray cluster, and share units out.

Every command uses `run`. A unit is the smallest share that is done or not done; its result comes
back as it finishes. Worker processes are started afresh (no inherited locks or threads), die with
the process that started them, and take their own children (ffmpeg) with them.

A unit may be worked on twice (Ray tries again where a node was lost), so work is idempotent: it
publishes its files whole.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from kinetics_tools.core.errors import lookup
from kinetics_tools.core.local_engine import run_local
from kinetics_tools.core.prefetch import each
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
        return _here(units, with_resources(share_resources(devices, 1)[0], work))
    return lookup("engine", engine, ENGINES)(units, work, jobs, devices)


def _here(units: Iterable[U], work: Callable[[U], R]) -> Results[U, R]:
    with closing(each(units)) as waiting:
        for unit in waiting:
            yield unit, work(unit)


ENGINES: Mapping[str, Callable[..., Generator[tuple[Any, Any], None, None]]] = {
    "local": run_local,
    "ray": run_ray,
}
