"""Evaluation protocols: which frames of a clip one prediction sees."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from kinetics_tools.files import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalProtocol:
    """One centre crop over time; the network averages its logits over the time steps.

    Attributes:
        name: as given on the command line.
        title: one line for tables.
        source: where it comes from.
        num_frames: RGB frames from the clip's start, shorter clips looped to as many; a flow stream
            sees one field less, since T frames have T-1 fields. None: every frame of the clip, and
            clips shorter than a training view are looped to one.
        stride: every which frame; None: the training recipe's.
    """

    name: str
    title: str
    source: str
    num_frames: int | None
    stride: int | None

    def as_json(self) -> dict[str, Any]:
        """The protocol and its hash as plain JSON values."""
        values = asdict(self)
        told = {"name", "title", "source"}
        return values | {"hash": digest({k: v for k, v in values.items() if k not in told})}


PROTOCOLS: Final[Mapping[str, EvalProtocol]] = {
    "paper": EvalProtocol(
        name="paper",
        title="first 250 frames, one centre crop",
        source="arXiv 1705.07750 v3, section 4; deepmind/kinetics-i3d issues 28, 44, 93",
        num_frames=250,
        stride=1,
    ),
    "whole": EvalProtocol(
        name="whole",
        title="all frames at the training stride, one centre crop",
        source="the paper's, for clips of any length",
        num_frames=None,
        stride=None,
    ),
}
