"""The architectures by name. Importing this module imports no network and no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from kinetics_tools.errors import UnknownNameError, lookup, nearest

if TYPE_CHECKING:
    import torch

STREAMS: Final = ("joint", "rgb", "flow")
CHANNELS: Final[Mapping[str, int]] = {"rgb": 3, "flow": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One architecture. `module` has `build(stream, num_classes, *, dropout, bn_momentum)`."""

    title: str
    streams: tuple[str, ...]
    module: str
    source: str


ARCHS: Final[Mapping[str, Arch]] = {
    "i3d": Arch(
        title="Two-Stream I3D",
        streams=("joint", "rgb", "flow"),
        module="benchmarks.archs.i3d",
        source="Carreira and Zisserman, arXiv 1705.07750 v3; deepmind/kinetics-i3d, i3d.py",
    ),
}


def build(
    name: str,
    stream: str = "rgb",
    num_classes: int = 400,
    *,
    dropout: float = 0.5,
    bn_momentum: float = 0.001,
) -> "torch.nn.Module":
    """A network with fresh weights, drawn from torch's global generator.

    Its input is float32 (B, 3, T, H, W) for `rgb` or (B, 2, T, H, W) for `flow`, both in [-1, 1];
    `joint` is called as `net(rgb, flow)`. It returns logits, float32 (B, num_classes).

    Args:
        name: a name in ARCHS.
        stream: one of the architecture's streams.
        num_classes: how many logits.
        dropout: the share of features that training drops.
        bn_momentum: the weight of a new batch in batch norm's moving statistics. The default is the
            paper's decay of 0.999: after a few hundred steps they still stand near their start,
            so a short training needs more.

    Raises:
        UnknownNameError: `name` or `stream` is not known; the message names the nearest.
    """
    arch = lookup("architecture", name, ARCHS)
    if stream not in arch.streams:
        raise UnknownNameError(nearest("stream", stream, arch.streams))
    module = import_module(arch.module)
    net: torch.nn.Module = module.build(
        stream, num_classes, dropout=dropout, bn_momentum=bn_momentum
    )
    return net
