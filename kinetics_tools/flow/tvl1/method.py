"""TV-L1 optical flow, faithful to OpenCV's CPU code: one algorithm, several bodies, one truth.

`reference` is the readable one and says what the algorithm is; every other body takes the same
steps and is held to its result. Which one computes changes how long it takes, not what comes out
(but for rounding), so it is no part of the recipe.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from kinetics_tools.core.errors import KineticsError, lookup
from kinetics_tools.flow.tvl1.parameters import TVL1Params

Frames = Iterator[npt.NDArray[np.uint8]]
Flows = Iterator[npt.NDArray[np.float32]]


def _torch(frames: Frames, dials: TVL1Params, device: str, threads: int) -> Flows:  # noqa: ARG001 - torch has threads of its own
    from kinetics_tools.flow.tvl1 import (
        torch_reference,  # it brings torch, which Numba does without
    )

    return torch_reference.flows(frames, dials, device)


def _triton(frames: Frames, dials: TVL1Params, device: str, threads: int) -> Flows:  # noqa: ARG001 - a GPU has its own
    try:
        from kinetics_tools.flow.tvl1 import triton_solver
    except ModuleNotFoundError as error:
        raise KineticsError(
            "TV-L1 on a GPU needs the package triton: pip install triton, or use device cpu (or, "
            "from Python, backend='torch')"
        ) from error
    return triton_solver.flows(frames, dials, device)


def _numba(frames: Frames, dials: TVL1Params, device: str, threads: int) -> Flows:
    if device != "cpu":
        raise ValueError(f"body 'numba' of tvl1 runs on a CPU, not on {device}")
    from kinetics_tools.flow.tvl1 import numba_cpu

    return numba_cpu.flows(frames, dials, threads)


BACKENDS = {"torch": _torch, "numba": _numba, "triton": _triton}
# The fastest body on each kind of device.
FASTEST: Mapping[str, str] = {"cpu": "numba", "cuda": "triton"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TVL1(TVL1Params):
    """The method: its dials, and which body computes it.

    Attributes:
        body: a name in BODIES; None for the fastest on the device.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    backend: str | None = None

    def flows(self, frames: Frames, device: str, threads: int) -> Flows:
        """Yield the flow from each frame to the next: float32 (H, W, 2).

        Args:
            frames: uint8 (H, W), all of one size.
            device: torch's name of it.
            threads: how many pairs a CPU may compute at once; the flow does not depend on it.

        Raises:
            UnknownNameError: no such body.
        """
        return lookup("body of tvl1", self._backend_on(device), BACKENDS)(
            frames, self, device, threads
        )

    def prepare(self, device: str) -> None:
        """Do what is done once on a machine, so that processes started later need not: compile.

        It takes some seconds the first time, a fraction of one once it is cached.

        Args:
            device: torch's name of it.
        """
        if self._backend_on(device) == "numba":
            from kinetics_tools.flow.tvl1 import numba_cpu

            numba_cpu.prepare()

    def _backend_on(self, device: str) -> str:
        return self.backend or FASTEST[device.partition(":")[0]]
