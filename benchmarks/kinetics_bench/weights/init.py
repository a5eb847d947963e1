"""The initial weights of a network: which tensors go where, and which are re-initialised.

Weights of a whole network (the published I3D, a checkpoint of ours) must match in all names and
shapes; only the last layer is re-initialised if the number of classes differs. Weights of a 2-D
Inception-v1 (ImageNet's) are copied to every 2-D Inception of a network and inflated for every 3-D
one. An Inception is recognised by the name of its first convolution.

ImageNet's weights take three colours in [-1, 1] (see `download`). The paper does not say how they
were adapted to flow. As in Wang et al., arXiv 1608.00859, section 3.2, each channel gets the mean
of the kernels of the three colours. Our addition: it is multiplied by 3 / channels, so that the
scale of the output still matches batch norm's statistics.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from kinetics_bench.archs.inception import inflate
from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS, CHANNELS, build
from kinetics_bench.weights import download
from kinetics_bench.weights.choices import INITS, split_word
from kinetics_bench.weights.files import (
    JOINT_ADVICE,
    Weights,
    find_weights,
    import_tensorflow,
    read,
)
from kinetics_bench.weights.header import CheckpointHeader
from kinetics_bench.weights.naming import COUNT, SCALE, VARIANCE, like
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.flow.methods import BOUND_PX

SCRATCH: Final = INITS[0]
FIRST_CONV_2D: Final = "Conv2d_1a_7x7.conv_2d.weight"
LAST_LAYER_2D: Final = "Logits.Conv2d_0c_1x1.conv_2d"
Shapes = Mapping[str, tuple[int, ...]]
_FIRST_CONV: Final = re.compile(r"((?:.*\.)?)Conv([23])d_1a_7x7\.conv_\2d\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitWeights:
    """Initial weights, checked against a network.

    Attributes:
        state: parameter name -> tensor. Parameters that are not in it keep their random values.
        source: path or URL.
        sha256: `Weights.sha256` of the weights as read.
        warning: why the last layer is not among them, although the file has one; else empty.
        header: what a checkpoint of ours says about them; None: they are of others.
        bound: pixels per frame that are 1 in the flow of their input, as the checkpoint says, or
            the authors' 20; None: they see no flow, or were trained on pictures.
    """

    state: Mapping[str, Tensor]
    source: str
    sha256: str
    warning: str = ""
    header: CheckpointHeader | None = None
    bound: float | None = None

    @property
    def trained_on(self) -> tuple[str, ...] | None:
        """Keys of the clips that they were trained on here, empty for weights of others.

        None: a checkpoint of an older version, which did not record them.
        """
        return () if self.header is None else self.header.trained_on

    def missing_of(self, net: Network, *, last: bool = False) -> str | None:
        """The first parameter of `net` that they do not have, which is random; None: they have all.

        Args:
            net: as in `load`.
            last: whether the last layer counts.
        """
        lasts = () if last else tuple(f"{layer}." for layer in net.last_layers)
        names = (name for name in state_shapes(net) if not name.startswith(lasts))
        return next((name for name in names if name not in self.state), None)

    def load(self, net: nn.Module) -> None:
        """Load the weights into `net`, a network of the arch, stream and classes of `load_init`."""
        net.load_state_dict(net.state_dict() | dict(self.state))


def load_init(
    init: str, *, arch: str, stream: str, num_classes: int, cache: Path
) -> InitWeights | None:
    """The weights that `--init` names, checked against the network; None for `scratch`.

    Args:
        init: `scratch`, `imagenet`, `kinetics`, or the path of a file or folder of weights, after a
            colon with a word that chooses one of several networks in a file.
        arch: architecture of the network, as in `kinetics_bench.archs.build`.
        stream: its stream.
        num_classes: its number of classes.
        cache: folder for downloaded weights.

    Raises:
        EvaluationError: the weights cannot be downloaded or read, or do not fit the network.
    """
    if init == SCRATCH:
        return None
    if not init.strip():
        raise EvaluationError("--init is empty; give scratch, imagenet, kinetics or a PATH")
    with torch.device("meta"):  # names and shapes only
        net = build(arch, stream, num_classes)
    has_inception = any(find_inceptions(state_shapes(net)))
    if init == "imagenet":
        if not has_inception:
            raise _no_inception(f"--init {init}", arch)
        weights = download.imagenet(cache)
    elif init == "kinetics":
        if arch != "i3d":
            others = "scratch, imagenet or PATH" if has_inception else "scratch or PATH"
            raise EvaluationError(f"--init kinetics is the authors' i3d; for {arch} give {others}")
        import_tensorflow("--init kinetics reads a TensorFlow checkpoint")
        index = download.kinetics(stream, cache)
        try:
            weights = read(index, net.state_dict(), arch=arch, stream=stream)
        except EvaluationError as error:
            raise EvaluationError(
                f"{error}; move {index.parent} away to download it again"
            ) from error
    else:
        path, word = split_word(init)
        if path.name in INITS and not path.exists():
            raise EvaluationError(f"--init {path.name} takes no word after a colon")
        file = find_weights(path, stream)
        weights = read(file, net.state_dict(), arch=arch, stream=stream, word=word)
    state = network_state(weights, net)
    bound = None
    if "flow" in ARCHS[arch].clips_of(stream) and weights.dims != 2:
        said = None if weights.header is None else weights.header.bound
        bound = said or BOUND_PX
    return InitWeights(
        state=state,
        source=weights.source,
        sha256=weights.sha256,
        warning=last_layer_warning(weights, net, state),
        header=weights.header,
        bound=bound,
    )


def network_state(weights: Weights, net: Network) -> dict[str, Tensor]:
    """The weights under the parameter names of `net`, all or those of its Inceptions.

    Raises:
        EvaluationError: they do not fit, or the network has no Inception.
    """
    shapes = state_shapes(net)
    if weights.dims != 2:
        return fitting_state(weights, shapes, _parameters(net.last_layers))
    parts = list(find_inceptions(shapes))
    if not parts:
        raise _no_inception(weights.source, net.title)
    inception = _inception_state(weights, net)
    state: dict[str, Tensor] = {}
    for prefix, dims, channels in parts:
        first = adapt_input_conv(inception[FIRST_CONV_2D], channels)
        own = inception | {FIRST_CONV_2D: first}
        own = inflate(own) if dims == 3 else own
        state |= {prefix + name: tensor for name, tensor in own.items()}
    return state


def _no_inception(source: str, what: str) -> EvaluationError:
    return EvaluationError(
        f"{source} has weights of Inception-v1, and {what} has no Inception; give --init scratch, "
        "or the PATH of its own weights"
    )


def last_layer_warning(weights: Weights, net: Network, state: Mapping[str, Tensor]) -> str:
    """Why `state`, the part of `weights` for `net`, has no last layer; empty if it has one."""
    last = _parameters(net.last_layers)
    if last[0] in state:
        return ""
    if weights.dims == 2 and not _has_inceptions_last_layer(net):
        return f"the last layer of {weights.source} is not used: this network has its own layers"
    theirs = _parameters([LAST_LAYER_2D]) if weights.dims == 2 else last
    there = next((weights.state[n].shape[0] for n in theirs if n in weights.state), None)
    if there is None:
        return f"the last layer is re-initialised: {weights.source} has none"
    here = state_shapes(net)[last[0]][0]
    return (
        f"the last layer is re-initialised: {weights.source} has {there} classes, "
        f"this network {here}"
    )


def _has_inceptions_last_layer(net: Network) -> bool:
    return any("Logits." in name for name in net.last_layers)


def _inception_state(weights: Weights, net: Network) -> dict[str, Tensor]:
    """The checked weights of a 2-D Inception-v1; with its last layer if `net` has it too."""
    last = _parameters(net.last_layers)
    with torch.device("meta"):
        inception = build("two-stream", "rgb", num_classes=state_shapes(net)[last[0]][0])
    shapes, inceptions_last = state_shapes(inception), _parameters(inception.last_layers)
    if _has_inceptions_last_layer(net):
        return fitting_state(weights, shapes, inceptions_last)
    state = {name: tensor for name, tensor in weights.state.items() if name not in inceptions_last}
    shapes = {name: shape for name, shape in shapes.items() if name not in inceptions_last}
    return fitting_state(replace(weights, state=state), shapes)


def fitting_state(
    weights: Weights, shapes: Shapes, last: Collection[str] = ()
) -> dict[str, Tensor]:
    """The weights of a whole network, checked against its `shapes`.

    Args:
        weights: weights of the whole network.
        shapes: parameter name -> shape, of the whole network.
        last: names of the last layer's parameters, which may be missing and are left out if the
            classes differ.

    Raises:
        EvaluationError: a tensor is missing, superfluous, has another shape, is not floating point
            or not finite, or is a negative variance.
    """
    omitted = _last_layer_of_other_classes(weights, shapes, last)
    state = {name: tensor for name, tensor in weights.state.items() if name not in omitted}
    for name in shapes:
        if name not in state and name not in omitted and not name.endswith(SCALE):
            raise EvaluationError(f"{weights.source} lacks {name}: weights of another architecture")
    for name, tensor in state.items():
        if like(name) not in shapes:
            raise EvaluationError(
                f"{weights.source} has {name}, which this network lacks: weights of another "
                "architecture"
            )
        shape = shapes[like(name)]
        if tuple(tensor.shape) != shape:
            raise EvaluationError(
                f"{weights.source}: {_mismatch(name, tuple(tensor.shape), shape)}"
            )
        if not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise EvaluationError(f"{weights.source}: {name} has dtype {dtype}, not a float")
        if not bool(torch.isfinite(tensor).all()):
            raise EvaluationError(f"{weights.source}: {name} has NaN or infinite values")
        if name.endswith(VARIANCE) and bool((tensor < 0).any()):
            raise EvaluationError(f"{weights.source}: {name}: negative running variance")
    return state


def find_inceptions(shapes: Shapes) -> Iterator[tuple[str, int, int]]:
    """All Inceptions in a network: prefix of the names, dimensions, input channels."""
    for name, shape in shapes.items():
        found = _FIRST_CONV.fullmatch(name)
        if found is not None:
            yield found[1], int(found[2]), shape[1]


def adapt_input_conv(kernel: Tensor, channels: int) -> Tensor:
    """The first kernel (O, 3, h, w) for another number of channels; see the module's docstring."""
    if channels == kernel.shape[1]:
        return kernel
    mean = kernel.mean(dim=1, keepdim=True)
    return mean.repeat(1, channels, 1, 1) * (kernel.shape[1] / channels)


def state_shapes(net: nn.Module) -> Shapes:
    """Name -> shape of a network's parameters and running statistics."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in net.state_dict().items()
        if not name.endswith(COUNT)
    }


def _parameters(layers: Iterable[str]) -> list[str]:
    """Names of the layers' weights and biases."""
    return [f"{layer}.{what}" for layer in layers for what in ("weight", "bias")]


def _last_layer_of_other_classes(
    weights: Weights, shapes: Shapes, last: Collection[str]
) -> frozenset[str]:
    """The names `last` if there are none, or of another number of classes; else no name."""
    if not any(name in weights.state for name in last):
        return frozenset(last)
    for name in last:
        have, want = weights.state.get(name), shapes.get(name, ())
        if have is not None and have.ndim == len(want) and have.shape[:1] != want[:1]:
            return frozenset(last)
    return frozenset()


def _mismatch(name: str, have: tuple[int, ...], want: tuple[int, ...]) -> str:
    is_first = _FIRST_CONV.fullmatch(name) is not None and have[2:] == want[2:]
    if is_first and have[0] == want[0]:
        names = {channels: stream for stream, channels in CHANNELS.items()}
        there, here = (f"{n} channels ({names.get(n, 'stacked')})" for n in (have[1], want[1]))
        return f"weights of another stream: {name} takes {there} there, {here} here{JOINT_ADVICE}"
    if name.startswith("Logits.") and len(have) == len(want) and have[1:] == want[1:]:
        return f"weights of another number of classes: {have[0]} there, {want[0]} here"
    return f"weights of another architecture: {name} is {have} there, {want} here"
