"""The names under which Inception-v1's weights are published: a table a scheme, read both ways.

Every scheme tells the same units (a convolution and its batch norm) in other words. Ours are those
of the authors' i3d.py, with dots for slashes; the names of torch for what is in a batch norm; and
`batch_norm.scale` for a scale (gamma) that is not all ones, which the authors' networks lack.

Sources: the index files of deepmind/kinetics-i3d, and the code of piergiaj/pytorch-i3d (05783d1),
hassony2/kinetics_i3d_pytorch (786fbae) and torchvision's models/googlenet.py.

Shapes: O outputs, I inputs, t, h, w a kernel's extent, C channels, K classes.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kinetics_tools.core.errors import EvaluationError

MIXED: Final = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
SCALE: Final = ".batch_norm.scale"
VARIANCE: Final = ".batch_norm.running_var"
COUNT: Final = ".num_batches_tracked"  # torch keeps it; batch norm with a momentum ignores it


@dataclass(frozen=True, slots=True)
class ConvUnit:
    """A convolution and its batch norm: `op` of the stem, or of a branch of a Mixed block.

    Attributes:
        op: the name's end, such as `0b_3x3`.
        mixed: the block, such as `3b`; empty: the stem.
        branch: of the block, from 0.
        place: the unit's in its branch: 0, or 1 for the second convolution.
    """

    op: str
    mixed: str = ""
    branch: int = 0
    place: int = 0

    def ours(self, dims: int) -> str:
        """Its name in our networks of 2 or 3 dimensions."""
        name = f"Conv{dims}d_{self.op}"
        return f"Mixed_{self.mixed}.Branch_{self.branch}.{name}" if self.mixed else name


def units() -> Iterator[ConvUnit]:
    """All 57, in the order of the network."""
    for op in ("1a_7x7", "2b_1x1", "2c_3x3"):
        yield ConvUnit(op)
    for mixed in MIXED:
        # The published code has one irregular name, and checkpoints keep it.
        third = "0a_3x3" if mixed == "5b" else "0b_3x3"
        branches = (("0a_1x1",), ("0a_1x1", "0b_3x3"), ("0a_1x1", third), ("0b_1x1",))
        for branch, ops in enumerate(branches):
            for place, op in enumerate(ops):
                yield ConvUnit(op, mixed, branch, place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to name and shape the tensors.

    Attributes:
        title: whose it is, for messages.
        dims: of the network, 2 or 3.
        names: their name -> ours, of every tensor that may be there.
        read: (our name, their tensor) -> ours.
        write: (our name, our tensor) -> theirs.
        ignored: their names of what stands in published files, and no network starts from.
        scope: what may stand before all names.
    """

    title: str
    dims: int
    names: Mapping[str, str]
    read: Callable[[str, Tensor], Tensor]
    write: Callable[[str, Tensor], Tensor]
    ignored: frozenset[str]
    scope: str = ""

    def knows(self, name: str) -> bool:
        """Whether `name` is one of its own."""
        return self._bare(name) in self.names

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors by our names and in our shapes; each is used once, or is on the list ignored.

        A scale that is all ones is dropped: it does nothing.

        Raises:
            EvaluationError: a tensor has no place in the network, or one is missing.
        """
        state: dict[str, Tensor] = {}
        for theirs, tensor in tensors.items():
            name = self.names.get(self._bare(theirs))
            if name is None:
                if self._bare(theirs) in self.ignored:
                    continue
                raise EvaluationError(f"{theirs} has no place in Inception-v1 ({self.title})")
            if name in state:
                raise EvaluationError(f"{theirs} is there twice, under two scopes")
            state[name] = self.read(name, tensor)
        for theirs, name in self.names.items():
            if name not in state and not name.endswith(SCALE):
                raise EvaluationError(f"{theirs} is missing ({self.title})")
        return {
            name: tensor
            for name, tensor in state.items()
            if not (name.endswith(SCALE) and bool((tensor == 1).all()))
        }

    def from_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a network under the names of this scheme: what `to_ours` reads.

        A scale that the network lacks is written as ones where the scheme has one.

        Raises:
            EvaluationError: the network has a tensor that the scheme cannot name, or lacks one.
        """
        unnamed = next(
            (n for n in state if n not in self.names.values() and not n.endswith(COUNT)), None
        )
        if unnamed is not None:
            raise EvaluationError(f"{self.title} has no name for {unnamed}")
        tensors = {}
        for theirs, name in self.names.items():
            tensor = state.get(name)
            if tensor is None and name.endswith(SCALE):
                tensor = torch.ones_like(state[name.removesuffix("scale") + "bias"])
            if tensor is None:
                raise EvaluationError(f"{name} is missing")
            tensors[theirs] = self.write(name, tensor)
        return tensors

    def _bare(self, name: str) -> str:
        return re.sub(f"^(?:{self.scope})", "", name) if self.scope else name


# What a unit has, with our names' ends: words of a scheme stand in this order.
OURS: Final = (
    "{conv}.weight",
    "batch_norm.bias",
    "batch_norm.running_mean",
    "batch_norm.running_var",
    "batch_norm.scale",
)


def _names(
    dims: int, unit: Callable[[ConvUnit], str], words: Sequence[str], last: tuple[str, str]
) -> dict[str, str]:
    """Their names -> ours.

    Args:
        dims: of the network.
        unit: their name of a unit.
        words: their ends of a unit's names, for OURS in turn; fewer where they have no scale.
        last: their names of the last layer's weight and bias.
    """
    conv = f"conv_{dims}d"
    names = {
        unit(each) + theirs: f"{each.ours(dims)}.{ours.format(conv=conv)}"
        for each in units()
        for ours, theirs in zip(OURS, words, strict=False)
    }
    for theirs, ours in zip(last, ("weight", "bias"), strict=True):
        names[theirs] = f"Logits.Conv{dims}d_0c_1x1.{conv}.{ours}"
    return names


def _torch_words(conv: str, norm: str) -> tuple[str, ...]:
    norms = ("bias", "running_mean", "running_var", "weight")
    return (f".{conv}.weight", *(f".{norm}.{word}" for word in norms))


def _counts(names: Iterable[str]) -> frozenset[str]:
    """The name of each batch norm's COUNT, in a scheme of torch's words."""
    mean = ".running_mean"
    return frozenset(n.removesuffix(mean) + COUNT for n in names if n.endswith(mean))


def _deepmind(unit: ConvUnit) -> str:
    return unit.ours(3).replace(".", "/")


def _piergiaj(unit: ConvUnit) -> str:
    if not unit.mixed:
        return unit.ours(3)
    letter = ("", "ab"[unit.place], "ab"[unit.place], "b")[unit.branch]
    return f"Mixed_{unit.mixed}.b{unit.branch}{letter}"


def _hassony2(unit: ConvUnit) -> str:
    if not unit.mixed:
        return unit.ours(3).lower()
    return f"mixed_{unit.mixed}.branch_{unit.branch}{_number(unit)}"


def _torchvision(unit: ConvUnit) -> str:
    if not unit.mixed:
        return {"1a_7x7": "conv1", "2b_1x1": "conv2", "2c_3x3": "conv3"}[unit.op]
    # There a stage's blocks begin with a, here with b; and branches are counted from 1.
    block = unit.mixed[0] + chr(ord(unit.mixed[1]) - 1)
    return f"inception{block}.branch{unit.branch + 1}{_number(unit)}"


def _number(unit: ConvUnit) -> str:
    """A unit's number in a branch of several modules, of which the last branch's pool is one."""
    return ("", f".{unit.place}", f".{unit.place}", ".1")[unit.branch]


def _as_it_is(_: str, tensor: Tensor) -> Tensor:
    return tensor


def _from_tensorflow(name: str, tensor: Tensor) -> Tensor:
    """A kernel [t, h, w, I, O] to (O, I, t, h, w); a vector [C] or [1, 1, 1, 1, C] to (C)."""
    if name.endswith(".weight") and tensor.ndim == 5:
        return tensor.permute(4, 3, 0, 1, 2).contiguous()
    is_vector = not name.endswith(".weight") and tensor.numel() == tensor.shape[-1:].numel()
    return tensor.reshape(-1) if is_vector else tensor


def _to_tensorflow(name: str, tensor: Tensor) -> Tensor:
    return tensor.permute(2, 3, 4, 1, 0).contiguous() if name.endswith(".weight") else tensor


def _from_linear(name: str, tensor: Tensor) -> Tensor:
    """The last layer is a matrix (K, I) there, and a 1x1 convolution here."""
    is_last = name.startswith("Logits.") and name.endswith(".weight")
    return tensor[:, :, None, None] if is_last and tensor.ndim == 2 else tensor


def _to_linear(name: str, tensor: Tensor) -> Tensor:
    is_last = name.startswith("Logits.") and name.endswith(".weight")
    return tensor[:, :, 0, 0] if is_last else tensor


_DEEPMIND: Final = _names(
    3,
    _deepmind,
    ("/conv_3d/w", "/batch_norm/beta", "/batch_norm/moving_mean", "/batch_norm/moving_variance"),
    ("Logits/Conv3d_0c_1x1/conv_3d/w", "Logits/Conv3d_0c_1x1/conv_3d/b"),
)
_PIERGIAJ: Final = _names(
    3, _piergiaj, _torch_words("conv3d", "bn"), ("logits.conv3d.weight", "logits.conv3d.bias")
)
_HASSONY2: Final = _names(
    3,
    _hassony2,
    _torch_words("conv3d", "batch3d"),
    ("conv3d_0c_1x1.conv3d.weight", "conv3d_0c_1x1.conv3d.bias"),
)
_TORCHVISION: Final = _names(2, _torchvision, _torch_words("conv", "bn"), ("fc.weight", "fc.bias"))
# GoogLeNet's two side classifiers: the paper's networks have none.
_SIDES: Final = frozenset(
    f"aux{number}.{name}"
    for number in (1, 2)
    for name in (
        *(f"conv{word}" for word in _torch_words("conv", "bn")),
        *(f"{layer}.{what}" for layer in ("fc1", "fc2") for what in ("weight", "bias")),
    )
)

SCHEMES: Final[Mapping[str, Scheme]] = {
    "deepmind": Scheme(
        title="deepmind/kinetics-i3d",
        dims=3,
        names=_DEEPMIND,
        read=_from_tensorflow,
        write=_to_tensorflow,
        # What the optimizer kept of each variable, in the Kinetics-600 checkpoint.
        ignored=frozenset({"global_step", *(f"{name}/Momentum" for name in _DEEPMIND)}),
        scope="(?:RGB|Flow)/inception_i3d/",  # but the Kinetics-600 checkpoint has none
    ),
    "piergiaj": Scheme(
        title="piergiaj/pytorch-i3d",
        dims=3,
        names=_PIERGIAJ,
        read=_as_it_is,
        write=_as_it_is,
        ignored=_counts(_PIERGIAJ),
    ),
    "hassony2": Scheme(
        title="hassony2/kinetics_i3d_pytorch",
        dims=3,
        names=_HASSONY2,
        read=_as_it_is,
        write=_as_it_is,
        ignored=_counts(_HASSONY2),
    ),
    "torchvision": Scheme(
        title="torchvision's GoogLeNet",
        dims=2,
        names=_TORCHVISION,
        read=_from_linear,
        write=_to_linear,
        ignored=_SIDES | _counts((*_TORCHVISION, *_SIDES)),
    ),
}


def scheme_of(names: Iterable[str]) -> Scheme | None:
    """The scheme that knows one of the names; None where none does."""
    names = list(names)
    return next((s for s in SCHEMES.values() if any(s.knows(name) for name in names)), None)
