"""TV-L1 optical flow, faithful to OpenCV's CPU code: one algorithm, several backends.

`torch_reference` is the readable backend and defines the algorithm; every other one takes the same
steps, and tests compare it with the reference. The choice changes the time, and the flow by
rounding only, so it is not part of the recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from kinetics_tools.core.errors import KineticsError, lookup
from kinetics_tools.core.system import own_symbols_first
from kinetics_tools.flow.tvl1.parameters import TVL1Params

Frames = Iterator[npt.NDArray[np.uint8]]
Flows = Iterator[npt.NDArray[np.float32]]


def _torch(frames: Frames, parameters: TVL1Params, device: str, threads: int) -> Flows:  # noqa: ARG001 - torch has threads of its own
    from kinetics_tools.flow.tvl1 import torch_reference  # imports torch, which Numba does not need

    return torch_reference.flows(frames, parameters, device)


def _triton(frames: Frames, parameters: TVL1Params, device: str, threads: int) -> Flows:  # noqa: ARG001 - a GPU has threads of its own
    try:
        import_triton()
        from kinetics_tools.flow.tvl1 import triton_solver
    except ModuleNotFoundError as error:
        raise KineticsError(
            "TV-L1 on a GPU needs the package triton: pip install triton, or use device cpu (from "
            "Python also backend='torch')"
        ) from error
    return triton_solver.flows(frames, parameters, device)


def import_triton() -> None:
    """Import triton in a way that TensorFlow bears, which may be imported before it or after it.

    Both contain LLVM. Triton would use that of a TensorFlow imported before it, and abort the
    process. Torch imports triton at the first step of an optimizer.

    Raises:
        ImportError: it is not installed.
    """
    with own_symbols_first() if "tensorflow" in sys.modules else nullcontext():
        import triton  # noqa: F401


def _numba(frames: Frames, parameters: TVL1Params, device: str, threads: int) -> Flows:
    if device != "cpu":
        raise ValueError(f"backend 'numba' of tvl1 runs on a CPU, not on {device}")
    from kinetics_tools.flow.tvl1 import numba_cpu

    return numba_cpu.flows(frames, parameters, threads)


BACKENDS = {"torch": _torch, "numba": _numba, "triton": _triton}
# The fastest backend on each kind of device.
FASTEST: Mapping[str, str] = {"cpu": "numba", "cuda": "triton"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TVL1(TVL1Params):
    """The flow method: the parameters of TV-L1, and the backend that computes it.

    Attributes:
        backend: a name in BACKENDS; None for the fastest one on the device.
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
            UnknownNameError: BACKENDS has no such name.
            KineticsError: the backend needs another device or package.
        """
        return lookup("backend of tvl1", self._backend_on(device), BACKENDS)(
            frames, self, device, threads
        )

    def prepare(self, device: str) -> None:
        """Compile the Numba backend and store the code for processes that start later.

        The first time it takes some seconds, later a fraction of one. The triton backend compiles
        when it first runs.

        Args:
            device: torch's name of it.
        """
        if self._backend_on(device) == "numba":
            from kinetics_tools.flow.tvl1 import numba_cpu

            numba_cpu.prepare()

    def _backend_on(self, device: str) -> str:
        return self.backend or FASTEST[device.partition(":")[0]]
