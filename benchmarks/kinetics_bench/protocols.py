"""Evaluation protocols: which frames of a clip one prediction sees."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from kinetics_bench.archs.registry import ARCHS, Sampling
from kinetics_tools.core.files import digest

if TYPE_CHECKING:
    from kinetics_bench.archs.network import ClipNeed


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much of a clip one stream of a network sees, from the clip's start.

    Attributes:
        stride: every which frame (rgb) or field (flow).
        num: so many of them, shorter clips looped; None: as many as the clip has.
        least: where `num` is None: shorter clips are looped to as many.
        multiple: where `num` is None: a multiple of this, what is over at the end left out.
    """

    stride: int
    num: int | None
    least: int = 1
    multiple: int = 1


Extents = Mapping[str, Extent]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalProtocol:
    """One centre crop over time; the network makes one prediction of its time steps.

    Attributes:
        name: as given on the command line.
        title: one line for tables.
        source: where it comes from.
        whole: every frame of the clip at the training's stride. If not: the paper's Table 1, test.
    """

    name: str
    title: str
    source: str
    whole: bool

    def extents(
        self, arch: str, needs: Sequence["ClipNeed"], trained: Mapping[str, Sampling]
    ) -> dict[str, Extent]:
        """What a network sees of a clip, by stream.

        Args:
            arch: its name in ARCHS.
            needs: what it is called with, in order.
            trained: what it saw in training, by stream.
        """
        return {need.stream: self._extent(arch, need, trained[need.stream]) for need in needs}

    def _extent(self, arch: str, need: "ClipNeed", trained: Sampling) -> Extent:
        if self.whole:
            return Extent(
                stride=trained.stride, num=None, least=trained.num, multiple=need.multiple
            )
        test = ARCHS[arch].test[need.stream]
        # 250 frames have 249 fields. I3D takes any number and sees those; a network that needs
        # stacks of ten sees the first field again, at the end.
        fewer = 1 if need.stream == "flow" and need.multiple == 1 else 0
        return Extent(stride=test.stride, num=test.num - fewer)

    def as_json(self) -> dict[str, Any]:
        """The protocol and its hash as plain JSON values."""
        values = asdict(self)
        told = {"name", "title", "source"}
        return values | {"hash": digest({k: v for k, v in values.items() if k not in told})}


PROTOCOLS: Final[Mapping[str, EvalProtocol]] = {
    "paper": EvalProtocol(
        name="paper",
        title="the paper's test input (I3D: the first 250 frames), one centre crop",
        source="arXiv 1705.07750 v3, Table 1 and section 4; deepmind/kinetics-i3d issues 28, 44, "
        "93",
        whole=False,
    ),
    "whole": EvalProtocol(
        name="whole",
        title="all frames at the training stride, one centre crop",
        source="the paper's, for clips of any length",
        whole=True,
    ),
}
