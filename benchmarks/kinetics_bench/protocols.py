"""Evaluation protocols: which frames of a clip one prediction sees."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from kinetics_bench.archs.registry import ARCHS, Sampling
from kinetics_tools.core.errors import UnknownNameError, unknown_name
from kinetics_tools.core.files import digest
from kinetics_tools.core.schema import Count, NumFrames, Positive

__all__ = ["PROTOCOLS", "EvalProtocol", "Extent", "protocol_named"]

if TYPE_CHECKING:
    from kinetics_bench.archs.network import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Which frames of a clip one stream of a network sees in evaluation, from the clip's start.

    Attributes:
        stride: every `stride`-th frame (rgb) or field (flow).
        num: number of frames or fields; shorter clips are looped. None: all that the clip has.
        least: if `num` is None: the minimum; shorter clips are looped to it.
        multiple: if `num` is None: the number is a multiple of this, the remainder is left out.
    """

    stride: NumFrames
    num: NumFrames | None
    least: NumFrames = 1
    multiple: NumFrames = 1


Extents = Mapping[str, Extent]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalProtocol:
    """Which views of a clip one prediction sees.

    One view: centre crop, and the logits are averaged over the network's time steps. Several: the
    mean of their softmax. Crops have the size of the recipe's, on which the network was trained:
    those of 224 pixels of a wide frame of 256 leave out 16 rows at the top and 16 at the bottom.
    The three crops of SlowFast (ThreeCrop in mmaction2) and of VideoMAE are as high as the frame.

    Attributes:
        name: as given on the command line.
        title: one line for tables.
        source: the paper or code that it comes from.
        whole: of one view. True: all frames of the clip at the training stride; False: the test
            column of the paper's Table 1.
        clips: of several views: how many of the training's length, uniform in time; 0: one view.
        crops: how many along the frame's longer side, of each of them.
    """

    name: str
    title: str
    source: str
    whole: bool
    clips: Count = 0
    crops: Positive = 1

    def extents(
        self, arch: str, specs: Sequence[InputSpec], trained: Mapping[str, Sampling]
    ) -> dict[str, Extent]:
        """Stream -> the frames or fields that a network sees.

        Args:
            arch: its name in ARCHS.
            specs: the network's inputs, in order.
            trained: stream -> sampling of the training.
        """
        return {spec.stream: self._extent(arch, spec, trained[spec.stream]) for spec in specs}

    def _extent(self, arch: str, spec: InputSpec, trained: Sampling) -> Extent:
        if self.clips:
            return Extent(stride=trained.stride, num=trained.num)
        if self.whole:
            return Extent(
                stride=trained.stride, num=None, least=trained.num, multiple=spec.multiple
            )
        test = ARCHS[arch].test[spec.stream]
        # 250 frames have 249 fields. I3D takes any number and sees 249; a network that takes stacks
        # of ten sees 250, the last one looped.
        fewer = 1 if spec.stream == "flow" and spec.multiple == 1 else 0
        return Extent(stride=test.stride, num=test.num - fewer)

    @property
    def hash(self) -> str:
        """SHA-256 of what changes a prediction, hex."""
        unhashed = {"name", "title", "source"}
        if not self.clips:
            unhashed |= {"clips", "crops"}  # the hash of one view is as it was without these
        return digest({k: v for k, v in asdict(self).items() if k not in unhashed})

    def as_json(self) -> dict[str, Any]:
        """The protocol and its hash as plain JSON values; of one view as 0.1 wrote them."""
        unsaid = () if self.clips else ("clips", "crops")
        values = {name: value for name, value in asdict(self).items() if name not in unsaid}
        return values | {"hash": self.hash}


def _several(clips: int, crops: int, source: str) -> EvalProtocol:
    """Views of the training's length, side by side in time and along the frame's longer side.

    Their crops are as large as the recipe's, also where those of the source are larger.
    """
    return EvalProtocol(
        name=f"{clips}x{crops}",
        title=f"{clips} uniform in time, as long as in training, of each {crops} along the longer "
        "side; the mean of their softmax",
        source=source,
        whole=False,
        clips=clips,
        crops=crops,
    )


_THEIRS: Final = "with the recipe's crop in place of its own, as high as the short side"
PROTOCOLS: Final[Mapping[str, EvalProtocol]] = {
    "paper": EvalProtocol(
        name="paper",
        title="the paper's test input (I3D: the first 250 frames, their 249 fields), one centre "
        "crop",
        source="arXiv 1705.07750 v3, Table 1 and section 2.5; deepmind/kinetics-i3d issues 28, 44, "
        "93",
        whole=False,
    ),
    "whole": EvalProtocol(
        name="whole",
        title="all frames at the training stride, one centre crop",
        source="the paper's, for clips of any length",
        whole=True,
    ),
    **{
        f"{clips}x{crops}": _several(clips, crops, source)
        for clips, crops, source in (
            (10, 3, f"SlowFast, arXiv 1812.03982, section 4.1, {_THEIRS} (256 of 256)"),
            (5, 3, f"VideoMAE, arXiv 2203.12602, section 4.1, {_THEIRS} (224 of 224)"),
            (1, 1, "the middle of the clip: the lower bound of the others"),
        )
    },
}
_SEVERAL: Final = re.compile("([1-9][0-9]?)x([1-9])")


def protocol_named(name: str) -> EvalProtocol:
    """The protocol of that name: one of PROTOCOLS, or CLIPSxCROPS, up to 99x9.

    Raises:
        UnknownNameError: there is none.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    match = _SEVERAL.fullmatch(name)
    if match is None:
        said = unknown_name("protocol", name, PROTOCOLS)
        raise UnknownNameError(f"{said} (and any other CLIPSxCROPS from 1x1 to 99x9)")
    return _several(int(match[1]), int(match[2]), "as 10x3")
