"""Comparisons: what is counted, statistics against theory and other implementations, refusals."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_bench import cli
from kinetics_bench.evaluation import compare as module
from kinetics_bench.evaluation.compare import Comparison, compare
from kinetics_bench.evaluation.key_lists import KeyList
from kinetics_bench.evaluation.results import Overlap, Result
from kinetics_bench.evaluation.rows import Row, find_row
from kinetics_bench.protocols import PROTOCOLS
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.shards.records import StreamRecipe
from made_rows import made_row, written_row

Hits = Sequence[int] | npt.NDArray[np.int64]
SIX = ("a", "b", "c", "d", "e", "f")


def key(video: int, clip: int = 0) -> str:
    """Of a clip of Kinetics; clips of one video share its id."""
    return f"{video:011d}_{clip:06d}_{clip + 10:06d}"


def logits_with_rank(true: int, rank: int, num: int) -> list[float]:
    """Logits that put the class `true` on place `rank`, from 0."""
    others = [at for at in range(num) if at != true]
    places = [*others[:rank], true, *others[rank:]]
    return [float(-places.index(at)) for at in range(num)]


def ranked(
    name: str, clips: Mapping[str, tuple[str, int]], labels: Sequence[str] = SIX, **changes: Any
) -> Row:
    """A row of clips: key -> label, rank of the true class."""
    made = {
        key: (label, logits_with_rank(labels.index(label), rank, len(labels)))
        for key, (label, rank) in clips.items()
    }
    return made_row(name, made, labels, **changes)


def of_hits(a: Hits, b: Hits, videos: Sequence[int]) -> tuple[Row, Row]:
    """Two rows of clips that are right (1) or not (0), each of the video beside it."""
    keys = [key(video, at) for at, video in enumerate(videos)]
    labels = ("a", "b")
    made = [
        {each: ("ab"[at % 2], 1 - int(hits[at])) for at, each in enumerate(keys)} for hits in (a, b)
    ]
    return ranked("A", made[0], labels), ranked("B", made[1], labels)


def two_random(num: int) -> tuple[Hits, Hits]:
    a, b = np.random.default_rng(0).integers(0, 2, (2, num))
    return a, b


# What is counted


def test_each_is_scored_alone_and_on_the_clips_of_both() -> None:
    a = ranked("A", {key(0): ("a", 0), key(1): ("b", 0), key(2): ("c", 5)}, failed={key(9): "lost"})
    b = ranked("B", {key(1): ("b", 1), key(2): ("c", 0), key(3): ("c", 0)})
    found = compare(a, b)
    assert (found.a.alone.num_scored, found.a.alone.num_expected) == (3, 4)
    assert (found.b.alone.num_scored, found.b.alone.num_expected) == (3, 3)
    assert (found.a.alone.top1, found.b.alone.top1) == pytest.approx((2 / 3, 2 / 3))
    assert found.num_shared == found.a.shared.num_scored == found.b.shared.num_scored == 2
    assert (found.a.shared.top1, found.b.shared.top1) == (0.5, 0.5)
    assert (found.a.shared.top5, found.b.shared.top5) == (0.5, 1)
    values = {name: each.value for name, each in found.differences.items()}
    assert values == {"top1": 0, "top5": -0.5, "mean_class": 0}


def test_mean_class_weighs_classes_alike_and_five_classes_have_no_top_5() -> None:
    labels = ("a", "b")
    ranks = {"A": [0, 0, 0, 1], "B": [0, 1, 1, 0]}
    a, b = (
        ranked(name, {key(at): ("aaab"[at], rank) for at, rank in enumerate(each)}, labels)
        for name, each in ranks.items()
    )
    found = compare(a, b)
    assert found.differences.keys() == {"top1", "mean_class"}
    assert found.differences["top1"].value == pytest.approx(1 / 4)
    assert found.differences["mean_class"].value == pytest.approx((2 / 3 - 1) / 2)
    assert [(c.label, c.num, c.value) for c in found.classes] == [
        ("a", 3, pytest.approx(2 / 3)),
        ("b", 1, -1),
    ]
    assert [c.label for c in found.gains] == ["a"]
    assert [c.label for c in found.losses] == ["b"]


def test_ten_classes_of_each_side_are_shown_the_largest_difference_first() -> None:
    labels = [f"{at:02d}" for at in range(40)]
    clips = {key(n, c): (label, n, c) for n, label in enumerate(labels) for c in range(5)}
    # A is right on the first n % 5 clips of the first half, B of the second.
    hits = [
        {k: (label, int(c >= n % 5 or (n < 20) != first)) for k, (label, n, c) in clips.items()}
        for first in (True, False)
    ]
    found = compare(ranked("A", hits[0], labels), ranked("B", hits[1], labels))
    for side, sign in ((found.gains, 1), (found.losses, -1)):
        values = [sign * each.value for each in side]
        assert values == pytest.approx([0.8] * 4 + [0.6] * 4 + [0.4] * 2)
    assert {c.label for c in found.losses} <= set(labels[20:])


def test_classes_are_matched_by_name() -> None:
    clips = {key(0): ("a", 0), key(1): ("b", 3), key(2): ("f", 0)}
    other = {key(0): ("a", 1), key(1): ("b", 0), key(2): ("f", 0)}
    same = compare(ranked("A", clips), ranked("B", other))
    turned = compare(ranked("A", clips), ranked("B", other, SIX[::-1]))
    assert turned.classes == same.classes
    assert turned.differences == same.differences
    assert "the classes are in another order, and were matched by name" in turned.notes


# McNemar's test


@pytest.mark.parametrize(
    ("only_a", "only_b", "p", "least_net"),
    [
        (0, 0, 1, None),
        (1, 0, 1, None),
        (5, 0, 2 / 2**5, None),  # 0.0625: five cannot be significant
        (0, 6, 2 / 2**6, 6),
        (4, 2, 2 * (1 + 6 + 15) / 2**6, 6),
        (10, 2, 2 * (1 + 12 + 66) / 2**12, 8),  # 0.0386
        (9, 3, 2 * (1 + 12 + 66 + 220) / 2**12, 8),  # 0.146
        (3, 3, 1, 6),
    ],
)
def test_mcnemars_test_is_the_binomials(
    only_a: int, only_b: int, p: float, least_net: int | None
) -> None:
    a = [1] * only_a + [0] * only_b + [1, 0]
    b = [0] * only_a + [1] * only_b + [1, 0]
    test = compare(*of_hits(a, b, range(len(a)))).test
    assert (test.only_a, test.only_b, test.least_net) == (only_a, only_b, least_net)
    assert test.p == pytest.approx(p)


@given(st.integers(0, 2000))
def test_the_least_net_number_is_significant_and_two_fewer_are_not(num: int) -> None:
    def p(fewer: int) -> float:
        return 2 * sum(math.comb(num, k) for k in range(fewer + 1)) / int(2**num)

    hits = np.zeros((2, num), np.int64)
    hits[0] = 1
    both = np.concatenate([hits, np.ones((2, 1), np.int64)], axis=1)
    clips = module._Clips(("a",), np.zeros(num + 1, int), np.arange(num + 1), 1 - both, False)
    net = clips.mcnemar().least_net
    if net is None:
        assert num < 6
    else:
        fewer = (num - net) // 2
        assert p(fewer) <= 0.05 < p(fewer + 1)


# The interval


def clips_of(
    hits: npt.NDArray[np.int64], videos: npt.NDArray[np.int64], label_ids: Any = None
) -> module._Clips:
    label_ids = np.zeros(len(videos), np.int64) if label_ids is None else label_ids
    names = tuple(map(str, range(label_ids.max() + 1)))
    return module._Clips(names, label_ids, videos, 1 - hits, False)


def test_the_interval_of_many_clips_is_the_normal_one() -> None:
    """Each clip of a video of its own: the mean of N numbers, by the central limit theorem."""
    random = np.random.default_rng(1)
    num = 4000
    hits = (random.random((2, num)) < [[0.75], [0.70]]).astype(np.int64)
    found = clips_of(hits, np.arange(num)).differences(0)["top1"]
    each = (hits[0] - hits[1]).astype(float)
    error = each.std() / math.sqrt(num)
    assert found.value == pytest.approx(each.mean())
    assert found.standard_error == pytest.approx(error, rel=0.03)
    assert found.interval == pytest.approx(
        (each.mean() - 1.96 * error, each.mean() + 1.96 * error), abs=0.1 * error
    )


def test_clips_that_are_copies_of_one_another_count_once() -> None:
    random = np.random.default_rng(2)
    hits = (random.random((2, 400)) < [[0.75], [0.6]]).astype(np.int64)
    once = clips_of(hits, np.arange(400)).differences(0)["top1"]
    copies = clips_of(hits.repeat(9, axis=1), np.arange(400).repeat(9)).differences(0)["top1"]
    assert copies == once
    apart = clips_of(hits.repeat(9, axis=1), np.arange(3600)).differences(0)["top1"]
    assert apart.standard_error is not None
    assert once.standard_error == pytest.approx(3 * apart.standard_error, rel=0.05)


def test_all_metrics_have_the_errors_of_a_bootstrap_by_hand() -> None:
    """Videos of several sizes, some of two classes; a class that not each resample has."""
    random = np.random.default_rng(3)
    videos = np.sort(random.integers(0, 40, 120))
    videos = np.unique(videos, return_inverse=True)[1]
    label_ids = np.where(videos == 0, 4, (videos + random.integers(0, 2, 120)) % 4)
    ranks = random.integers(0, 8, (2, 120)) * random.integers(0, 2, (2, 120))
    clips = module._Clips(tuple("abcde"), label_ids, videos, ranks, True)
    found = clips.differences(0)

    def metrics(chosen: npt.NDArray[np.int64]) -> tuple[float, float, float]:
        a, b = ranks[:, chosen]
        classes = [
            (a[label_ids[chosen] == k] == 0).mean() - (b[label_ids[chosen] == k] == 0).mean()
            for k in np.unique(label_ids[chosen])
        ]
        five = (a < 5).mean() - (b < 5).mean()
        return float((a == 0).mean() - (b == 0).mean()), float(five), float(np.mean(classes))

    num = videos.max() + 1
    members = [np.flatnonzero(videos == video) for video in range(num)]
    drawn = np.array(
        [
            metrics(np.concatenate([members[v] for v in random.integers(0, num, num)]))
            for _ in range(3000)
        ]
    )
    whole = metrics(np.arange(120))
    for at, name in enumerate(("top1", "top5", "mean_class")):
        assert found[name].value == pytest.approx(whole[at])
        assert found[name].standard_error == pytest.approx(drawn[:, at].std(), rel=0.05)
        low, high = np.quantile(drawn[:, at], (0.025, 0.975))
        assert found[name].interval == pytest.approx((low, high), abs=0.1 * (high - low))


def test_two_equal_networks_differ_in_one_of_twenty_sets_of_clustered_clips() -> None:
    """The error of the first kind; with clips taken as independent it is far larger."""
    random = np.random.default_rng(4)
    num_videos, size, num_sets = 80, 6, 300
    videos = np.arange(num_videos).repeat(size)
    wrong = {"by video": 0, "by clip": 0}
    for at in range(num_sets):
        # Clips of a video are alike: four of five times they do what it does.
        of_video = random.integers(0, 2, (2, num_videos)).repeat(size, axis=1)
        own = random.integers(0, 2, of_video.shape)
        hits = np.where(random.random(of_video.shape) < 0.8, of_video, own)
        for unit, groups in (("by video", videos), ("by clip", np.arange(len(videos)))):
            interval = clips_of(hits, groups).differences(at, 399)["top1"].interval
            assert interval is not None
            wrong[unit] += not interval[0] <= 0 <= interval[1]
    shares = {unit: count / num_sets for unit, count in wrong.items()}
    assert 0.02 <= shares["by video"] <= 0.09  # 0.05, four standard deviations of 300 sets
    assert shares["by clip"] > 0.2


def test_what_can_be_shown_is_shown_four_times_of_five() -> None:
    """The power, at a true difference of `detectable`."""
    random = np.random.default_rng(5)
    num, num_sets, shown, claims = 400, 300, 0, []
    for at in range(num_sets):
        hits = (random.random((2, num)) < [[0.7], [0.6094]]).astype(np.int64)
        found = clips_of(hits, np.arange(num)).differences(at, 399)["top1"]
        assert found.interval is not None
        assert found.standard_error is not None
        claims.append(found.standard_error * module.DETECTABLE)
        shown += not found.interval[0] <= 0 <= found.interval[1]
    assert np.mean(claims) == pytest.approx(0.7 - 0.6094, rel=0.05)
    assert 0.7 <= shown / num_sets <= 0.9


# Properties

HITS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 5)),
    min_size=1,
    max_size=12,
)


def drawn_rows(drawn: list[tuple[int, int, int, int]]) -> tuple[Row, Row]:
    clips = [
        {key(each[2], at): (SIX[each[3]], each[side]) for at, each in enumerate(drawn)}
        for side in (0, 1)
    ]
    return ranked("A", clips[0]), ranked("B", clips[1])


def facts(found: Comparison) -> dict[str, Any]:
    return {name: value for name, value in found.as_json().items() if name not in ("a", "b")}


@settings(max_examples=30, deadline=None)
@given(HITS)
def test_b_and_a_are_a_and_b_with_the_other_sign(drawn: list[tuple[int, int, int, int]]) -> None:
    a, b = drawn_rows(drawn)
    one, other = compare(a, b), compare(b, a)
    for name, each in one.differences.items():
        turned = other.differences[name]
        assert turned.value == pytest.approx(-each.value)
        assert (turned.interval is None) == (each.interval is None)
        if each.interval is not None:
            assert turned.interval == pytest.approx((-each.interval[1], -each.interval[0]))
    assert other.test == replace(one.test, only_a=one.test.only_b, only_b=one.test.only_a)
    assert other.detectable == pytest.approx(one.detectable)
    assert {c.label: -c.value for c in other.classes} == {c.label: c.value for c in one.classes}


@settings(max_examples=30, deadline=None)
@given(HITS, st.permutations(range(6)), st.randoms(use_true_random=False))
def test_the_order_of_clips_and_classes_changes_nothing(
    drawn: list[tuple[int, int, int, int]], order: list[int], random: Any
) -> None:
    def shuffled(row: Row) -> Row:
        p = row.predictions
        clips = [
            (k, (SIX[i], [values[at] for at in order]))
            for k, i, values in zip(p.keys, p.label_ids, p.logits.tolist(), strict=True)
        ]
        random.shuffle(clips)
        return made_row(row.name, dict(clips), [SIX[at] for at in order])

    a, b = drawn_rows(drawn)
    one, other = compare(a, b), compare(shuffled(a), shuffled(b))
    assert facts(other) == facts(one)
    mixed = compare(a, shuffled(b))
    assert facts(replace(mixed, notes=one.notes)) == facts(one)


@settings(max_examples=30, deadline=None)
@given(HITS)
def test_a_row_with_itself_is_no_difference(drawn: list[tuple[int, int, int, int]]) -> None:
    a, _ = drawn_rows(drawn)
    found = compare(a, a)
    assert all(d.value == 0 and d.interval is None for d in found.differences.values())
    assert (found.test.p, found.test.only_a, found.test.only_b) == (1, 0, 0)
    assert found.detectable is None
    assert not found.gains
    assert not found.losses
    assert found.a.alone == found.b.shared
    assert found.notes[0] == "A and B have the same logits for every shared clip: one row twice"


def test_the_seed_decides_the_interval() -> None:
    rows = of_hits([1, 1, 0, 1, 0, 1, 1], [0, 1, 1, 0, 0, 1, 0], range(7))
    assert compare(*rows, seed=3) == compare(*rows, seed=3)
    assert compare(*rows, seed=-1).differences != compare(*rows, seed=3).differences


# Cases without an interval, and notes


def test_one_clip_and_one_video_have_no_interval_and_say_so() -> None:
    for videos in ([0], [0, 0, 0]):
        found = compare(*of_hits([1] * len(videos), [0] * len(videos), videos))
        assert found.differences["top1"].value == 1
        assert {each.interval for each in found.differences.values()} == {None}
        assert found.detectable is None
        assert found.notes == ("all clips were cut from one video, so there is no interval",)


def test_the_same_difference_everywhere_has_no_interval_and_says_so() -> None:
    found = compare(*of_hits([1] * 9, [0] * 9, range(9)))
    assert (found.differences["top1"].value, found.differences["top1"].interval) == (1, None)
    assert any("the same in each video" in note for note in found.notes)
    assert found.test.p == pytest.approx(2 / 2**9)


def test_rounding_is_no_difference_between_videos() -> None:
    """Each video of seven classes has the same difference, whose mean is summed in any order."""
    videos = np.arange(21).repeat(10)
    hits = np.stack([np.tile(np.arange(10) < most, 21) for most in (8, 7)]).astype(np.int64)
    found = clips_of(hits, videos, np.arange(7).repeat(30)).differences(0)
    for each in found.values():
        assert each.value == pytest.approx(0.1)
        assert (each.interval, each.standard_error) == (None, None)


def test_few_videos_and_clips_that_share_one_are_told() -> None:
    videos = [at // 2 for at in range(20)]
    notes = compare(*of_hits([0, 1] * 10, [1] * 20, [0, *videos[1:-1], 10])).notes
    assert any(note.startswith("11 videos are few") for note in notes)
    assert any("takes the 20 clips of 11 videos as independent" in note for note in notes)
    many = of_hits(*two_random(60), range(60))
    assert compare(*many).notes == ()


def changed(row: Row, **changes: Any) -> Row:
    return replace(row, result=replace(row.result, **changes))


def of_data(row: Row, **changes: Any) -> Row:
    return changed(row, data=replace(row.result.data, **changes))


def test_what_the_rows_do_not_have_in_common_is_told() -> None:
    a, b = of_hits(*two_random(60), range(60))
    identity = {"order, labels or bytes of the clips": "2"}
    cost = replace(b.result.cost, precision="bfloat16")
    other = {"rgb": StreamRecipe.of({"fps": 30})}
    videos = Overlap(source="kinetics700/train", num_listed=9, num_videos=2, num_clips=3)
    cases = {
        "3 of the clips that B scored are of videos in kinetics700/train": of_data(
            b, overlaps=(videos, replace(videos, source="other", num_clips=0))
        ),
        "the protocols differ: A whole, B 10x3": changed(b, protocol=PROTOCOLS["10x3"]),
        "the recipes of the shards differ in rgb": changed(b, recipes=other),
        "the clips differ in their order, labels or bytes": of_data(b, identity=identity),
        "the precision differs: A float32, B bfloat16": changed(b, cost=cost),
        "B was trained on 7 of the clips that it scored": of_data(b, num_overlap=7),
        "whether the clips have the same bytes is not known: they are of shards and elsewhere": (
            of_data(b, identity={}, folder="elsewhere")
        ),
    }
    for note, row in cases.items():
        assert compare(a, row).notes == (note,)
    for same in (
        of_data(b, folder="a copy"),  # of the same bytes
        of_data(b, identity={}),  # of a joint row, which does not say
        of_data(b, identity="0"),  # of version 0.1
        changed(
            of_data(b, identity=identity), recipes={**b.result.recipes, "flow-tvl1": other["rgb"]}
        ),
        changed(b, recipes={"rgb": a.result.recipes["rgb"], "flow-tvl1": other["rgb"]}),
    ):
        assert compare(a, same).notes == ()


# Refusals


def test_rows_that_cannot_be_compared_are_one_line() -> None:
    a = ranked("A", {key(0): ("a", 0)})
    with pytest.raises(EvaluationError, match=r"A has 6 classes and B 7.* only B has 'x'"):
        compare(a, ranked("B", {key(0): ("a", 0)}, (*SIX, "x")))
    with pytest.raises(EvaluationError, match=f"{key(0)} is 'a' in A and 'b' in B"):
        compare(a, ranked("B", {key(0): ("b", 0)}))
    with pytest.raises(EvaluationError, match=f"A has such as {key(0)}, B such as {key(1)}"):
        compare(a, ranked("B", {key(1): ("b", 0)}))
    with pytest.raises(EvaluationError, match=f"no clip of L was .*{key(7)}.*{key(0)}.*{key(0)}"):
        compare(a, a, keys=KeyList("L", (key(7),)))


# Lists of clips


def test_a_list_restricts_all_and_says_how_much_of_it_was_scored() -> None:
    a = ranked("A", {key(0): ("a", 0), key(1): ("b", 1), key(2): ("c", 0), key(5): ("c", 0)})
    b = ranked("B", {key(1): ("b", 0), key(2): ("c", 0), key(3): ("d", 0), key(5): ("c", 1)})
    listed = KeyList("L", tuple(f"x/{key(at)}.mp4" for at in range(5)))
    found = compare(a, b, keys=listed)
    assert found.listed is not None
    assert found.listed == replace(
        found.listed, name="L", num=5, both=2, only_a=1, only_b=1, neither=1
    )
    assert found.num_shared == 2
    assert found.differences["top1"].value == -0.5
    for side in (found.a, found.b):
        assert (side.alone.num_scored, side.alone.num_expected) == (3, 5)
    assert found.a.alone.top1 == pytest.approx(2 / 3)
    assert {each.label for each in found.classes} == {"b", "c"}


# Rows on disk, and the command


def make_run(folder: Path) -> Path:
    for stream, rank in (("rgb", 1), ("flow", 2), ("joint", 0)):
        network = ("i3d", stream)
        written_row(folder / stream, ranked("x", {key(0): ("a", rank)}, network=network))
    written_row(folder / "evaluate-1" / "rgb", ranked("x", {key(0): ("a", 5)}))
    return folder


def test_a_row_is_found_by_the_folder_of_a_run_an_evaluation_or_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert find_row(run).folder == run / "joint"
    assert find_row(run, "flow").folder == run / "flow"
    assert find_row(run / "rgb").folder == run / "rgb"
    assert find_row(run / "rgb", "rgb").folder == run / "rgb"
    assert find_row(run / "evaluate-1").folder == run / "evaluate-1" / "rgb"
    for folder, stream, said in (
        (run / "rgb", "flow", "holds the row rgb, not flow"),
        (run / "evaluate-1", "joint", "has no row joint; it has rgb"),
        (tmp_path / "none", None, "none holds no result"),
    ):
        with pytest.raises(EvaluationError, match=said):
            find_row(folder, stream)


def test_a_label_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    folder = written_row(tmp_path / "row", ranked("A", {key(0): ("a", 0)}))
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace('"b"', '"a"'))
    with pytest.raises(EvaluationError, match="a label is there twice"):
        Result.read(folder)


def test_the_command_prints_tables_and_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "list.txt").write_text(f"a/{key(0)}.mp4 0\na/{key(1)}.mp4 0\n")
    words = [str(run), str(run / "evaluate-1"), "--keys", str(tmp_path / "list.txt")]
    assert cli.run(["compare", *words]) == 0
    said = capsys.readouterr().out
    for part in (
        f"A: {run / 'joint'} (i3d joint, protocol whole, recipe small ",
        f"of the 2 entries of {tmp_path / 'list.txt'} 1 name clips that both scored, 0 clips of A "
        "only, 0 of B only, 1 none of them",
        "only A right 1, only B right 0, p = 1; so few cannot be significant",
        "A gains most in:\nclass  clips    A %  B %   A - B\na          1  100.0  0.0  +100.0\n",
        "note: all clips were cut from one video",
    ):
        assert part in said
    rows = [line.split("  ") for line in said.splitlines() if line.startswith("top-1 %")]
    assert [cell.strip() for cell in rows[0] if cell] == [
        *("top-1 %", "100.0", "100.0", "0.0", "0.0", "+100.0", "none")
    ]
    assert "1 / 2" in said


def test_clips_that_can_show_nothing_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ranked("A", {key(0): ("a", 0), key(1): ("a", 1)})
    wrong = ranked("B", {key(0): ("a", 1), key(1): ("a", 0)})
    folders = [str(written_row(tmp_path / name, row)) for name, row in (("a", right), ("b", wrong))]
    assert cli.run(["compare", *folders]) == 0
    found = compare(right, wrong).detectable
    assert found is not None and found > 1
    said = capsys.readouterr().out
    assert "these clips are too few to show any difference of top-1 with a power of 80 %" in said


def test_the_command_prints_all_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert cli.run(["compare", str(run), str(run), "--json", "--stream", "rgb"]) == 0
    printed = json.loads(capsys.readouterr().out)
    row = find_row(run, "rgb")
    assert printed == json.loads(json.dumps(compare(row, row).as_json()))
    assert printed["a"]["name"] == str(run / "rgb")
