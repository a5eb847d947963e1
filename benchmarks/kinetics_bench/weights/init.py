"""A network's start from weights: what of them goes where, and what is drawn anew.

Whole networks (a published I3D, a checkpoint of ours) must fit name by name and shape by shape; of
other classes than the weights', the last layer alone is left as it was drawn. Two-dimensional
Inception-v1 (ImageNet's) goes to every Inception in a network, told by the name of its first
convolution: as it is in two dimensions, inflated in three.

ImageNet's weights see three colours in [-1, 1] (see `download`). The paper does not
say how flow became their input. As Wang et al. (arXiv 1608.00859, section 3.2) propose, each
channel gets the mean of the three colours' kernels; and, ours, times 3 / channels, so that the sums
that batch norm's statistics were taken of keep their size.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from kinetics_bench.archs.inception import inflate
from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import CHANNELS, build
from kinetics_bench.weights import download
from kinetics_bench.weights.choices import INITS
from kinetics_bench.weights.files import ONE_EACH, Weights, find, need_tensorflow, read
from kinetics_bench.weights.naming import COUNT, SCALE, VARIANCE
from kinetics_tools.core.errors import EvaluationError

SCRATCH: Final = INITS[0]
FIRST: Final = "Conv2d_1a_7x7.conv_2d.weight"
FLAT_LAST: Final = "Logits.Conv2d_0c_1x1.conv_2d"
Shapes = Mapping[str, tuple[int, ...]]
_FIRST: Final = re.compile(r"((?:.*\.)?)Conv([23])d_1a_7x7\.conv_\2d\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitWeights:
    """What a network starts from.

    Attributes:
        state: name -> tensor, which the network of these names takes; what is not in it is drawn.
        source: where it is from, in words.
        sha256: of the weights as they were read, whatever their names and file.
        warning: what is drawn anew of the last layer although the weights have one; else empty.
    """

    state: Mapping[str, Tensor]
    source: str
    sha256: str
    warning: str = ""

    def load(self, net: nn.Module) -> None:
        """Set the weights of `net`, which was built as it was for `load_init`."""
        net.load_state_dict(net.state_dict() | dict(self.state))


def load_init(
    init: str, *, arch: str, stream: str, num_classes: int, cache: Path
) -> InitWeights | None:
    """What `--init` names, checked against the network; None for `scratch`.

    Args:
        init: `scratch`, `imagenet`, `kinetics`, or the path of a file or a folder of weights.
        arch: the network's, as in `kinetics_bench.archs.registry.build`.
        stream: in the same way.
        num_classes: in the same way.
        cache: the user's cache folder, which keeps what is fetched.

    Raises:
        EvaluationError: the weights cannot be had or read, or are not of this network.
    """
    if init == SCRATCH:
        return None
    with torch.device("meta"):  # names and shapes; nothing is drawn
        net = build(arch, stream, num_classes)
    has_inception = any(inceptions(shapes_of(net)))
    if init == "imagenet":
        if not has_inception:
            raise _no_inception(f"--init {init}", arch)
        weights = download.imagenet(cache)
    elif init == "kinetics":
        if arch != "i3d":
            others = "scratch, imagenet or PATH" if has_inception else "scratch or PATH"
            raise EvaluationError(
                f"--init kinetics is the authors' i3d; {arch} starts from {others}"
            )
        need_tensorflow("--init kinetics reads a TensorFlow checkpoint")
        index = download.kinetics(stream, cache)
        try:
            weights = read(index, net.state_dict(), arch=arch, stream=stream)
        except EvaluationError as error:
            raise EvaluationError(f"{error}; remove {index.parent} to fetch it anew") from error
    else:
        path = find(Path(init), stream)
        weights = read(path, net.state_dict(), arch=arch, stream=stream)
    state = placed(weights, net)
    warning = last_layer_warning(weights, net, state)
    return InitWeights(state=state, source=weights.source, sha256=weights.sha256, warning=warning)


def placed(weights: Weights, net: Network) -> dict[str, Tensor]:
    """What of the weights goes where in `net`: those of a whole network, or of its Inceptions.

    Raises:
        EvaluationError: they are not this network's, or there is no Inception in it.
    """
    shapes = shapes_of(net)
    if weights.dims != 2:
        return fit(weights, shapes, _tensors_of(net.last_layers))
    parts = list(inceptions(shapes))
    if not parts:
        raise _no_inception(weights.source, net.title)
    flat = _flat(weights, net)
    state: dict[str, Tensor] = {}
    for prefix, dims, channels in parts:
        own = flat | {FIRST: for_channels(flat[FIRST], channels)}
        own = inflate(own) if dims == 3 else own
        state |= {prefix + name: tensor for name, tensor in own.items()}
    return state


def _no_inception(source: str, what: str) -> EvaluationError:
    return EvaluationError(
        f"{source} is of Inception-v1, and there is none in {what}; give --init scratch, or the "
        "PATH of its own weights"
    )


def last_layer_warning(weights: Weights, net: Network, state: Mapping[str, Tensor]) -> str:
    """Why `state`, what of the weights goes into `net`, has no last layer; empty: it has one."""
    last = _tensors_of(net.last_layers)
    if last[0] in state:
        return ""
    if weights.dims == 2 and not _ends_in_logits(net):
        return (
            f"the last layer of {weights.source} is left out: here other layers follow what is "
            "before it"
        )
    theirs = _tensors_of([FLAT_LAST]) if weights.dims == 2 else last
    there = next(weights.state[name].shape[0] for name in theirs if name in weights.state)
    here = shapes_of(net)[last[0]][0]
    return f"the last layer is drawn anew: of {there} classes in {weights.source}, of {here} here"


def _ends_in_logits(net: Network) -> bool:
    """Whether Inception-v1's last layer is the network's too."""
    return any("Logits." in name for name in net.last_layers)


def _flat(weights: Weights, net: Network) -> dict[str, Tensor]:
    """The weights of a 2-D Inception-v1, fit for it; their last layer where `net` ends in one."""
    last = _tensors_of(net.last_layers)
    with torch.device("meta"):
        flat = build("two-stream", "rgb", num_classes=shapes_of(net)[last[0]][0])
    shapes, their_last = shapes_of(flat), _tensors_of(flat.last_layers)
    if _ends_in_logits(net):
        return fit(weights, shapes, their_last)
    state = {name: tensor for name, tensor in weights.state.items() if name not in their_last}
    shapes = {name: sizes for name, sizes in shapes.items() if name not in their_last}
    return fit(replace(weights, state=state), shapes)


def fit(weights: Weights, shapes: Shapes, last: Collection[str] = ()) -> dict[str, Tensor]:
    """The weights of a whole network, as a network of these `shapes` takes them.

    Args:
        weights: of the network.
        shapes: name -> sizes, of all that the network has.
        last: names of the last layer's tensors, which are left out where classes differ.

    Raises:
        EvaluationError: a tensor is missing, too many, of another shape, no float, not finite,
            or a variance below 0.
    """
    drawn = _of_other_classes(weights, shapes, last)
    state = {name: tensor for name, tensor in weights.state.items() if name not in drawn}
    for name in shapes:
        if name not in state and name not in drawn and not name.endswith(SCALE):
            raise EvaluationError(f"{weights.source} lacks {name}: weights of another architecture")
    for name, tensor in state.items():
        # A network has a scale when it is given one.
        like = name.removesuffix("scale") + "bias" if name.endswith(SCALE) else name
        if like not in shapes:
            raise EvaluationError(
                f"{weights.source} has {name}, which the network lacks: weights of another "
                "architecture"
            )
        if tuple(tensor.shape) != shapes[like]:
            raise EvaluationError(
                f"{weights.source}: {_mismatch(name, tuple(tensor.shape), shapes[like])}"
            )
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise EvaluationError(f"{weights.source}: {name} is of {kind}, which no weights are of")
        if not bool(torch.isfinite(tensor).all()):
            raise EvaluationError(f"{weights.source}: not all values of {name} are finite")
        if name.endswith(VARIANCE) and bool((tensor < 0).any()):
            raise EvaluationError(f"{weights.source}: {name} has values below 0: no variances")
    return state


def inceptions(shapes: Shapes) -> Iterator[tuple[str, int, int]]:
    """Every Inception-v1 in a network: what stands before its names, dimensions, channels."""
    for name, sizes in shapes.items():
        found = _FIRST.fullmatch(name)
        if found is not None:
            yield found[1], int(found[2]), sizes[1]


def for_channels(kernel: Tensor, channels: int) -> Tensor:
    """A first convolution (O, 3, h, w) of colours, for so many `channels`; see the module's top."""
    if channels == kernel.shape[1]:
        return kernel
    mean = kernel.mean(dim=1, keepdim=True)
    return mean.repeat(1, channels, 1, 1) * (kernel.shape[1] / channels)


def shapes_of(net: nn.Module) -> Shapes:
    """Name -> sizes of all that a network starts from."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in net.state_dict().items()
        if not name.endswith(COUNT)
    }


def _tensors_of(layers: Iterable[str]) -> list[str]:
    """Names of the layers' weights and biases."""
    return [f"{layer}.{what}" for layer in layers for what in ("weight", "bias")]


def _of_other_classes(weights: Weights, shapes: Shapes, last: Collection[str]) -> frozenset[str]:
    """The last layer's tensors where they are of another number of classes, else none."""
    for name in last:
        have, want = weights.state.get(name), shapes.get(name, ())
        if have is not None and have.ndim == len(want) and have.shape[:1] != want[:1]:
            return frozenset(last)
    return frozenset()


def _mismatch(name: str, have: tuple[int, ...], want: tuple[int, ...]) -> str:
    is_first = _FIRST.fullmatch(name) is not None and have[2:] == want[2:]
    if is_first and have[0] == want[0]:
        names = {channels: stream for stream, channels in CHANNELS.items()}
        there, here = (f"{n} channels ({names.get(n, 'stacked')})" for n in (have[1], want[1]))
        return f"weights of another stream: {name} takes {there} there, {here} here{ONE_EACH}"
    if name.startswith("Logits.") and len(have) == len(want) and have[1:] == want[1:]:
        return f"weights of another number of classes: {have[0]} there, {want[0]} here"
    return f"weights of another architecture: {name} is {have} there, {want} here"
