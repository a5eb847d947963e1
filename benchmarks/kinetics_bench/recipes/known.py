"""The recipes that come with the suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from kinetics_bench.archs.registry import ARCHS, Sampling
from kinetics_bench.recipes.recipe import Recipe
from kinetics_bench.recipes.schedules import MultiStep, OneCycle, Plateau, in_proportion
from kinetics_tools.core.errors import EvaluationError, UnknownNameError, lookup, unknown_name


def _per_network(
    arch: str, base: Recipe, sampling: Mapping[str, Sampling] | None = None
) -> dict[str, Recipe]:
    """`base` for each network of an architecture; the default `sampling` is that of Table 1."""
    known = ARCHS[arch]
    samplings = sampling or known.train
    return {
        stream: replace(base, sampling={name: samplings[name] for name in known.clips_of(stream)})
        for stream in known.networks
    }


_PAPER = Recipe(
    name="paper",
    source="arXiv 1705.07750 v3, section 2.5; schedule and batch: README of deepmind/kinetics-i3d",
    protocol="paper",
    sampling={},
    short_side=256,
    crop_px=224,
    flip=0.5,
    batch_size=384,  # 64 replicas with 6 clips each
    micro_batch_size=6,
    schedule=MultiStep(milestones=((97_000, 1e-1), (108_000, 1e-2), (115_000, 1e-3))),
    optimizer="sgd",
    weight_decay=1e-7,
    bn_momentum=0.001,
)
_PAPER_FLOW = replace(
    _PAPER,
    schedule=MultiStep(
        milestones=(
            (97_000, 1e-1),
            (104_500, 1e-2),
            (115_000, 1e-3),
            (140_000, 1e-1),
            (150_000, 1e-2),
            (155_000, 1e-3),
        )
    ),
)
# For the baselines the paper gives: SGD with momentum 0.9 for 110,000 steps, the rate divided by 10
# when the validation loss saturates; 32 GPUs, and 64 with 15 clips each for the 3D-ConvNet. For the
# others it does not give a batch size. The rest is our choice: rates and milestones in proportion
# to those released for I3D's rgb stream (97, 108 and 115 thousand), I3D's weight decay and dropout,
# and the clips per GPU given below.
_BASELINE = replace(
    _PAPER,
    source="arXiv 1705.07750 v3, section 2.5: SGD, 110k steps, 32 GPUs; not published and chosen: "
    "batch (8 clips per GPU), rates and their steps in I3D's proportion, weight decay and dropout "
    "of I3D",
    schedule=MultiStep(milestones=((93_000, 1e-1), (103_000, 1e-2), (110_000, 1e-3))),
    batch_size=32 * 8,
    micro_batch_size=8,
)
_TWO_STREAM = replace(
    _BASELINE,
    source=_BASELINE.source.replace("8 clips", "32 clips, as a view is one image per stream"),
    batch_size=32 * 32,
    micro_batch_size=32,
)
_PAPER_C3D = replace(
    _BASELINE,
    source="arXiv 1705.07750 v3, sections 2.2 and 2.5: SGD, 110k steps, 112 px, 64 GPUs of 15 "
    "clips; not published and chosen: frames of 128 px (as 256 to 224), rates and their steps in "
    "I3D's proportion, weight decay and dropout of I3D",
    short_side=128,
    crop_px=112,
    batch_size=64 * 15,
    micro_batch_size=15,
)


def _transferred(name: str, base: Recipe) -> Recipe:
    """For UCF-101 and HMDB-51: 16 GPUs, each with as many clips as `base` has."""
    batch_size = 16 * base.micro_batch_size
    lr = in_proportion(batch_size / base.batch_size, base.schedule.base_lr)
    return replace(
        base,
        name=name,
        source="arXiv 1705.07750 v3, section 2.5: up to 5,000 steps of 16 GPUs, the rate divided "
        "by 10 when the validation loss saturates; not published and chosen: the first rate (that "
        "of Kinetics by linear scaling), a tenth of the training videos to validate on, patience, "
        "clips per GPU",
        schedule=Plateau(steps=5_000, start_lr=lr),
        batch_size=batch_size,
        held_out=0.1,
    )


def _fixed(arch: str, base: Recipe) -> Recipe:
    """Only the last layer, on features of the test input of the paper's Table 1."""
    test = {stream: ARCHS[arch].test[stream] for stream in base.sampling}
    if arch == "i3d" and "flow" in test:
        test["flow"] = Sampling(249)  # as it is tested: 250 frames have 249 fields
    return replace(
        _transferred("fixed", base),
        source="arXiv 1705.07750 v3, Table 4 (Fixed) and section 2.5: only the last layer is "
        "trained on UCF-101 and HMDB-51; not published and chosen: one view of each clip, as long "
        "as the test input, and what recipe ucf101 chose",
        sampling=test,
        # Features are small: a batch is one forward pass.
        micro_batch_size=16 * base.micro_batch_size,
        flip=0.0,
        fixed_features=True,
    )


_SMALL = Recipe(
    name="small",
    source="measured on Weizmann, 10 classes, 60 training clips, two cores",
    protocol="whole",
    sampling={},
    short_side=128,
    crop_px=112,
    flip=0.5,
    batch_size=6,
    micro_batch_size=6,
    schedule=OneCycle(epochs=40, peak_lr=1e-3),
    optimizer="adamw",
    weight_decay=0.01,
    bn_momentum=0.1,
)
_SMALL_BASELINE = replace(
    _SMALL, source="that of i3d, which was measured on Weizmann; frames as in the paper's Table 1"
)
# Some of their batch norms see one value per clip and channel, so micro-batches are larger.
_SMALL_DENSE = replace(
    _SMALL_BASELINE,
    source=_SMALL_BASELINE.source + "; twice the clips per batch, for batch norm",
    batch_size=12,
    micro_batch_size=12,
)
_SMALL_LSTM = replace(
    _SMALL_DENSE,
    source="that of i3d, which was measured on Weizmann; twice the clips per batch, for batch "
    "norm; 12 frames of 1.4 s",
)
_SAMPLE_FLOW = replace(
    _SMALL,
    name="sample",
    source="measured on the embedded sample data set, six classes of motion, two cores",
    sampling={"flow": Sampling(12, 2)},
    short_side=64,
    crop_px=56,
    flip=0.0,  # a flip would exchange the classes left and right
    schedule=OneCycle(epochs=20, peak_lr=1e-3),
)
# With so few clips the rgb network overfits to textures. Label smoothing keeps its logits small, so
# that they do not dominate those of flow when both are added.
_SAMPLE_RGB = replace(_SAMPLE_FLOW, sampling={"rgb": Sampling(16)}, label_smoothing=0.2)

_PAPERS: Final[Mapping[str, Mapping[str, Recipe]]] = {
    "i3d": {
        "rgb": _per_network("i3d", _PAPER)["rgb"],
        "flow": _per_network("i3d", _PAPER_FLOW)["flow"],
    },
    "convnet-lstm": _per_network("convnet-lstm", _BASELINE),
    "c3d": _per_network("c3d", _PAPER_C3D),
    "two-stream": _per_network("two-stream", _TWO_STREAM),
    "3d-fused": _per_network("3d-fused", _BASELINE),
}


def _all_transferred(name: str) -> dict[str, dict[str, Recipe]]:
    return {
        arch: {each: _transferred(name, base) for each, base in networks.items()}
        for arch, networks in _PAPERS.items()
    }


# Name -> architecture -> stream.
RECIPES: Final[Mapping[str, Mapping[str, Mapping[str, Recipe]]]] = {
    "paper": _PAPERS,
    "ucf101": _all_transferred("ucf101"),
    "hmdb51": _all_transferred("hmdb51"),
    "fixed": {
        arch: {each: _fixed(arch, base) for each, base in networks.items()}
        for arch, networks in _PAPERS.items()
    },
    "small": {
        "i3d": _per_network("i3d", _SMALL, {"rgb": Sampling(16, 2), "flow": Sampling(16, 2)}),
        "convnet-lstm": _per_network("convnet-lstm", _SMALL_LSTM, {"rgb": Sampling(12, 3)}),
        "c3d": _per_network("c3d", _SMALL_DENSE),
        "two-stream": _per_network("two-stream", _SMALL_BASELINE),
        "3d-fused": _per_network("3d-fused", _SMALL_BASELINE),
    },
    "sample": {"i3d": {"rgb": _SAMPLE_RGB, "flow": _SAMPLE_FLOW}},
}


def recipe_for(name: str, arch: str, stream: str) -> Recipe:
    """The recipe of one network.

    Args:
        name: a name in RECIPES.
        arch: a name in ARCHS.
        stream: one of `ARCHS[arch].networks`.

    Raises:
        UnknownNameError: the recipe, or this network of the architecture, does not exist.
        EvaluationError: the recipe is not for this architecture.
    """
    archs = lookup("recipe", name, RECIPES)
    if arch not in archs:
        others = [other for other, known in RECIPES.items() if arch in known]
        raise EvaluationError(
            f"recipe {name} is for {', '.join(archs)}, not for {arch}; take --recipe "
            f"{' or '.join(others)}"
        )
    if stream not in archs[arch]:
        raise UnknownNameError(unknown_name(f"stream of {arch}", stream, archs[arch]))
    return archs[arch][stream]
