"""The pictures of the page, each with its description in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.evaluation import figures
from kinetics_bench.evaluation.classes import confused, gains
from kinetics_bench.evaluation.page_tables import Run
from kinetics_bench.evaluation.results import percent, run_of
from kinetics_bench.evaluation.rows import Row
from kinetics_bench.evaluation.strips import NUM_MOMENTS, Seen, hits, mistakes, read_strips
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint, EpochRecord
from kinetics_bench.weights.files import Weights
from kinetics_tools.core.errors import EvaluationError, KineticsError
from kinetics_tools.core.html import figure_image, jpeg_image, pixels_image

NUM_STRIPS: Final = 4  # of mistakes, and of hits
NO_ROOM: Final = "More pictures would make this page too large: report this run alone."


def curves(history: Mapping[str, Sequence[EpochRecord]]) -> Markup | None:
    """The training, by stream; None without an epoch."""
    if not history:
        return None
    ends = (
        f"{stream} from loss {own[0].loss:.2f} to {own[-1].loss:.2f}, "
        f"top-1 {percent(own[0].top1)} % to {percent(own[-1].top1)} %, in {len(own)} epochs"
        for stream, own in history.items()
    )
    alt = f"Loss, top-1 and learning rate of the training: {'; '.join(ends)}"
    return figure_image(figures.curves(history), alt)


def matrix(row: Row) -> Markup | None:
    """Confusions; None where there are many classes and no mistake."""
    figure = figures.confusion(row.predictions, row.labels)
    if figure is None:
        return None
    worst = [
        f"{row.labels[pair.true]} taken for {row.labels[pair.predicted]} {pair.num} times"
        for pair in confused(row.predictions)[:3]
    ]
    return figure_image(figure, f"Confusion matrix: {'; '.join(worst) or 'no mistakes'}")


def per_class(rows: Sequence[Row]) -> Markup:
    """Accuracy of each class, for each row."""
    shares = {row.result.stream: row.predictions for row in rows}
    means = (f"{row.result.stream} {percent(row.result.score.mean_class)} %" for row in rows)
    alt = f"Accuracy per class; mean over the classes: {', '.join(means)}"
    return figure_image(figures.per_class(shares, rows[0].labels), alt)


def gain(run: Run) -> Markup | None:
    """What flow gains over rgb in each class; None if the run does not have both."""
    two = run.streams
    if two is None:
        return None
    change = gains(two[0].predictions, two[1].predictions)
    better, worse = (int(np.nansum(np.sign(change) == sign)) for sign in (1, -1))
    alt = f"Gain of flow over rgb per class: {better} classes gain, {worse} lose"
    return figure_image(figures.gain(change, two[0].labels), alt)


def add_pictures(section: dict[str, Any], run: Run, room: int) -> None:
    """Add filters and strips that take at most `room` bytes, and say why others are not there."""
    used, best = 0, run.rows[0]
    for row in run.rows:
        try:
            images = _filters(run, row)
        except KineticsError as error:
            section["filters_note"] = str(error)
            continue
        size = sum(map(len, images))
        if used + size > room // 2:
            section["filters_note"] = NO_ROOM
        else:
            section["filters"] += images
            used += size
    seen = {"mistakes": mistakes(best, NUM_STRIPS), "hits": hits(best, NUM_STRIPS)}
    try:
        strips = read_strips(best, {each.key for own in seen.values() for each in own})
    except KineticsError as error:
        section["strips_note"] = str(error)
        return
    section["strips_flow"], section["strips_px"] = strips.flow, f"{strips.full_px:g}"
    for at in range(NUM_STRIPS):
        for name, own in seen.items():
            if at < len(own) and own[at].key in strips.pictures:
                image = jpeg_image(strips.pictures[own[at].key], _strip_alt(own[at], strips.flow))
                used += len(image)
                if used > room:
                    section["strips_note"] = NO_ROOM
                    return
                section["strips"][name].append({"image": image, "seen": own[at]})


def _strip_alt(seen: Seen, flow: str) -> str:
    below = f", and below them the {flow} flow in colours" if flow else ""
    return f"{NUM_MOMENTS} frames of clip {seen.key}, from its start to its end{below}"


def _filters(run: Run, row: Row) -> list[Markup]:
    """The first layers of the network of a row; none for a sum of two networks.

    Raises:
        EvaluationError: checkpoint.pt cannot be read, or holds other weights than were evaluated.
    """
    result = row.result
    path = run_of(run.folder) / result.stream / CHECKPOINT
    if result.fused or result.stream not in ARCHS[result.arch].networks or not path.exists():
        return []
    net = Checkpoint.read(path).net
    identity = result.data.identity
    weights = None if isinstance(identity, str) else identity.get("weights")
    if weights not in (None, Weights(state=net, source="").sha256):
        raise EvaluationError(f"{path} does not hold the weights that were evaluated")
    layers = figures.first_layers(net, ARCHS[result.arch].clips_of(result.stream))
    return [
        pixels_image(pixels, f"First layer of {result.stream}, its filters for {stream} over time")
        for stream, pixels in layers.items()
    ]
