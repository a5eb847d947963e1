"""The parameters of TV-L1: what decides the flow of a pair, whichever backend computes it."""

import math
from dataclasses import dataclass, fields
from typing import Any

MIN_LEVEL_PX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TVL1Params:
    """The parameters of TV-L1. The defaults are those of OpenCV's `DualTVL1OpticalFlow`.

    All are finite numbers above 0; counts are whole numbers.

    Attributes:
        tau: step size of the dual field; converges up to 0.25.
        lambda_: weight of the data term, for grey values 0..255; smaller gives smoother flow.
        theta: how tightly the two parts of the energy are coupled; smaller is tighter.
        num_scales: largest number of pyramid levels. The pyramid ends before a level that is under
            16 px high or wide, or not smaller than the next finer one.
        scale_step: size of a level relative to the next finer one; under 1.
        num_warps: warps per level.
        epsilon: change of the flow, in pixels (root mean square), at which a warp has converged.
        inner_iterations: largest number of steps per outer iteration.
        outer_iterations: largest number of outer iterations per warp; each begins with the median
            filter.

    Raises:
        ValueError: a value is out of range or of another type.
    """

    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    num_scales: int = 5
    scale_step: float = 0.8
    num_warps: int = 5
    epsilon: float = 0.01
    inner_iterations: int = 30
    outer_iterations: int = 10

    def __post_init__(self) -> None:
        for field in fields(TVL1Params):
            _check(field.name, getattr(self, field.name), whole=field.type is int)
        if self.scale_step >= 1:
            raise ValueError(f"scale_step must be under 1, not {self.scale_step}")

    def as_json(self) -> dict[str, Any]:
        """Return the parameters as plain JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(TVL1Params)}

    def level_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return (height, width) of each pyramid level, from the frames' own to the coarsest."""
        sizes = [(height, width)]
        while len(sizes) < self.num_scales:
            smaller = (round(sizes[-1][0] * self.scale_step), round(sizes[-1][1] * self.scale_step))
            if min(smaller) < MIN_LEVEL_PX or smaller == sizes[-1]:
                break
            sizes.append(smaller)
        return sizes


def _check(name: str, value: object, *, whole: bool) -> None:
    """Refuse what is not a finite number above 0; True and False are not numbers here."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        kind = "whole" if whole else "finite"
        raise ValueError(f"{name} must be a {kind} number, not {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
