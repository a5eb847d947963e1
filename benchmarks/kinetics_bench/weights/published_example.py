"""The published example: the logits of the authors' weights for one clip of UCF-101.

deepmind/kinetics-i3d publishes the clip v_CricketShot_g04_c01 as two arrays, rgb and flow, and the
logits of its checkpoints that were trained on ImageNet and Kinetics-400. A network that computes
the same logits from these arrays is the published one: its padding, its batch norm and the mapping
of its weights are right.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from kinetics_bench.archs.registry import CHANNELS, build
from kinetics_bench.device import Machine
from kinetics_bench.weights.choices import split_word
from kinetics_bench.weights.files import Weights, find_weights, read
from kinetics_bench.weights.init import fitting_state, state_shapes
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.dataset.labels import known_labels

# Machines add float32 numbers in different orders. Other projects with the same weights are within
# 2e-5 of these logits; with padding that is wrong by one pixel, the difference is 1e-1.
LOGIT_TOLERANCE: Final = 1e-3
PROBABILITY_TOLERANCE: Final = 5e-3  # relative: two logits may differ
FIRST_CONV_3D: Final = "Conv3d_1a_7x7.conv_3d.weight"


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected logits of a stream.

    Attributes:
        norm: L2 norm of all logits.
        top: (probability, logit, label) of the highest logits, in descending order.
    """

    norm: float
    top: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A clip with its expected logits.

    Attributes:
        size: frames, height, width.
        streams: `rgb`, `flow`, `joint` -> expected logits.
    """

    size: tuple[int, int, int]
    streams: Mapping[str, Expected]


PUBLISHED: Final = Example(
    size=(79, 224, 224),
    streams={
        "rgb": Expected(
            87.108871,
            (
                (0.9999968, 25.856646, "playing cricket"),
                (1.335354e-06, 12.330335, "playing kickball"),
                (4.553142e-07, 11.254371, "catching or throwing baseball"),
                (3.1434254e-07, 10.883866, "shooting goal (soccer)"),
                (1.9243305e-07, 10.393131, "catching or throwing softball"),
                (1.309655e-07, 10.008317, "throwing discus"),
            ),
        ),
        "flow": Expected(
            63.252754,
            (
                (0.9477566, 15.957031, "playing cricket"),
                (0.04068217, 12.808723, "hurling (sport)"),
                (0.004154162, 10.527044, "playing tennis"),
                (0.0024740736, 10.0088, "playing squash or racquetball"),
                (0.0013800215, 9.425033, "hitting baseball"),
                (0.00079995755, 8.879737, "catching or throwing baseball"),
            ),
        ),
        "joint": Expected(
            138.468658,
            (
                (1.0, 41.813675, "playing cricket"),
                (1.4971563e-09, 21.493977, "hurling (sport)"),
                (3.8431164e-10, 20.134108, "catching or throwing baseball"),
                (1.5492331e-10, 19.225584, "catching or throwing softball"),
                (1.13601656e-10, 18.915352, "hitting baseball"),
                (8.801122e-11, 18.660118, "playing tennis"),
            ),
        ),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One logit, or the norm of all logits: expected and computed.

    Attributes:
        stream: `rgb`, `flow` or `joint`.
        what: the label, or `norm of all`.
        expected, found: the logit or norm.
        expected_probability, found_probability: softmax of the logit; 1 for the norm.
        rank, found_rank: rank of the class, from 1; 0 for the norm.
    """

    stream: str
    what: str
    expected: float
    found: float
    expected_probability: float = 1.0
    found_probability: float = 1.0
    rank: int = 0
    found_rank: int = 0

    @property
    def passed(self) -> bool:
        """Whether the rank is equal, and logit and probability are within the tolerances."""
        return (
            self.rank == self.found_rank
            and abs(self.found - self.expected) <= LOGIT_TOLERANCE
            and abs(self.found_probability / self.expected_probability - 1) <= PROBABILITY_TOLERANCE
        )

    def cells(self) -> dict[str, str]:
        """The check as text, by column title."""
        is_norm = self.rank == 0
        return {
            "stream": self.stream,
            "class": self.what,
            "rank": "" if is_norm else str(self.rank),
            "our rank": "" if is_norm else str(self.found_rank),
            "logit": f"{self.expected:.6f}",
            "our logit": f"{self.found:.6f}",
            "probability": "" if is_norm else f"{self.expected_probability:.6e}",
            "our probability": "" if is_norm else f"{self.found_probability:.6e}",
            "": "ok" if self.passed else "differs",
        }


def verify(
    path: Path,
    clips: Mapping[str, Path],
    machine: Machine,
    *,
    example: Example = PUBLISHED,
    labels: Sequence[str] | None = None,
) -> list[Check]:
    """Compute the example's logits in float32 and compare them with the expected ones.

    Args:
        path: a folder with the weights of both streams, or a file with those of one stream, each
            with a word after a colon where a file holds several networks. Of one stream
            `clips` has this stream alone; the input channels say which it is.
        clips: stream -> .npy of float32 (1, T, H, W, C) in [-1, 1], as published.
        machine: device; its bfloat16 is not used.
        example: the expected logits.
        labels: class names in index order; None: those of Kinetics-400.

    Returns:
        The norm and the highest classes of each stream, then of their sum if there are both.

    Raises:
        EvaluationError: weights or arrays cannot be used, or a clip has no weights.
    """
    labels = known_labels("kinetics400") if labels is None else labels
    logits = {
        stream: _logits(weights, _clip(clips[stream], stream, example), machine, len(labels))
        for stream, weights in _weights(path, clips).items()
    }
    if len(logits) == len(CHANNELS):
        logits["joint"] = torch.stack(list(logits.values())).sum(dim=0)
    return [
        check
        for stream, values in logits.items()
        for check in _checks(stream, values, example.streams[stream], labels)
    ]


def worst(checks: Sequence[Check]) -> Check:
    """The check with the largest difference from the expected logit or norm."""
    return max(checks, key=lambda check: abs(check.found - check.expected))


def _weights(path: Path, clips: Mapping[str, Path]) -> dict[str, Weights]:
    """Stream -> weights, for the streams of `clips`."""
    with torch.device("meta"):
        names = build("i3d", "rgb").state_dict().keys()
    path, word = split_word(str(path))
    found = {
        stream: read(find_weights(path, stream), names, arch="i3d", word=word)
        for stream in (clips if path.is_dir() else list(clips)[:1])
    }
    if path.is_dir():
        return found
    (weights,) = found.values()
    first = weights.state.get(FIRST_CONV_3D)
    if first is None or first.ndim != 5:
        raise EvaluationError(
            f"{path} has no {FIRST_CONV_3D} of 5 axes: weights of another architecture"
        )
    streams = {channels: stream for stream, channels in CHANNELS.items()}
    stream = streams.get(first.shape[1])
    if stream is None:
        raise EvaluationError(f"{path} takes {first.shape[1]} channels: neither rgb nor flow")
    if set(clips) != {stream}:
        raise EvaluationError(
            f"{path} holds weights of {stream} alone: give --{stream} and no other array, or give "
            "a folder with the weights of both streams"
        )
    return {stream: weights}


def _clip(path: Path, stream: str, example: Example) -> Tensor:
    """The published array as float32 (1, C, T, H, W)."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # numpy would advise to unpickle it
        raise EvaluationError(
            f"{path} cannot be read as .npy of numbers; give the published {stream} array"
        ) from error
    shape = (1, *example.size, CHANNELS[stream])
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind != "f":
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise EvaluationError(f"{path} is {what}; the {stream} of the example is float {shape}")
    if not np.isfinite(array).all() or abs(array).max() > 1:
        raise EvaluationError(f"{path} has values outside [-1, 1]: not the published array")
    return torch.from_numpy(array.astype(np.float32)).permute(0, 4, 1, 2, 3)


def _logits(weights: Weights, clip: Tensor, machine: Machine, num_classes: int) -> Tensor:
    """float32 (K,), on the CPU."""
    stream = next(name for name, channels in CHANNELS.items() if channels == clip.shape[1])
    with torch.device("meta"):  # random initial weights would be overwritten
        net = build("i3d", stream, num_classes)
    net.to_empty(device="cpu")
    net.load_state_dict(net.state_dict() | fitting_state(weights, state_shapes(net)))
    machine.place(net.eval())
    # TensorFloat-32, the default of convolutions on GPUs, has errors of 1e-3.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits: Tensor = net(*machine.place_clips([clip]))
    return logits[0].float().cpu()


def _checks(stream: str, logits: Tensor, expected: Expected, labels: Sequence[str]) -> list[Check]:
    norm = float(torch.linalg.vector_norm(logits.double()))
    probabilities = torch.softmax(logits.double(), dim=0).tolist()
    order = torch.argsort(logits, descending=True, stable=True).tolist()
    checks = [Check(stream=stream, what="norm of all", expected=expected.norm, found=norm)]
    for rank, (probability, logit, label) in enumerate(expected.top, start=1):
        at = labels.index(label)
        checks.append(
            Check(
                stream=stream,
                what=label,
                expected=logit,
                found=float(logits[at]),
                expected_probability=probability,
                found_probability=probabilities[at],
                rank=rank,
                found_rank=order.index(at) + 1,
            )
        )
    return checks
