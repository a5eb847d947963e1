"""The architectures by name, with Table 1 of the paper. Imports no network and no torch.

Source of every figure: Carreira and Zisserman, arXiv 1705.07750 v3, Table 1 and section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from kinetics_bench.archs.streams import CHANNELS, FLOW_STACK, STREAMS
from kinetics_tools.core.errors import UnknownNameError, lookup, unknown_name

if TYPE_CHECKING:
    from kinetics_bench.archs.network import Network

__all__ = ["ARCHS", "CHANNELS", "STREAMS", "Arch", "Sampling", "build"]

FPS: Final = 25


@dataclass(frozen=True, slots=True)
class Sampling:
    """`num` frames (rgb) or fields (flow) of a 25 fps clip, every `stride`-th of them."""

    num: int
    stride: int = 1

    @property
    def footprint_s(self) -> float:
        """Seconds of video that they stand for."""
        return self.num * self.stride / FPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One architecture, and what the paper feeds it.

    Attributes:
        title: its name in reports.
        streams: of STREAMS, the ones it has; the first is the one that the paper is about.
        module: has `build(stream, num_classes, *, dropout, bn_momentum)`.
        source: where it comes from.
        train, test: what each stream sees of a clip, by stream (`rgb`, `flow`). Where both are
            given with different strides, an rgb frame is the first one of its stretch of flow.
        crop_px: height and width of the input.
        paper_millions: the paper's rounded count of parameters, of the first of `streams`.
        joint_training: whether `joint` is trained as one network. If not, both streams are trained
            apart and their logits added at test.
        loss_at_all_steps: whether training takes the loss at every time step, not of the average.
    """

    title: str
    streams: tuple[str, ...]
    module: str
    source: str
    train: Mapping[str, Sampling]
    test: Mapping[str, Sampling]
    crop_px: int = 224
    paper_millions: int
    joint_training: bool = False
    loss_at_all_steps: bool = False

    def clips_of(self, stream: str) -> tuple[str, ...]:
        """What a network of `stream` is called with, in order: `rgb`, `flow` or both."""
        return tuple(self.train) if stream == "joint" else (stream,)

    def networks_of(self, stream: str) -> tuple[str, ...]:
        """The networks that are trained for `stream`: where joint adds logits, its two streams."""
        is_sum = stream == "joint" and not self.joint_training
        return tuple(self.train) if is_sum else (stream,)

    @property
    def networks(self) -> tuple[str, ...]:
        """Every network that can be trained, by the stream that it is of."""
        return tuple(stream for stream in self.streams if stream in self.networks_of(stream))


_FLOW_TEST: Final = Sampling(250)
_SNAPSHOTS_TEST: Final = {"rgb": Sampling(25, FLOW_STACK), "flow": _FLOW_TEST}

ARCHS: Final[Mapping[str, Arch]] = {
    "i3d": Arch(
        title="Two-Stream I3D",
        streams=("joint", "rgb", "flow"),
        module="kinetics_bench.archs.i3d",
        source="Carreira and Zisserman, arXiv 1705.07750 v3; deepmind/kinetics-i3d, i3d.py",
        train={"rgb": Sampling(64), "flow": Sampling(64)},
        test={"rgb": Sampling(250), "flow": _FLOW_TEST},
        paper_millions=25,
    ),
    "convnet-lstm": Arch(
        title="ConvNet+LSTM",
        streams=("rgb",),
        module="kinetics_bench.archs.convnet_lstm",
        source="Carreira and Zisserman, arXiv 1705.07750 v3, section 2.1; Cooijmans et al., "
        "arXiv 1603.09025",
        train={"rgb": Sampling(25, 5)},
        test={"rgb": Sampling(50, 5)},
        paper_millions=9,
        loss_at_all_steps=True,
    ),
    "c3d": Arch(
        title="3D-ConvNet",
        streams=("rgb",),
        module="kinetics_bench.archs.c3d",
        source="Carreira and Zisserman, arXiv 1705.07750 v3, section 2.2; Tran et al., "
        "arXiv 1412.0767",
        train={"rgb": Sampling(16)},
        test={"rgb": Sampling(240)},
        crop_px=112,
        paper_millions=79,
    ),
    "two-stream": Arch(
        title="Two-Stream",
        streams=("joint", "rgb", "flow"),
        module="kinetics_bench.archs.two_stream",
        source="Carreira and Zisserman, arXiv 1705.07750 v3, section 2.3; Simonyan and Zisserman, "
        "arXiv 1406.2199",
        train={"rgb": Sampling(1, FLOW_STACK), "flow": Sampling(FLOW_STACK)},
        test=_SNAPSHOTS_TEST,
        paper_millions=12,
        joint_training=True,
    ),
    "3d-fused": Arch(
        title="3D-Fused Two-Stream",
        streams=("joint",),
        module="kinetics_bench.archs.fused",
        source="Carreira and Zisserman, arXiv 1705.07750 v3, section 2.3; Feichtenhofer et al., "
        "arXiv 1604.06573",
        train={"rgb": Sampling(5, FLOW_STACK), "flow": Sampling(5 * FLOW_STACK)},
        test=_SNAPSHOTS_TEST,
        paper_millions=39,
        joint_training=True,
    ),
}


def build(
    name: str,
    stream: str = "rgb",
    num_classes: int = 400,
    *,
    dropout: float = 0.5,
    bn_momentum: float = 0.001,
) -> "Network":
    """A network with fresh weights, drawn from torch's global generator.

    Its input is float32 (B, 3, T, H, W) for `rgb` or (B, 2, T, H, W) for `flow`, both in [-1, 1];
    `joint` is called as `net(rgb, flow)`. It returns logits, float32 (B, num_classes). How many
    frames of which stride: `ARCHS[name].train` and `.test`, each in one call.

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
        raise UnknownNameError(unknown_name(f"stream of {name}", stream, arch.streams))
    module = import_module(arch.module)
    net: Network = module.build(stream, num_classes, dropout=dropout, bn_momentum=bn_momentum)
    return net
