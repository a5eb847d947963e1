"""Evaluation: a trained network over a split, by key, and the row that says what it covers."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinetics_bench.archs.network import InputSpec
from kinetics_bench.archs.registry import ARCHS, CHANNELS, build
from kinetics_bench.archs.table import count
from kinetics_bench.data.loader import ClipDataset, Reader, eval_items
from kinetics_bench.data.splits import Selection
from kinetics_bench.data.views import eval_view
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.results import RESULT, Predictions, Result, origin, score
from kinetics_bench.protocols import EvalProtocol, Extents
from kinetics_bench.recipes import Recipe
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_tools.core.console import progress
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import digest
from kinetics_tools.core.system import num_processors
from kinetics_tools.shards.reader import ShardFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """What a network is evaluated on, and how.

    Attributes:
        flow: name of the flow among the data's; empty where no network reads it.
    """

    data: ShardFolder
    selection: Selection
    flow: str
    protocol: EvalProtocol
    num_workers: int | None = None


def evaluate(checkpoint: Checkpoint, test: Test, folder: Path, machine: Machine) -> Result:
    """Evaluate a network and write predictions.parquet and result.json into `folder`.

    The same evaluation of the same weights, done before, is reused.

    Raises:
        EvaluationError: labels or flow of the shards are not those of the training, or no clip can
            be scored.
    """
    recipes = _recipes(checkpoint, test)
    missing = sorted(test.selection.missing)
    extents = {n: asdict(each) for n, each in extents_of(checkpoint, test.protocol).items()}
    protocol = test.protocol.as_json() | {"extents": extents}
    identity = digest(
        [
            checkpoint.identity,
            [protocol["hash"], extents],
            test.selection.keys_sha256,
            missing,
            {name: recipe["hash"] for name, recipe in recipes.items()},
        ]
    )
    before = _found(folder, identity)
    if before is not None:
        logger.info("%s: reused, evaluated already (%s)", checkpoint.stream, folder / RESULT)
        return before
    began = time.monotonic()
    predictions = predict_split(checkpoint, test, machine)
    result = Result(
        arch=checkpoint.arch,
        stream=checkpoint.stream,
        protocol=protocol,
        score=score(predictions),
        recipes={"training": {checkpoint.stream: checkpoint.recipe}, **recipes},
        data=_data(checkpoint, test, identity),
        cost=_cost(checkpoint, test, machine) | {"seconds_evaluation": time.monotonic() - began},
        origin=origin(),
        failed=predictions.failed,
        history={checkpoint.stream: checkpoint.history},
    )
    if machine.is_main:
        result.write(folder, predictions)
    machine.barrier()
    return result


def predict_split(checkpoint: Checkpoint, test: Test, machine: Machine) -> Predictions:
    """Predictions of a network over a split, each clip once, whatever the number of processes."""
    net = machine.place(checkpoint.network())
    samples = test.selection.samples
    reader = Reader(Recipe.from_json(checkpoint.recipe), checkpoint.data["bound"])
    clips = ClipDataset.for_evaluation(samples, reader, extents_of(checkpoint, test.protocol))
    num_workers = num_processors() if test.num_workers is None else test.num_workers
    mine = range(machine.rank, len(samples), machine.num_processes)
    rows, failed = {}, {}
    items = eval_items(clips, mine, num_workers=num_workers)
    if machine.is_main:
        items = progress(items, total=len(mine), what=f"evaluating {checkpoint.stream}")
    for item in items:
        if item.clips is None:
            failed[item.key] = item.failure
        else:
            rows[item.key] = (item.label_id, logits_of(net, item.clips, machine).numpy())
    gathered = machine.gather((rows, failed))
    return Predictions.of(
        {key: row for rows, _ in gathered for key, row in rows.items()},
        dict(test.selection.missing)
        | {key: why for _, failed in gathered for key, why in failed.items()},
    )


def extents_of(checkpoint: Checkpoint, protocol: EvalProtocol) -> Extents:
    """What the checkpoint's network sees of a clip under a protocol."""
    recipe = Recipe.from_json(checkpoint.recipe)
    return protocol.extents(
        checkpoint.arch,
        _needs(checkpoint.arch, checkpoint.stream),
        recipe.sampling,
    )


def logits_of(net: nn.Module, clips: Sequence[Tensor], machine: Machine) -> Tensor:
    """Logits float32 (K,), on the CPU, of one clip: (C, T, H, W) of each of its streams."""
    with torch.inference_mode(), machine.autocast():
        logits: Tensor = net(*machine.place_clips([each[None] for each in clips]))
    return logits[0].float().cpu()


def add_streams(rgb: Result, flow: Result, predictions: Sequence[Predictions]) -> Result:
    """The joint row: the logits of both streams added, over the clips that both scored."""
    streams = {"rgb": rgb, "flow": flow}
    costs = [rgb.cost, flow.cost]
    added = ("parameters", "flops", "seconds_training", "seconds_evaluation")
    return Result(
        arch=rgb.arch,
        stream="joint",
        protocol=rgb.protocol,
        score=score(predictions[0] + predictions[1]),
        recipes={
            **rgb.recipes,
            **flow.recipes,
            "training": {name: each.recipes["training"][name] for name, each in streams.items()},
        },
        data=dict(flow.data)
        | {
            "identity": digest([rgb.data["identity"], flow.data["identity"]]),
            "init": dict(flow.data["init"]) | {"source": "its two streams", "sha256": ""},
        },
        cost=dict(rgb.cost)
        | {name: sum(cost[name] for cost in costs) for name in added}
        | {"flops_shape": [*rgb.cost["flops_shape"], *flow.cost["flops_shape"]]},
        origin=rgb.origin,
        failed=(predictions[0] + predictions[1]).failed,
        history={},
    )


def _found(folder: Path, identity: str) -> Result | None:
    if not (folder / RESULT).exists():
        return None
    result = Result.read(folder)
    return result if result.data["identity"] == identity else None


def _recipes(checkpoint: Checkpoint, test: Test) -> dict[str, dict[str, Any]]:
    """The recipes of the shards that the network reads, which must be like its training's."""
    if checkpoint.labels != test.data.labels:
        raise EvaluationError(
            f"{test.data.folder} has {len(test.data.labels)} labels that are not the "
            f"{len(checkpoint.labels)} of the training: their numbers would not mean the same"
        )
    recipes = {"rgb": test.data.recipes["rgb"].as_json()}
    if "flow" in ARCHS[checkpoint.arch].clips_of(checkpoint.stream):
        name = f"flow-{test.flow}"
        recipes[name] = test.data.recipes[name].as_json()
        trained = checkpoint.data["recipes"][f"flow-{checkpoint.data['flow']}"]
        # Published weights do not say by which recipe theirs was made.
        is_ours = checkpoint.data["train_split"] is not None
        if is_ours and trained["hash"] != recipes[name]["hash"]:
            raise EvaluationError(
                f"{name} in {test.data.folder} was made by another recipe than the training's"
            )
    return recipes


def _data(checkpoint: Checkpoint, test: Test, identity: str) -> dict[str, Any]:
    return {
        "folder": str(test.data.folder),
        "identity": identity,
        "labels": list(checkpoint.labels),
        "flow": test.flow,
        "train_split": checkpoint.data["train_split"],
        "num_train": checkpoint.data["num_train"],
        "failed_train": checkpoint.failed,
        "test_split": test.selection.name,
        "init": checkpoint.init,
    }


def _cost(checkpoint: Checkpoint, test: Test, machine: Machine) -> dict[str, Any]:
    recipe = Recipe.from_json(checkpoint.recipe)
    lengths = sorted(sample.num_frames for sample in test.selection.samples)
    # Of the split's median clip.
    view = eval_view(lengths[len(lengths) // 2], extents_of(checkpoint, test.protocol))
    shapes = [
        (CHANNELS[stream], len(view.indices[stream]), recipe.crop_px, recipe.crop_px)
        for stream in recipe.streams
    ]
    parameters, flops = count(checkpoint.arch, checkpoint.stream, len(checkpoint.labels), shapes)
    device = machine.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "parameters": parameters,
        "flops": flops,
        "flops_shape": [list(shape) for shape in shapes],
        "device": name,
        "num_threads": torch.get_num_threads(),
        "num_processes": machine.num_processes,
        "precision": machine.precision,
        "seconds_training": sum(row["seconds"] for row in checkpoint.history),
    }


@cache
def _needs(arch: str, stream: str) -> tuple[InputSpec, ...]:
    with torch.device("meta"):  # nothing is drawn
        return build(arch, stream).input_specs
