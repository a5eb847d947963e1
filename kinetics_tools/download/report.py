"""The report on an OUT: one self-contained HTML page in `OUT/report`, beside the lists."""

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kinetics_tools.core.console import size_text
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import write_text
from kinetics_tools.core.html import figure_image, figure_text, render, style_axes
from kinetics_tools.core.keys import UNLABELLED
from kinetics_tools.download.clip_lists import write_lists
from kinetics_tools.download.coverage import (
    MINUTE,
    Coverage,
    State,
    reason_class,
    reason_table,
    share,
    source_table,
    split_table,
    state_row,
    survey,
)

TEMPLATE: Final = Path(__file__).with_name("report.html.jinja")
FOLDER: Final = "report"
PAGE: Final = "report.html"
NUM_WORST: Final = 24  # classes whose bars can be read; for more there is also a histogram
MAX_BINS: Final = 120
WIDTH_IN: Final = 5.2  # about the width of a phone, so that letters keep their size there
COLOURS: Final[Mapping[State, str]] = {
    State.PRESENT: "#2a6fb4",
    State.RETRYABLE: "#e0a030",
    State.PERMANENT: "#b4532a",
    State.NOT_TRIED: "#c9cfd8",
}
CLASS_COLOURS: Final[Mapping[str, str]] = {
    "permanent": "#b4532a",
    "identity": "#3b3b58",
    "tool": "#7a8699",
    "transient": "#e0a030",
    "": "#c9cfd8",
}
DAY_S: Final = 24 * 3600
Bins = dict[datetime, int]
_STEPS_S: Final = (60, 600, 3600, DAY_S // 4, DAY_S)


def write_report(out: Path, *, absolute: bool = False) -> tuple[Coverage, list[Path]]:
    """Write the page and the lists into `out/report`; return what they show, and their paths.

    Nothing else is written, so it may be called during a run. The same OUT gives the same bytes.

    Args:
        out: a folder that kinetics-download filled, or is filling.
        absolute: whether the lists have absolute paths.

    Raises:
        ManifestError: `out` is not such a folder.
        OutError: a ledger is damaged, or an absolute path would have a space.
    """
    coverage = survey(out)
    if (out / FOLDER).is_symlink():
        raise OutError(
            f"{out / FOLDER} is a link, through which a report is not written; remove it"
        )
    lists = write_lists(coverage, out / FOLDER, root=out if absolute else None)
    path = out / FOLDER / PAGE
    write_text(path, page(coverage, lists))
    return coverage, [path, *lists]


def page(coverage: Coverage, lists: list[Path]) -> str:
    """The HTML page, with links to the lists beside it."""
    total = coverage.total
    classes = coverage.states(lambda segment: segment.label or UNLABELLED)
    order = sorted(classes, key=lambda label: (_covered(classes[label]), label))
    return render(
        TEMPLATE,
        covered=share(total[State.PRESENT], total.total()),
        total={state.value: f"{count:,}" for state, count in total.items()},
        expected=f"{total.total():,}",
        num_classes=len(classes),
        size=size_text(coverage.num_bytes),
        num_files=f"{coverage.num_files:,}",
        until=coverage.until[:MINUTE].replace("T", " "),
        splits=split_table(coverage),
        split_picture=_splits(coverage),
        attrition_picture=_attrition(coverage),
        reasons=reason_table(coverage),
        reason_picture=_reasons(coverage) if coverage.reasons else None,
        sources=source_table(coverage),
        source_picture=_sources(coverage) if coverage.source_stats else None,
        rate_picture=_rate(coverage) if coverage.made or coverage.blocked else None,
        worst_picture=_worst(classes, order[:NUM_WORST]),
        histogram=_histogram(classes) if len(classes) > NUM_WORST else None,
        classes=[state_row("class", label, classes[label]) for label in order],
        num_worst=min(len(classes), NUM_WORST),
        lists=[path.name for path in lists],
    )


def _covered(states: Counter[State]) -> float:
    return states[State.PRESENT] / states.total()


def _name(text: str) -> str:
    return figure_text(text, at_most=28)  # the rest of the width is for the bars


def _axes(height_in: float, *, rows: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(rows, sharex=True)


def _bars(axes: Axes, groups: Mapping[str, Counter[State]]) -> None:
    """One bar per group, divided by state, in percent of the expected clips."""
    names = [_name(name) for name in groups]
    left = [0.0] * len(names)
    for state in State:
        widths = [100 * states[state] / states.total() for states in groups.values()]
        axes.barh(range(len(names)), widths, left=left, color=COLOURS[state], label=state)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="% of the expected clips", xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    style_axes(axes)


def _splits(coverage: Coverage) -> Markup:
    groups = dict(sorted(coverage.states(lambda segment: segment.split).items()))
    figure, axes = _axes(1.5 + 0.4 * len(groups))
    _bars(axes, groups)
    shown = "; ".join(f"{name} {_coverage_text(states)}" for name, states in groups.items())
    return figure_image(figure, f"Coverage by split: {shown}")


def _coverage_text(states: Counter[State]) -> str:
    return f"{share(states[State.PRESENT], states.total())} % of {states.total():,}"


def _worst(classes: Mapping[str, Counter[State]], worst: list[str]) -> Markup:
    figure, axes = _axes(1.5 + 0.26 * len(worst))
    _bars(axes, {label: classes[label] for label in worst})
    shown = "; ".join(f"{label} {_coverage_text(classes[label])}" for label in worst)
    return figure_image(figure, f"Coverage of the classes with the most missing clips: {shown}")


def _histogram(classes: Mapping[str, Counter[State]]) -> Markup:
    """The number of classes by coverage, in steps of 5 %."""
    steps = Counter(min(int(20 * _covered(states)), 19) for states in classes.values())
    figure, axes = _axes(2.6)
    lows = [5 * step for step in range(20)]
    axes.bar(lows, [steps[step] for step in range(20)], 4.6, align="edge", color="#2a6fb4")
    axes.set(xlabel="% of the class's expected clips", ylabel="classes", xlim=(0, 100))
    style_axes(axes)
    shown = ", ".join(f"{n} with {5 * s} to {5 * s + 5} %" for s, n in sorted(steps.items()))
    return figure_image(figure, f"Number of classes by coverage: {shown}")


def _attrition(coverage: Coverage) -> Markup:
    """A waterfall from the expected clips, through those of each source, to the missing ones."""
    total = coverage.total
    steps = [("expected", total.total(), "#3b3b58")]
    given = coverage.given.items()
    steps += [(f"from {source}", clips, COLOURS[State.PRESENT]) for source, (clips, _) in given]
    steps += [(str(state), total[state], COLOURS[state]) for state in State if state != "clips"]
    figure, axes = _axes(0.9 + 0.36 * len(steps))
    right = total.total()
    for place, (_, count, colour) in enumerate(steps):
        axes.barh(place, count, left=right - count, color=colour)
        _number(axes, place, count, (right - count, right), total.total())
        right -= count if place else 0
    axes.set_yticks(range(len(steps)), [_name(name) for name, _, _ in steps])
    axes.invert_yaxis()
    axes.set(xlabel="segments", xlim=(0, max(total.total(), 1)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    shown = ", ".join(f"{name} {count:,}" for name, count, _ in steps)
    return figure_image(figure, f"From expected to missing clips: {shown}")


def _number(axes: Axes, place: int, count: int, bar: tuple[int, int], whole: int) -> None:
    """Write a bar's number where there is room: inside it, before it, or after it."""
    start, end = bar
    if end - start > 0.25 * whole:
        axes.text(start, place, f" {count:,}", va="center", ha="left", color="white")
    elif start > 0.25 * whole:
        axes.text(start, place, f"{count:,} ", va="center", ha="right")
    else:
        axes.text(end, place, f" {count:,}", va="center", ha="left")


def _reasons(coverage: Coverage) -> Markup:
    reasons = {reason: states.total() for reason, states in coverage.reasons.items()}
    figure, axes = _axes(1.4 + 0.28 * len(reasons))
    kinds = [reason_class(reason) for reason in reasons]
    for kind in sorted(set(kinds), key=list(CLASS_COLOURS).index):
        places = [at for at, other in enumerate(kinds) if other == kind]
        counts = [list(reasons.values())[at] for at in places]
        axes.barh(places, counts, color=CLASS_COLOURS[kind], label=kind or "not tried or lost")
    axes.set_yticks(range(len(reasons)), [_name(reason) for reason in reasons])
    axes.invert_yaxis()
    axes.set(xlabel="gaps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    style_axes(axes)
    shown = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
    return figure_image(figure, f"Gaps by reason: {shown}")


def _sources(coverage: Coverage) -> Markup:
    """Clips of each source, and their bytes."""
    given = coverage.given
    unit, size = ("GB", 1e9) if coverage.num_bytes >= 1e9 else ("MB", 1e6)
    figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.36 * len(given)), layout="constrained")
    clips, sizes = figure.subplots(1, 2, sharey=True)
    places = range(len(given))
    clips.barh(places, [num_clips for num_clips, _ in given.values()], color="#2a6fb4")
    sizes.barh(places, [num_bytes / size for _, num_bytes in given.values()], color="#7a8699")
    clips.set_yticks(places, [_name(source) for source in given])
    clips.invert_yaxis()
    clips.set(xlabel="clips")
    sizes.set(xlabel=unit)
    for axes in (clips, sizes):
        axes.set_xlim(left=0, right=None if any(n for n, _ in given.values()) else 1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=axes is clips))
        style_axes(axes)
    shown = "; ".join(
        f"{source} {num_clips:,} clips, {size_text(num_bytes)}"
        for source, (num_clips, num_bytes) in given.items()
    )
    return figure_image(figure, f"Clips and bytes by source: {shown}")


def _rate(coverage: Coverage) -> Markup:
    """Clips made, and rate limits and bot checks, per hour over time."""
    step, (made, blocked) = rebin(coverage.made, coverage.blocked)
    figure, panels = _axes(3.8, rows=2)
    for axes, counts, title, state in (
        (panels[0], made, "clips per hour", State.PRESENT),
        (panels[1], blocked, "blocks per hour", State.PERMANENT),
    ):
        rates = [3600 * count / step.total_seconds() for count in counts.values()]
        axes.bar(list(counts), rates, step, align="edge", color=COLOURS[state])
        axes.set(ylabel=title)
        axes.set_ylim(bottom=0, top=1.05 * max([1.0, *rates]))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        locator = axes.xaxis.get_major_locator()
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]  # matplotlib's
        style_axes(axes)
    panels[1].set(xlabel=f"UTC, in steps of {step}")
    shown = f"{_span(made, step, 'clips made')}; {_span(blocked, step, 'blocks')}"
    return figure_image(figure, f"Rate over time: {shown}")


def _span(counts: Bins, step: timedelta, what: str) -> str:
    if not counts:
        return f"no {what}"
    first, last = min(counts), max(counts) + step
    return f"{sum(counts.values()):,} {what} from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"


def rebin(*by_minute: Mapping[str, int]) -> tuple[timedelta, list[Bins]]:
    """Counts by minute, summed in steps; at most `MAX_BINS` steps cover the whole time.

    Steps without counts are left out.
    """
    parsed = [{_epoch_s(text): count for text, count in counts.items()} for counts in by_minute]
    times = [time_s for counts in parsed for time_s in counts]
    span_s = max(times) - min(times)
    widest_s = DAY_S * math.ceil(span_s / MAX_BINS / DAY_S)
    step_s = next((s for s in _STEPS_S if span_s <= s * MAX_BINS), widest_s)
    binned = []
    for counts in parsed:
        sums: Counter[int] = Counter()
        for time_s, count in counts.items():
            sums[time_s // step_s * step_s] += count
        binned.append({datetime.fromtimestamp(at, UTC): n for at, n in sorted(sums.items())})
    return timedelta(seconds=step_s), binned


def _epoch_s(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
