"""The names under which weights of Inception-v1 are published; conversion to and from ours.

Each scheme names the same units: a convolution and its batch norm. Our names are those of the
authors' i3d.py with dots in place of slashes, and torch's names for the tensors of a batch norm. A
scale (gamma) that is not all ones is `batch_norm.scale`; the authors' networks have none.

Sources: the index files of deepmind/kinetics-i3d, and the code of piergiaj/pytorch-i3d (05783d1),
hassony2/kinetics_i3d_pytorch (786fbae) and torchvision's models/googlenet.py.

Shapes: O output channels, I input channels, t, h, w size of a kernel, C channels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kinetics_tools.core.errors import EvaluationError

_LAST: Final = "Logits."
MIXED: Final = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
SCALE: Final = ".batch_norm.scale"
VARIANCE: Final = ".batch_norm.running_var"
COUNT: Final = (
    ".num_batches_tracked"  # of torch's batch norm, which does not use it if there is a momentum
)


def like(name: str) -> str:
    """The tensor of our networks that has the shape and dtype of `name`: scales come by loading."""
    return name.removesuffix("scale") + "bias" if name.endswith(SCALE) else name


@dataclass(frozen=True, slots=True)
class ConvUnit:
    """A convolution and its batch norm, in the stem or in a branch of a Mixed block.

    Attributes:
        op: end of the name, such as `0b_3x3`.
        mixed: name of the block, such as `3b`; empty: the stem.
        branch: number of the branch, from 0.
        place: 0 for the first convolution of the branch, 1 for the second.
    """

    op: str
    mixed: str = ""
    branch: int = 0
    place: int = 0

    def our_name(self, dims: int) -> str:
        """Its name in our networks of 2 or 3 dimensions."""
        name = f"Conv{dims}d_{self.op}"
        return f"Mixed_{self.mixed}.Branch_{self.branch}.{name}" if self.mixed else name


def conv_units() -> Iterator[ConvUnit]:
    """All 57 units, in the order of the network."""
    for op in ("1a_7x7", "2b_1x1", "2c_3x3"):
        yield ConvUnit(op)
    for mixed in MIXED:
        # The published code and its checkpoints have one irregular name.
        third = "0a_3x3" if mixed == "5b" else "0b_3x3"
        branches = (("0a_1x1",), ("0a_1x1", "0b_3x3"), ("0a_1x1", third), ("0b_1x1",))
        for branch, ops in enumerate(branches):
            for place, op in enumerate(ops):
                yield ConvUnit(op, mixed, branch, place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The names and shapes of weights in one project.

    Attributes:
        title: the project, for messages.
        dims: dimensions of its network, 2 or 3.
        names: its name -> our name, for all tensors that may be in a file.
        read: (our name, its tensor) -> our tensor.
        write: (our name, our tensor) -> its tensor.
        ignored: its names of other tensors in published files, such as optimizer state.
        scope: regular expression of a prefix that all names may have.
    """

    title: str
    dims: int
    names: Mapping[str, str]
    read: Callable[[str, Tensor], Tensor]
    write: Callable[[str, Tensor], Tensor]
    ignored: frozenset[str]
    scope: str = ""

    def knows(self, name: str) -> bool:
        """Whether `name` is a name of this scheme."""
        return self._without_scope(name) in self.names

    def has(self, name: str) -> bool:
        """Whether a file of this scheme may have `name`: it is known, or in `ignored`."""
        return self.knows(name) or self._without_scope(name) in self.ignored

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert tensors to our names and shapes. Each is used once, or is in `ignored`.

        A scale of ones is left out, since it has no effect.

        Raises:
            EvaluationError: a name is unknown, duplicate or missing.
        """
        state: dict[str, Tensor] = {}
        for theirs, tensor in tensors.items():
            name = self.names.get(self._without_scope(theirs))
            if name is None:
                if self._without_scope(theirs) in self.ignored:
                    continue
                raise EvaluationError(f"{theirs} does not belong to Inception-v1 ({self.title})")
            if name in state:
                raise EvaluationError(f"{theirs} is there twice, under two scopes")
            state[name] = self.read(name, tensor)
        has_last = any(name.startswith(_LAST) for name in state)  # a backbone has no last layer
        for theirs, name in self.names.items():
            is_optional = name.endswith(SCALE) or (name.startswith(_LAST) and not has_last)
            if name not in state and not is_optional:
                raise EvaluationError(f"{theirs} is missing ({self.title})")
        return {
            name: tensor
            for name, tensor in state.items()
            if not (name.endswith(SCALE) and bool((tensor == 1).all()))
        }

    def from_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the tensors of a network to the names and shapes of this scheme.

        If the scheme has a scale and the network does not, it is written as ones.

        Raises:
            EvaluationError: the scheme has no name for a tensor, or a tensor is missing.
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
                tensor = torch.ones_like(state[like(name)])
            if tensor is None:
                raise EvaluationError(f"{name} is missing")
            tensors[theirs] = self.write(name, tensor)
        return tensors

    def _without_scope(self, name: str) -> str:
        return re.sub(f"^(?:{self.scope})", "", name) if self.scope else name


# The ends of our names for the tensors of a unit. Each scheme lists its own in this order.
OURS: Final = (
    "{conv}.weight",
    "batch_norm.bias",
    "batch_norm.running_mean",
    "batch_norm.running_var",
    "batch_norm.scale",
)


def _names(
    dims: int, unit: Callable[[ConvUnit], str], ends: Sequence[str], last: tuple[str, str]
) -> dict[str, str]:
    """The names of a scheme -> ours.

    Args:
        dims: dimensions of the network.
        unit: the name of a unit in the scheme.
        ends: the ends of its tensors' names, in the order of OURS; without scale there are four.
        last: the names of weight and bias of the last layer.
    """
    conv = f"conv_{dims}d"
    names = {
        unit(each) + theirs: f"{each.our_name(dims)}.{ours.format(conv=conv)}"
        for each in conv_units()
        for ours, theirs in zip(OURS, ends, strict=False)
    }
    for theirs, ours in zip(last, ("weight", "bias"), strict=True):
        names[theirs] = f"Logits.Conv{dims}d_0c_1x1.{conv}.{ours}"
    return names


def _torch_ends(conv: str, norm: str) -> tuple[str, ...]:
    norms = ("bias", "running_mean", "running_var", "weight")
    return (f".{conv}.weight", *(f".{norm}.{tensor}" for tensor in norms))


def _counts(names: Iterable[str]) -> frozenset[str]:
    """The names of all COUNT, in a scheme with torch's batch norms."""
    mean = ".running_mean"
    return frozenset(n.removesuffix(mean) + COUNT for n in names if n.endswith(mean))


def _deepmind(unit: ConvUnit) -> str:
    return unit.our_name(3).replace(".", "/")


def _piergiaj(unit: ConvUnit) -> str:
    if not unit.mixed:
        return unit.our_name(3)
    letter = ("", "ab"[unit.place], "ab"[unit.place], "b")[unit.branch]
    return f"Mixed_{unit.mixed}.b{unit.branch}{letter}"


def _hassony2(unit: ConvUnit) -> str:
    if not unit.mixed:
        return unit.our_name(3).lower()
    return f"mixed_{unit.mixed}.branch_{unit.branch}{_number(unit)}"


def _torchvision(unit: ConvUnit) -> str:
    if not unit.mixed:
        return {"1a_7x7": "conv1", "2b_1x1": "conv2", "2c_3x3": "conv3"}[unit.op]
    # There the blocks of a stage begin with a, here with b; branches are counted from 1.
    block = unit.mixed[0] + chr(ord(unit.mixed[1]) - 1)
    return f"inception{block}.branch{unit.branch + 1}{_number(unit)}"


def _number(unit: ConvUnit) -> str:
    """The end of a unit's name in a branch of several modules; a pool counts as a module."""
    return ("", f".{unit.place}", f".{unit.place}", ".1")[unit.branch]


def _unchanged(_: str, tensor: Tensor) -> Tensor:
    return tensor


def _from_tensorflow(name: str, tensor: Tensor) -> Tensor:
    """Kernels [t, h, w, I, O] to (O, I, t, h, w); vectors [C] or [1, 1, 1, 1, C] to (C)."""
    if name.endswith(".weight") and tensor.ndim == 5:
        return tensor.permute(4, 3, 0, 1, 2).contiguous()
    is_vector = not name.endswith(".weight") and tensor.numel() == tensor.shape[-1:].numel()
    return tensor.reshape(-1) if is_vector else tensor


def _to_tensorflow(name: str, tensor: Tensor) -> Tensor:
    return tensor.permute(2, 3, 4, 1, 0).contiguous() if name.endswith(".weight") else tensor


def _from_linear(name: str, tensor: Tensor) -> Tensor:
    """The matrix (K, I) of the last layer to a kernel (K, I, 1, 1)."""
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
    3, _piergiaj, _torch_ends("conv3d", "bn"), ("logits.conv3d.weight", "logits.conv3d.bias")
)
_HASSONY2: Final = _names(
    3,
    _hassony2,
    _torch_ends("conv3d", "batch3d"),
    ("conv3d_0c_1x1.conv3d.weight", "conv3d_0c_1x1.conv3d.bias"),
)
_TORCHVISION: Final = _names(2, _torchvision, _torch_ends("conv", "bn"), ("fc.weight", "fc.bias"))
# GoogLeNet's two auxiliary classifiers. The paper's networks have none.
_AUXILIARY: Final = frozenset(
    f"aux{number}.{name}"
    for number in (1, 2)
    for name in (
        *(f"conv{end}" for end in _torch_ends("conv", "bn")),
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
        # Optimizer state in the Kinetics-600 checkpoint.
        ignored=frozenset({"global_step", *(f"{name}/Momentum" for name in _DEEPMIND)}),
        scope="(?:RGB|Flow)/inception_i3d/",  # the Kinetics-600 checkpoint has none
    ),
    "piergiaj": Scheme(
        title="piergiaj/pytorch-i3d",
        dims=3,
        names=_PIERGIAJ,
        read=_unchanged,
        write=_unchanged,
        ignored=_counts(_PIERGIAJ),
    ),
    "hassony2": Scheme(
        title="hassony2/kinetics_i3d_pytorch",
        dims=3,
        names=_HASSONY2,
        read=_unchanged,
        write=_unchanged,
        ignored=_counts(_HASSONY2),
    ),
    "torchvision": Scheme(
        title="torchvision's GoogLeNet",
        dims=2,
        names=_TORCHVISION,
        read=_from_linear,
        write=_to_linear,
        ignored=_AUXILIARY | _counts((*_TORCHVISION, *_AUXILIARY)),
    ),
}


def scheme_of(names: Iterable[str]) -> Scheme | None:
    """The scheme that knows at least one of the names; None if there is none."""
    names = list(names)
    return next((s for s in SCHEMES.values() if any(s.knows(name) for name in names)), None)
