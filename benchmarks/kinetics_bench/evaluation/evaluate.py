"""Evaluation: predictions of a network for a split, and the row that says what they cover."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from kinetics_bench.archs.network import InputSpec
from kinetics_bench.archs.registry import ARCHS, CHANNELS, build
from kinetics_bench.archs.table import count
from kinetics_bench.data.inputs import Crops, network_inputs
from kinetics_bench.data.loader import ClipDataset, Reader, eval_items, reading
from kinetics_bench.data.splits import Selection
from kinetics_bench.data.video_lists import VideoList
from kinetics_bench.data.views import View, all_of, eval_view, several_views
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.events import write_events
from kinetics_bench.evaluation.overlap import overlaps
from kinetics_bench.evaluation.results import (
    RESULT,
    Cost,
    DataRecord,
    Predictions,
    Result,
    find_origin,
    score,
)
from kinetics_bench.protocols import EvalProtocol, Extents
from kinetics_bench.training.checkpoint import NUMERICS, Checkpoint
from kinetics_bench.weights.files import Weights
from kinetics_tools.core.console import progress
from kinetics_tools.core.errors import EvaluationError, OutError
from kinetics_tools.core.files import digest
from kinetics_tools.core.system import num_processors
from kinetics_tools.shards.reader import Sample, ShardFolder
from kinetics_tools.shards.records import RGB, StreamRecipe, flow_stream

IN_LOGARITHMS: Final = "in logarithms"  # before: of shares, none below 1e-38
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """What a network is evaluated on, and how.

    Attributes:
        data: the shards.
        selection: the clips, with the labels of the network (see `Selection.in_labels`).
        flow: name of the flow among the shards; empty if the network sees none.
        protocol: how clips are seen.
        num_workers: processes that read clips; None: one per processor.
        lists: of videos that the weights may have been trained on elsewhere.
        best: whether the weights are those of best.pt, not of the last checkpoint.
    """

    data: ShardFolder
    selection: Selection
    flow: str
    protocol: EvalProtocol
    num_workers: int | None = None
    lists: tuple[VideoList, ...] = ()
    best: bool = False


def evaluate(checkpoint: Checkpoint, test: Test, folder: Path, machine: Machine) -> Result:
    """Evaluate a network and write predictions.parquet and result.json into `folder`.

    If the same evaluation of the same weights is there already, its predictions are reused.

    Raises:
        EvaluationError: the flow of the shards differs from that of the training, or no clip can be
            evaluated.
    """
    identity = {
        "weights": Weights(state=checkpoint.net, source="").sha256,
        "training": digest(dict(checkpoint.identity)),
        "input": digest([checkpoint.recipe.hash, checkpoint.data.bound]),
        **contents_of(checkpoint, test),
        "precision": machine.precision,
        "numerics of the code": str(NUMERICS),
        "version of torch": torch.__version__,
        **({"mean of several views": IN_LOGARITHMS} if test.protocol.clips else {}),
    }
    # One process looks, for all: it writes too, and another would see more or less than it did.
    there = machine.gather(_find_reusable(folder, identity) if machine.is_main else None)[0]
    if there is not None:
        logger.info("%s: reused, evaluated already (%s)", checkpoint.stream, folder / RESULT)
        before, predictions = there
        result = covered(before, predictions, test, checkpoint.trained_on or ())
        if result != before and machine.is_main:
            result.update(folder)
        machine.barrier()
        return result
    start = time.monotonic()
    predictions = predict_split(checkpoint, test, machine)
    result = Result(
        arch=checkpoint.arch,
        stream=checkpoint.stream,
        protocol=test.protocol,
        extents=extents_of(checkpoint, test.protocol),
        score=score(predictions),
        training={checkpoint.stream: checkpoint.recipe},
        recipes=usable_recipes(checkpoint, test),
        data=_data(checkpoint, test, identity),
        cost=_cost(checkpoint, test, machine, seconds=time.monotonic() - start),
        origin=find_origin(),
        failed=predictions.failed,
        history={checkpoint.stream: checkpoint.history},
        seed=None if checkpoint.data.train_split is None else checkpoint.seed,
    )
    result = covered(result, predictions, test, checkpoint.trained_on or ())
    if machine.is_main:
        result.write(folder, predictions)
        write_events(folder, result, predictions, checkpoint.epoch, checkpoint.net)
    machine.barrier()
    return result


def contents_of(checkpoint: Checkpoint, test: Test) -> dict[str, str]:
    """What is evaluated, and how: equal for equal clips, wherever they lie and are called.

    Raises:
        EvaluationError: the flow of the shards differs from that of the training.
    """
    extents = extents_of(checkpoint, test.protocol)
    seen = {stream: asdict(each) for stream, each in extents.items()}
    recipes = usable_recipes(checkpoint, test)
    return {
        "protocol": digest([test.protocol.hash, seen]),
        "clips": digest([test.selection.keys_sha256, sorted(test.selection.missing)]),
        "order, labels or bytes of the clips": test.selection.contents_sha256,
        "recipes of the shards": digest({name: each.hash for name, each in recipes.items()}),
    }


def covered(
    result: Result, predictions: Predictions, test: Test, trained_on: Collection[str]
) -> Result:
    """A row with what its accuracy covers.

    Args:
        result: the row.
        predictions: its predictions.
        test: its clips.
        trained_on: keys of the clips that the weights were trained on.
    """
    chosen = test.selection
    data = replace(
        result.data,
        num_overlap=len({*predictions.keys} & {*trained_on}),
        classes=chosen.classes,
        out_of_scope=dict(sorted(chosen.out_of_scope.items())),
        num_unclassed=chosen.num_unclassed,
        overlaps=overlaps(predictions, chosen.label_ids, trained_on, test.lists),
    )
    scored = score(predictions, chosen.label_ids)
    return replace(result, score=scored, data=data, best=test.best)


def predict_split(checkpoint: Checkpoint, test: Test, machine: Machine) -> Predictions:
    """Predictions of a network for a split; each clip is seen once, by one of the processes.

    Raises:
        EvaluationError: no clip can be evaluated, or a process that reads clips is killed.
    """
    net = machine.place(checkpoint.network())
    samples = test.selection.samples
    viewing = Viewing.of(checkpoint, test.protocol)
    clips = ClipDataset(samples, viewing.reader, viewing.read_view)
    num_workers = num_processors() if test.num_workers is None else test.num_workers
    mine = range(machine.rank, len(samples), machine.num_processes)
    rows, failed = {}, {}
    with reading(eval_items(clips, mine, num_workers=num_workers)) as items:
        if machine.is_main:
            items = progress(items, total=len(mine), what=f"evaluating {checkpoint.stream}")
        for number, item in zip(mine, items, strict=True):
            if item.clips is None:
                failed[item.key] = item.failure
            else:
                logits = viewing.logits(net, item.clips, samples[number].num_frames, machine)
                rows[item.key] = (item.label_id, logits.numpy())
    gathered = machine.gather((rows, failed))
    return Predictions.of(
        {key: row for rows, _ in gathered for key, row in rows.items()},
        dict(test.selection.missing)
        | {key: why for _, failed in gathered for key, why in failed.items()},
    )


def extents_of(checkpoint: Checkpoint, protocol: EvalProtocol) -> Extents:
    """Which frames of a clip the network of a checkpoint sees under a protocol."""
    specs = _input_specs(checkpoint.arch, checkpoint.stream)
    return protocol.extents(checkpoint.arch, specs, checkpoint.recipe.sampling)


@dataclass(frozen=True, slots=True)
class Viewing:
    """What a network sees of a clip under a protocol, and what it says of it.

    Attributes:
        reader: reads it.
        protocol: decides which views.
        extents: stream -> the frames of one of its views.
    """

    reader: Reader
    protocol: EvalProtocol
    extents: Extents

    @classmethod
    def of(cls, checkpoint: Checkpoint, protocol: EvalProtocol) -> Viewing:
        """How the network of a checkpoint sees clips."""
        reader = Reader(checkpoint.recipe, checkpoint.data.bound)
        return cls(reader, protocol, extents_of(checkpoint, protocol))

    def views(self, num_frames: int) -> list[View]:
        """The views of a clip of so many RGB frames."""
        if not self.protocol.clips:
            return [eval_view(num_frames, self.extents)]
        chosen = self.protocol
        return several_views(num_frames, self.reader.framing, chosen.clips, chosen.crops)

    def read(self, num_frames: int) -> View:
        """What is read of such a clip: its view, or the frames of all its views, each once."""
        views = self.views(num_frames)
        return all_of(views) if self.protocol.clips else views[0]

    def read_view(self, _epoch: int, sample: Sample) -> View:
        """`read` of a sample, for a ClipDataset."""
        return self.read(sample.num_frames)

    def logits(self, net: nn.Module, clip: Crops, num_frames: int, machine: Machine) -> Tensor:
        """Logits of one clip, float32 (K,), on the CPU; of several views log(mean softmax).

        Args:
            net: the network.
            clip: what was read of it.
            num_frames: RGB frames of the whole clip.
            machine: where to compute.
        """
        if not self.protocol.clips:
            return _logits(net, clip, machine)[0]
        views, read = self.views(num_frames), self.read(num_frames)
        parts = []
        for start in range(0, len(views), self.protocol.crops):  # those of one time at once
            beside = views[start : start + self.protocol.crops]
            crops = Crops.joined([self.reader.crop(clip, read, view) for view in beside])
            parts.append(_logits(net, crops, machine))
        # In logarithms: a share of 1e-400 is still more than one of 1e-500.
        shares = torch.log_softmax(torch.cat(parts).double(), dim=1)
        return (torch.logsumexp(shares, dim=0) - math.log(len(views))).float()


def _logits(net: nn.Module, clips: Crops, machine: Machine) -> Tensor:
    """Logits of B clips, float32 (B, K), on the CPU."""
    with torch.inference_mode(), machine.autocast():
        logits: Tensor = net(*network_inputs(clips, machine.device))
    return logits.float().cpu()


def find_result(folder: Path) -> tuple[Result, Predictions] | None:
    """The result in `folder` and its predictions, if both can be read."""
    if not (folder / RESULT).exists():
        return None
    try:
        result = Result.read(folder)
        return result, result.predictions(folder)
    except (OutError, EvaluationError) as error:  # both are written again
        logger.info("%s", error)
        return None


def _find_reusable(folder: Path, identity: Mapping[str, str]) -> tuple[Result, Predictions] | None:
    """The result of the same evaluation; of another one it is told what differs."""
    there = find_result(folder)
    if there is None or there[0].data.identity == identity:
        return there
    what = ", ".join(there[0].data.differing(identity))
    logger.info("%s: evaluated again, not the same %s", folder / RESULT, what)
    return None


def usable_recipes(checkpoint: Checkpoint, test: Test) -> dict[str, StreamRecipe]:
    """The recipes of the shards that the network reads, by stream.

    Raises:
        EvaluationError: they differ from those of the training.
    """
    recipes = {RGB: test.data.recipes[RGB]}
    if "flow" in ARCHS[checkpoint.arch].clips_of(checkpoint.stream):
        stream = flow_stream(test.flow)
        recipes[stream] = test.data.recipes[stream]
        trained = checkpoint.data.recipes[flow_stream(checkpoint.data.flow)]
        # Published weights do not say how their flow was computed.
        was_trained_here = checkpoint.data.train_split is not None
        if was_trained_here and trained.hash != recipes[stream].hash:
            what = ", ".join(trained.differing(recipes[stream]))
            raise EvaluationError(
                f"{stream} in {test.data.folder} has another recipe than the flow of the training "
                f"({what}); give shards of the same recipe"
            )
    return recipes


def _data(checkpoint: Checkpoint, test: Test, identity: Mapping[str, str]) -> DataRecord:
    return DataRecord(
        folder=str(test.data.folder),
        identity=identity,
        labels=checkpoint.labels,
        flow=test.flow,
        train_split=checkpoint.data.train_split,
        num_train=checkpoint.data.num_train,
        failed_train=checkpoint.failed,
        missing_train=checkpoint.data.missing_train,
        test_split=test.selection.name,
        init=checkpoint.init,
        num_held_out=checkpoint.num_held_out,
        val_split=checkpoint.val_split,
    )


def _cost(checkpoint: Checkpoint, test: Test, machine: Machine, *, seconds: float) -> Cost:
    recipe = checkpoint.recipe
    lengths = sorted(sample.num_frames for sample in test.selection.samples)
    views = Viewing.of(checkpoint, test.protocol).views(lengths[len(lengths) // 2])
    shapes = [
        (CHANNELS[stream], len(views[0].indices[stream]), recipe.crop_px, recipe.crop_px)
        for stream in recipe.streams
    ]
    parameters, flops = count(checkpoint.arch, checkpoint.stream, len(checkpoint.labels), shapes)
    device = machine.device
    return Cost(
        parameters=parameters,
        flops=flops * len(views),
        flops_shape=tuple(shapes),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        num_threads=torch.get_num_threads(),
        num_processes=machine.num_processes,
        precision=machine.precision,
        seconds_training=sum(record.seconds for record in checkpoint.history),
        seconds_evaluation=seconds,
    )


@cache
def _input_specs(arch: str, stream: str) -> tuple[InputSpec, ...]:
    with torch.device("meta"):  # no weights are drawn
        return build(arch, stream).input_specs
