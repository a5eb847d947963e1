"""The architectures by name, with Table 1 of the paper. Networks and torch are imported by `build`.

Source of all figures: Carreira and Zisserman, arXiv 1705.07750 v3, Table 1 and section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from kinetics_bench.archs.streams import CHANNELS, FLOW_STACK, STREAMS
from kinetics_tools.core.errors import UnknownNameError, lookup, unknown_name
from kinetics_tools.core.schema import NumFrames

if TYPE_CHECKING:
    from kinetics_bench.archs.network import Network

__all__ = ["ARCHS", "CHANNELS", "STREAMS", "Arch", "Sampling", "build"]

FPS: Final = 25


@dataclass(frozen=True, slots=True)
class Sampling:
    """`num` frames (rgb) or fields (flow) of a 25 fps clip: every `stride`-th one."""

    num: NumFrames
    stride: NumFrames = 1

    @property
    def footprint_s(self) -> float:
        """Temporal footprint, seconds of video: `num` times `stride` at 25 fps."""
        return self.num * self.stride / FPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One architecture, with its inputs in the paper.

    Attributes:
        title: its name in reports.
        streams: those of STREAMS that it has; the first one is the paper's.
        module: a module with `build(stream, num_classes, *, dropout, bn_momentum)`.
        source: papers and code.
        train, test: stream (`rgb`, `flow`) -> input in training and test. If the strides differ, an
            rgb frame is the first frame of its stack of flow fields.
        crop_px: height and width of the input, pixels.
        paper_millions: parameters of the first of `streams` as given in the paper, in millions;
            None for an architecture that is not in it.
        joint_training: whether `joint` is trained as one network. If not, both streams are trained
            separately and their logits are added in the test.
        loss_at_all_steps: whether the training loss is averaged over the time steps. If not, it is
            the loss of the network's output.
    """

    title: str
    streams: tuple[str, ...]
    module: str
    source: str
    train: Mapping[str, Sampling]
    test: Mapping[str, Sampling]
    crop_px: int = 224
    paper_millions: int | None = None
    joint_training: bool = False
    loss_at_all_steps: bool = False

    def clips_of(self, stream: str) -> tuple[str, ...]:
        """Inputs of a network of `stream`, in order: `rgb`, `flow` or both."""
        return tuple(self.train) if stream == "joint" else (stream,)

    def networks_of(self, stream: str) -> tuple[str, ...]:
        """The networks to train for `stream`. If joint only adds logits: its two streams."""
        is_sum = stream == "joint" and not self.joint_training
        return tuple(self.train) if is_sum else (stream,)

    @property
    def networks(self) -> tuple[str, ...]:
        """All networks that can be trained, each by its stream."""
        return tuple(stream for stream in self.streams if stream in self.networks_of(stream))


_FLOW_TEST: Final = Sampling(250)
_TWO_STREAM_TEST: Final = {"rgb": Sampling(25, FLOW_STACK), "flow": _FLOW_TEST}

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
        test=_TWO_STREAM_TEST,
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
        test=_TWO_STREAM_TEST,
        paper_millions=39,
        joint_training=True,
    ),
}


def check_network(arch: str, stream: str) -> None:
    """Raise UnknownNameError unless `arch` is a name in ARCHS and `stream` one of its streams."""
    known = lookup("architecture", arch, ARCHS)
    if stream not in known.streams:
        raise UnknownNameError(unknown_name(f"stream of {arch}", stream, known.streams))


def build(
    name: str,
    stream: str = "rgb",
    num_classes: int = 400,
    *,
    dropout: float = 0.5,
    bn_momentum: float = 0.001,
) -> Network:
    """A network in training mode, with weights initialised from torch's global generator.

    Its input is float32 (B, 3, T, H, W) for `rgb` or (B, 2, T, H, W) for `flow`, both in [-1, 1];
    `joint` is called as `net(rgb, flow)`. It returns logits, float32 (B, num_classes). The paper's
    T and stride are `ARCHS[name].train` and `.test`; a test clip goes through in one call.

    Args:
        name: a name in ARCHS.
        stream: one of the architecture's streams.
        num_classes: number of logits.
        dropout: the probability that a feature before the last layer is dropped in training.
        bn_momentum: the weight of a new batch in batch norm's running statistics. The default
            corresponds to the paper's decay of 0.999. After a few hundred steps the statistics are
            still close to their initial values, so a short training needs more.

    Raises:
        UnknownNameError: `name` or `stream` is unknown; the message names the nearest.
    """
    check_network(name, stream)
    module = import_module(ARCHS[name].module)
    net: Network = module.build(stream, num_classes, dropout=dropout, bn_momentum=bn_momentum)
    return net
