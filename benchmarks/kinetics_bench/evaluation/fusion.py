"""Late fusion: the predictions of several networks are added, clip by clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.evaluation.results import (
    DataRecord,
    Fusion,
    FusionOf,
    Part,
    Predictions,
    Result,
    find_origin,
    score,
)
from kinetics_bench.evaluation.rows import Row, with_classes_of
from kinetics_bench.training.checkpoint import InitRecord
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import digest

MAX_WEIGHT = 1e6
SEVERAL_INITS: Final = "its two streams"  # source of the initial weights of a joint row


def add_predictions(
    parts: Mapping[str, Predictions],
    weights: Sequence[float] | None = None,
    of: FusionOf = "logits",
) -> Predictions:
    """The weighted sum of predictions, for the clips that all parts have.

    A clip that a part lacks counts as failed.

    Args:
        parts: name -> predictions; all have the same classes, in one order.
        weights: of the parts, from 0, not all 0; None: 1 each.
        of: `logits`: the sum of w * logits. `softmax`: the sum of w * softmax over the sum of the
            weights; its logarithm is returned as logits, so that `softmax()` gives it back.

    Raises:
        EvaluationError: no clip is in all parts, or a sum is too large.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    scored = {name: frozenset(part.keys) for name, part in parts.items()}
    shared = frozenset.intersection(*scored.values())
    if not shared:
        raise EvaluationError(f"no clip was scored by all of {', '.join(parts)}")
    failed: dict[str, str] = {}
    for part in parts.values():  # where several lack a clip, the reason of the first
        failed = {**part.failed, **failed}
    for name, keys in scored.items():
        for key in frozenset().union(*scored.values()) - keys:
            failed.setdefault(key, f"{name} has no prediction of it")
    common = [part.subset(shared) for part in parts.values()]
    logits = (_sum_of_logits if of == "logits" else _log_of_shares)(common, weights)
    if (abs(logits) > np.finfo(np.float32).max).any():
        raise EvaluationError("the weights make logits that are not finite; give smaller ones")
    true = common[0].label_ids.tolist()
    rows = dict(zip(common[0].keys, zip(true, logits.astype(np.float32), strict=True), strict=True))
    return Predictions.of(rows, failed)


def _sum_of_logits(
    parts: Sequence[Predictions], weights: Sequence[float]
) -> npt.NDArray[np.float64]:
    terms = [w * part.logits.astype(np.float64) for w, part in zip(weights, parts, strict=True)]
    total: npt.NDArray[np.float64] = np.sum(terms, axis=0)
    return total


def _log_of_shares(
    parts: Sequence[Predictions], weights: Sequence[float]
) -> npt.NDArray[np.float64]:
    # In logarithms: a share of 1e-400 is still more than one of 1e-500.
    terms = [
        part.log_softmax() + np.log(w / sum(weights))
        for w, part in zip(weights, parts, strict=True)
        if w
    ]
    total: npt.NDArray[np.float64] = np.logaddexp.reduce(terms, axis=0)
    return total


def joint_row(rgb: Result, flow: Result, predictions: Predictions) -> Result:
    """The joint row of the two networks of one run; `covered` says what it covers.

    Args:
        rgb: the row of one.
        flow: the row of the other.
        predictions: the sums of their logits.
    """
    data = replace(
        flow.data,
        identity={row.stream: digest(row.data.identity) for row in (rgb, flow)},
        init=_both(rgb.data.init, flow.data.init),
    )
    return _row((rgb, flow), predictions, data)


def _both(rgb: InitRecord, flow: InitRecord) -> InitRecord:
    """What a joint row says of the initial weights of its networks."""
    if rgb == flow:
        return flow
    source = flow.source if rgb.source == flow.source else SEVERAL_INITS
    return replace(flow, source=source, sha256=digest([asdict(rgb), asdict(flow)]))


def fuse(
    rows: Sequence[Row], weights: Sequence[float], of: FusionOf = "logits"
) -> tuple[Result, Predictions]:
    """Fuse rows into one, with the classes in the order of the first.

    Args:
        rows: at least one; none is itself a fused row.
        weights: as many.
        of: as in `add_predictions`.

    Raises:
        EvaluationError: a weight cannot be used, or the rows cannot: one is a fused row, or they
            have other classes, another label of a clip, or no clip in common.
    """
    _check_weights(weights, len(rows))
    for row in rows:
        if row.result.fused:
            its = ", ".join(f"{part.name} ({part.weight:g})" for part in row.result.fused.parts)
            raise EvaluationError(f"{row.name} is a fused row; give its parts: {its}")
    aligned = [with_classes_of(rows[0], row) for row in rows]
    # One row may be given twice.
    named = {f"part {at} ({row.name})": aligned[at - 1] for at, row in enumerate(rows, 1)}
    predictions = add_predictions(named, weights, of)
    results = [row.result for row in rows]
    label_ids = {
        key: label_id
        for part in aligned
        for key, label_id in zip(part.keys, part.label_ids.tolist(), strict=True)
    }
    first = results[0].data
    identity = {f"part {at}": digest(each.data.identity) for at, each in enumerate(results, 1)}
    data = replace(
        first,
        identity={**identity, "sum": digest([of, list(weights)])},
        flow=next((each.data.flow for each in results if each.data.flow), ""),
        init=replace(first.init, source="its parts", sha256=""),
        # Which clips these are is not known: of a part's, all but those that were lost are here.
        num_overlap=max(
            max(each.data.num_overlap - (each.score.num_scored - len(predictions.keys)), 0)
            for each in results
        ),
        overlaps=(),  # of the parts' own clips; they stay in `parts`
    )
    parts = tuple(
        Part(name=row.name, weight=weight, result=replace(row.result, history={}))
        for row, weight in zip(rows, weights, strict=True)
    )
    fused = replace(
        _row(results, predictions, data, label_ids),
        origin=find_origin(),
        fused=Fusion(of=of, parts=parts),
    )
    return fused, predictions


def _check_weights(weights: Sequence[float], num_rows: int) -> None:
    if len(weights) != num_rows:
        raise EvaluationError(f"{len(weights)} weights for {num_rows} rows: give one for each")
    odd = [weight for weight in weights if not 0 <= weight <= MAX_WEIGHT]  # NaN is odd too
    if odd:
        raise EvaluationError(f"a weight is a number from 0 to {MAX_WEIGHT:g}, not {odd[0]:g}")
    if not any(weights):
        raise EvaluationError("all weights are 0: the sum would say nothing")


def _row(
    parts: Sequence[Result],
    predictions: Predictions,
    data: DataRecord,
    label_ids: Mapping[str, int] | None = None,
) -> Result:
    """The row of the sum of several networks: costs are added, the rest is of the first one."""
    streams = {name for part in parts for name in ARCHS[part.arch].clips_of(part.stream)}
    stream = "joint" if len(streams) > 1 else streams.pop()
    costs = [part.cost for part in parts]
    seeds = {part.seed for part in parts}
    return Result(
        # A network of RGB alone has no joint row.
        arch=next(part.arch for part in parts if stream in ARCHS[part.arch].streams),
        stream=stream,
        protocol=parts[0].protocol,
        extents=parts[0].extents,
        score=score(predictions, label_ids),
        training={name: each for part in reversed(parts) for name, each in part.training.items()},
        recipes={name: each for part in reversed(parts) for name, each in part.recipes.items()},
        data=data,
        cost=replace(
            costs[0],
            parameters=sum(cost.parameters for cost in costs),
            flops=sum(cost.flops for cost in costs),
            flops_shape=tuple(shape for cost in costs for shape in cost.flops_shape),
            seconds_training=sum(cost.seconds_training for cost in costs),
            seconds_evaluation=sum(cost.seconds_evaluation for cost in costs),
        ),
        origin=parts[0].origin,
        failed=predictions.failed,
        history={},
        seed=seeds.pop() if len(seeds) == 1 else None,
    )
