"""Two rows beside each other, on the clips that both scored.

Every difference is A - B. Its interval is a percentile bootstrap whose unit is the source video:
see `kinetics_bench.evaluation.intervals`. The test is McNemar's (Psychometrika 12, 1947) in its
exact form: of the clips that only one of them has right, is one half each A's and B's?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from kinetics_bench.evaluation.intervals import LEVEL, RESAMPLES, bootstrap
from kinetics_bench.evaluation.key_lists import KeyList
from kinetics_bench.evaluation.results import (
    TRAINING,
    Predictions,
    Result,
    Score,
    percent,
    ranks,
    score,
)
from kinetics_bench.evaluation.rows import Row, with_classes_of
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.keys import source_video

FEW_VIDEOS: Final = 50
POWER: Final = 0.8
DETECTABLE: Final = float(stats.norm.ppf([1 - LEVEL / 2, POWER]).sum())  # standard errors
ROUNDING: Final = 1e-12  # sums of equal shares in another order differ by less, others by more
METRICS: Final = {"top1": "top-1 %", "top5": "top-5 %", "mean_class": "mean-class %"}
NUM_CLASSES: Final = 10  # that are shown of each side
_BYTES: Final = "order, labels or bytes of the clips"  # in the identity of a row of one network


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the rows.

    Attributes:
        name: of the row.
        title: network, stream, protocol, recipe.
        alone: its score on all its clips (of the list, where there is one; `num_expected` is then
            what the list asks for).
        shared: its score on the clips that both scored.
    """

    name: str
    title: str
    alone: Score
    shared: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The difference of one metric on the shared clips, A - B, as a share.

    Attributes:
        value: from -1 to 1.
        interval: its 95 % interval by source video, from and to; None where a bootstrap has nothing
            to vary (one video, or the same difference in each).
        standard_error: of the bootstrap; None where there is no interval.
    """

    value: float
    interval: tuple[float, float] | None
    standard_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """McNemar's exact test of top-1, two-sided: every clip counts as independent of the others.

    Attributes:
        only_a: clips that A has right and B wrong.
        only_b: the other way round.
        p: the probability of counts at least so unequal, if each of these clips were A's or B's
            with probability one half; 1 where there are none.
        least_net: the smallest |only_a - only_b| with p <= 0.05 for as many such clips; None if
            there are too few (at least 6 are needed).
    """

    only_a: int
    only_b: int
    p: float
    least_net: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDifference:
    """One class on the shared clips.

    Attributes:
        label: its name.
        num: clips of it.
        a: share of these that A has right.
        b: that B has right.
    """

    label: str
    num: int
    a: float
    b: float

    @property
    def value(self) -> float:
        """The difference, A - B."""
        return self.a - self.b


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """How many entries of a list name clips that were scored.

    Attributes:
        name: of the list.
        num: its entries.
        both: name a clip that both scored.
        only_a: name one that A scored, and none that B did.
        only_b: the other way round.
        neither: the rest.
    """

    name: str
    num: int
    both: int
    only_a: int
    only_b: int
    neither: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What can be said of two rows.

    Attributes:
        a: the first row.
        b: the second.
        num_shared: clips that both scored.
        num_videos: source videos that these were cut from.
        differences: `top1`, `top5` (with six classes or more), `mean_class` -> A - B.
        test: of top-1.
        detectable: the smallest true difference of top-1 that a test at the level 5 % finds with a
            power of 80 %: (1.960 + 0.842) times the standard error of the difference, as observed.
            None where there is none.
        classes: those of the shared clips, from the one where A gains most to the one where B does.
        listed: how the list of clips was matched; None without one.
        notes: what a reader should know before believing the difference, a sentence each.
        seed: of the bootstrap.
    """

    a: Side
    b: Side
    num_shared: int
    num_videos: int
    differences: Mapping[str, Difference]
    test: McNemar
    detectable: float | None
    classes: tuple[ClassDifference, ...]
    listed: Listed | None
    notes: tuple[str, ...]
    seed: int

    @property
    def gains(self) -> tuple[ClassDifference, ...]:
        """The classes where A is ahead, the largest difference first, at most NUM_CLASSES."""
        return tuple(each for each in self.classes if each.value > 0)[:NUM_CLASSES]

    @property
    def losses(self) -> tuple[ClassDifference, ...]:
        """The classes where B is ahead, the largest difference first, at most NUM_CLASSES."""
        return tuple(each for each in self.classes[::-1] if each.value < 0)[:NUM_CLASSES]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return asdict(self)

    def cells(self) -> list[dict[str, str]]:
        """A row a metric, by column title, as text."""
        rows = []
        for name, found in self.differences.items():
            row = {"": METRICS[name]}
            for title, side in (("A", self.a), ("B", self.b)):
                row[f"{title} alone"] = percent(getattr(side.alone, name))
                row[f"{title}, shared"] = percent(getattr(side.shared, name))
            ends = found.interval
            interval = "none" if ends is None else f"{points(ends[0])} to {points(ends[1])}"
            rows.append({**row, "A - B": points(found.value), "95 % interval": interval})
        covers = {"": "clips"}
        for title, side in (("A", self.a), ("B", self.b)):
            covers[f"{title} alone"] = f"{side.alone.num_scored} / {side.alone.num_expected}"
            covers[f"{title}, shared"] = str(side.shared.num_scored)
        return [*rows, {**covers, "A - B": "", "95 % interval": ""}]


def points(share: float) -> str:
    """A difference of shares in percent, with a sign."""
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def class_cells(classes: Sequence[ClassDifference]) -> list[dict[str, str]]:
    """A row a class, by column title, as text."""
    return [
        {
            "class": each.label,
            "clips": str(each.num),
            "A %": percent(each.a),
            "B %": percent(each.b),
            "A - B": points(each.value),
        }
        for each in classes
    ]


def compare(a: Row, b: Row, *, keys: KeyList | None = None, seed: int = 0) -> Comparison:
    """Compare two rows on the clips that both scored. Classes are matched by name.

    Args:
        a: one row.
        b: the other.
        keys: only clips that this list names.
        seed: of the bootstrap.

    Raises:
        EvaluationError: the rows have other classes, another label of a clip, or no clip in common,
            or none that the list names.
    """
    # Labels are those of `a`. Each is ranked in its own order of classes, as its own score is.
    theirs = with_classes_of(a, b)
    label_ids = dict(zip(theirs.keys, theirs.label_ids.tolist(), strict=True))
    shared = set(a.predictions.keys) & label_ids.keys()
    listed, alone = None, [a.predictions, b.predictions]
    if keys is not None:
        named = keys.find({*a.predictions.keys, *label_ids})
        shared &= {key for found in named.values() for key in found}
        if not shared:
            raise EvaluationError(
                f"no clip of {keys.name} was scored by both: it has such as {keys.entries[0]}, "
                f"{a.name} such as {a.predictions.keys[0]}, {b.name} such as "
                f"{b.predictions.keys[0]}"
            )
        listed = _listed(keys.name, named, set(a.predictions.keys), label_ids.keys())
        alone = [_of_list(part, named) for part in alone]
    own = [replace(row.predictions.subset(shared), failed={}) for row in (a, b)]
    clips = _Clips.of([a.labels[label_ids[key]] for key in own[0].keys], *own)
    is_one = np.array_equal(own[0].logits, theirs.subset(shared).logits)
    differences = clips.differences(seed)
    error = differences["top1"].standard_error
    return Comparison(
        a=Side(name=a.name, title=_title(a.result), alone=score(alone[0]), shared=score(own[0])),
        b=Side(name=b.name, title=_title(b.result), alone=score(alone[1]), shared=score(own[1])),
        num_shared=len(shared),
        num_videos=clips.num_videos,
        differences=differences,
        test=clips.mcnemar(),
        detectable=None if error is None else error * DETECTABLE,
        classes=clips.classes(),
        listed=listed,
        notes=(
            *(("A and B have the same logits for every shared clip: one row twice",) * is_one),
            *_notes_on_clips(clips, differences["top1"]),
            *_notes_on_rows(a.result, b.result),
        ),
        seed=seed,
    )


def _listed(name: str, named: Mapping[str, frozenset[str]], a: Set[str], b: Set[str]) -> Listed:
    def num_in(keys: Set[str]) -> int:
        return sum(not found.isdisjoint(keys) for found in named.values())

    # A video of which A and B scored different clips counts for A.
    both, num_a, either = num_in(a & b), num_in(a), num_in(a | b)
    return Listed(
        name=name,
        num=len(named),
        both=both,
        only_a=num_a - both,
        only_b=either - num_a,
        neither=len(named) - either,
    )


def _of_list(predictions: Predictions, named: Mapping[str, frozenset[str]]) -> Predictions:
    """The predictions of listed clips; an entry without one counts as failed."""
    scored = predictions.subset(frozenset().union(*named.values()))
    there = set(scored.keys)
    absent = [entry for entry, found in named.items() if found.isdisjoint(there)]
    return replace(scored, failed=dict.fromkeys(absent, "in the list, and not scored"))


@dataclass(frozen=True)
class _Clips:
    """N clips of V videos and K classes, and how A and B classified them.

    Attributes:
        names: of the K classes, sorted.
        label_ids: int64 (N,), places in `names`.
        videos: int64 (N,), 0 to V - 1.
        ranks: int64 (2, N), of the true class, by A and by B; 0: right.
        has_top5: whether there are more than five classes to choose from.
    """

    names: tuple[str, ...]
    label_ids: npt.NDArray[np.int64]
    videos: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    has_top5: bool

    @classmethod
    def of(cls, labels: Sequence[str], a: Predictions, b: Predictions) -> Self:
        """The clips that `a` and `b` are predictions of, in the same order, with their classes."""
        names, label_ids = np.unique(labels, return_inverse=True)
        whose = [source_video(key, label) for key, label in zip(a.keys, labels, strict=True)]
        _, videos = np.unique(whose, return_inverse=True)
        both = np.stack([ranks(a), ranks(b)])
        return cls(tuple(names.tolist()), label_ids, videos, both, a.logits.shape[1] > 5)

    @property
    def num_videos(self) -> int:
        """V."""
        return int(self.videos.max()) + 1

    def differences(self, seed: int, num_resamples: int = RESAMPLES) -> dict[str, Difference]:
        """A - B by metric, with intervals."""
        names = [name for name in METRICS if name != "top5" or self.has_top5]
        values = self._metrics(np.ones((1, self.num_videos)))[:, 0].tolist()
        found = {
            name: Difference(value=value, interval=None, standard_error=None)
            for name, value in zip(names, values, strict=True)
        }
        if self.num_videos < 2:
            return found
        drawn = bootstrap(self.num_videos, self._metrics, seed=seed, num_resamples=num_resamples)
        spreads = np.ptp(drawn.bootstrap_distribution, axis=-1)
        for at in np.flatnonzero(spreads > ROUNDING):
            low, high = (float(ends[at]) for ends in drawn.confidence_interval)
            error = float(drawn.standard_error[at])
            found[names[at]] = replace(found[names[at]], interval=(low, high), standard_error=error)
        return found

    def _metrics(self, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """A - B of each metric, float64 (M, R), in R samples.

        Args:
            times: float64 (R, V), how often each video is in a sample.
        """
        gained = self._per_video_and_class(self._hits(1)) @ times.T  # (K, R), clips
        num = self._per_video_and_class(np.ones(len(self.videos))) @ times.T
        with np.errstate(invalid="ignore"):  # a class may have no clip in a sample
            shares = np.where(num > 0, gained / num, 0)
        metrics = [gained.sum(axis=0) / num.sum(axis=0)]
        if self.has_top5:
            five = np.bincount(self.videos, weights=self._hits(5), minlength=self.num_videos)
            metrics.append(times @ five / num.sum(axis=0))
        metrics.append(shares.sum(axis=0) / (num > 0).sum(axis=0))
        return np.stack(metrics)

    def _hits(self, most: int) -> npt.NDArray[np.float64]:
        """1 where only A has the true class among its `most` highest, -1 where only B has."""
        a, b = (self.ranks < most).astype(np.float64)
        hits: npt.NDArray[np.float64] = a - b
        return hits

    def _per_video_and_class(self, values: npt.NDArray[np.float64]) -> sparse.csr_array:
        """The sums of values of clips, (K, V)."""
        at = (self.label_ids, self.videos)
        return sparse.csr_array((values, at), shape=(len(self.names), self.num_videos))

    def mcnemar(self) -> McNemar:
        """The exact test of top-1."""
        hits = self._hits(1)
        only_a, only_b = int((hits > 0).sum()), int((hits < 0).sum())
        num = only_a + only_b
        p = float(stats.binomtest(only_a, num).pvalue) if num else 1.0
        fewer = np.arange(num // 2 + 1)  # of the side that has fewer
        significant = fewer[2 * stats.binom.cdf(fewer, num, 0.5) <= LEVEL]
        least = num - 2 * int(significant[-1]) if len(significant) else None
        return McNemar(only_a=only_a, only_b=only_b, p=p, least_net=least)

    def classes(self) -> tuple[ClassDifference, ...]:
        """Each class, from the one where A gains most; equal ones by name."""
        num = np.bincount(self.label_ids)
        a, b = (np.bincount(self.label_ids, weights=each == 0) / num for each in self.ranks)
        found = [
            ClassDifference(label=label, num=int(num[at]), a=float(a[at]), b=float(b[at]))
            for at, label in enumerate(self.names)
        ]
        return tuple(sorted(found, key=lambda each: (-each.value, each.label)))


def _notes_on_clips(clips: _Clips, top1: Difference) -> Iterator[str]:
    num, videos = len(clips.videos), clips.num_videos
    if videos == 1:
        yield "all clips were cut from one video, so there is no interval"
    elif top1.interval is None:
        yield (
            "the difference of top-1 is the same in each video: a bootstrap has nothing to vary, "
            "so there is no interval"
        )
    elif videos < FEW_VIDEOS:
        yield f"{videos} videos are few: the intervals are too narrow; read the exact test"
    if 1 < videos < num:
        yield (
            f"McNemar's test takes the {num} clips of {videos} videos as independent; where it and "
            "the interval disagree, believe the interval"
        )


def _notes_on_rows(a: Result, b: Result) -> Iterator[str]:
    """What A and B did not have in common, besides their networks."""
    parts = [[p.result for p in each.fused.parts] if each.fused else [each] for each in (a, b)]
    protocols = [{part.protocol.hash for part in side} for side in parts]
    if protocols[0] != protocols[1]:
        yield f"the protocols differ: A {a.protocol_name}, B {b.protocol_name}"
    hashes = [
        {
            stream: {part.recipes[stream].hash for part in side if stream in part.recipes}
            for stream in sorted({stream for part in side for stream in part.recipes})
        }
        for side in parts
    ]
    for stream in sorted(hashes[0].keys() & hashes[1].keys()):
        if hashes[0][stream] != hashes[1][stream]:
            yield f"the recipes of the shards differ in {stream}"
    if a.data.labels != b.data.labels:
        yield "the classes are in another order, and were matched by name"
    folders = [sorted({part.data.folder for part in side}) for side in parts]
    same = _same_bytes(a, b)
    if same is False:
        yield "the clips differ in their order, labels or bytes"
    elif same is None and folders[0] != folders[1]:
        where = " and ".join(dict.fromkeys((*folders[0], *folders[1])))
        yield f"whether the clips have the same bytes is not known: they are of {where}"
    if a.cost.precision != b.cost.precision:
        yield f"the precision differs: A {a.cost.precision}, B {b.cost.precision}"
    for name, result in (("A", a), ("B", b)):
        yield from _notes_on_overlaps(name, result)


def _notes_on_overlaps(name: str, result: Result) -> Iterator[str]:
    """What a row scored that its network was, or may have been, trained on."""
    if result.fused:
        for at, part in enumerate(result.fused.parts, 1):
            yield from _notes_on_overlaps(f"part {at} of {name}", part.result)
        return
    if result.data.num_overlap:
        yield f"{name} was trained on {result.data.num_overlap} of the clips that it scored"
    for each in result.data.overlaps:
        if each.num_clips > (result.data.num_overlap if each.source == TRAINING else 0):
            where = "its training" if each.source == TRAINING else each.source
            yield f"{each.num_clips} of the clips that {name} scored are of videos in {where}"


def _same_bytes(a: Result, b: Result) -> bool | None:
    """Whether both saw the same clips, of the same bytes; None: not known."""
    there = [{} if isinstance(each.data.identity, str) else each.data.identity for each in (a, b)]
    digests = [identity.get(_BYTES) for identity in there]
    if None not in digests and digests[0] == digests[1]:
        return True
    # The digest is of all clips, and of the streams that the network sees.
    same_clips = a.score.keys_sha256 == b.score.keys_sha256 and not a.failed and not b.failed
    same_streams = a.recipes.keys() == b.recipes.keys()
    return False if None not in digests and same_clips and same_streams else None


def _title(result: Result) -> str:
    """Network, protocol and recipe of a row, on one line."""
    if result.fused:
        parts = " + ".join(f"{p.weight:g} x ({_title(p.result)})" for p in result.fused.parts)
        return f"{result.fused.of} of {parts}"
    recipes = {f"{each.name} {each.hash[:8]}" for each in result.training.values()}
    return (
        f"{result.arch} {result.stream}, protocol {result.protocol_name}, "
        f"recipe {', '.join(sorted(recipes))}"
    )
