"""Fusion: sums of predictions, what they cover, and what the row says of its parts."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench import cli
from kinetics_bench.evaluation import results
from kinetics_bench.evaluation.compare import compare
from kinetics_bench.evaluation.fusion import add_predictions, fuse
from kinetics_bench.evaluation.report import write_report
from kinetics_bench.evaluation.results import RESULT, Overlap, Result, ranks, scope_notes, score
from kinetics_bench.evaluation.rows import Row, find_row, read_row
from kinetics_bench.protocols import PROTOCOLS
from kinetics_tools.core.errors import EvaluationError, KineticsError
from made_rows import made_row, written_row

AB = ("run", "walk")
ONE = {"k0": ("run", (2, 0)), "k1": ("walk", (1, 0.5)), "k2": ("walk", (0, 3))}
OTHER = {"k0": ("run", (0, 1)), "k1": ("walk", (0, 1)), "k3": ("run", (1, 0))}


def one(name: str = "one") -> Row:
    return made_row(name, ONE, AB, {"k4": "damaged"})


def other(name: str = "other") -> Row:
    return made_row(name, OTHER, AB, {"k2": "lost"}, network=("i3d", "flow"))


def test_logits_are_added_with_their_weights() -> None:
    _, sums = fuse([one(), other()], (1, 1.5))
    assert sums.keys == ("k0", "k1")
    assert sums.logits.tolist() == [[2, 1.5], [1, 2]]
    assert sums.label_ids.tolist() == [0, 1]


def test_probabilities_are_averaged_with_their_weights() -> None:
    rows = [one(), other()]
    _, sums = fuse(rows, (1, 3), "softmax")
    expected = sum(
        w * row.predictions.subset(("k0", "k1")).softmax()
        for w, row in zip((0.25, 0.75), rows, strict=True)
    )
    assert sums.softmax() == pytest.approx(expected, rel=1e-6)
    assert np.exp(sums.logits).sum(axis=1) == pytest.approx([1, 1], rel=1e-6)


def test_a_clip_that_a_part_lacks_is_failed_for_the_reason_of_that_part() -> None:
    result, sums = fuse([one(), other()], (1, 1))
    assert sums.failed == {
        "k2": "lost",
        "k3": "part 1 (one) has no prediction of it",
        "k4": "damaged",
    }
    assert (result.score.num_scored, result.score.num_expected) == (2, 5)
    # Of k2 and k3 another part knows the class; of k4 nobody.
    assert result.score.reweighted is None
    known = made_row("known", ONE, AB)
    assert fuse([known, other()], (1, 1))[0].score.reweighted is not None
    assert result.failed == sums.failed


def test_classes_in_another_order_are_matched_by_name() -> None:
    turned = {key: (label, logits[::-1]) for key, (label, logits) in OTHER.items()}
    _, sums = fuse([one(), made_row("turned", turned, AB[::-1])], (1, 1.5))
    assert sums.logits.tolist() == [[2, 1.5], [1, 2]]
    assert sums.label_ids.tolist() == [0, 1]
    names = made_row("abc", {"k": ("b", (1, 2, 3))}, "abc")
    _, sums = fuse([names, made_row("cab", {"k": ("b", (30, 10, 20))}, "cab")], (1, 1))
    assert sums.logits.tolist() == [[11, 22, 33]]


LOGITS = st.lists(
    st.lists(st.integers(-2000, 2000).map(lambda n: n / 8), min_size=3, max_size=3),
    min_size=1,
    max_size=6,
)


@given(LOGITS, st.sampled_from(["logits", "softmax"]), st.integers(2, 4))
def test_a_row_with_itself_is_the_row(logits: list[list[float]], of: str, times: int) -> None:
    clips = {f"k{at}": ("abc"[at % 3], values) for at, values in enumerate(logits)}
    row = made_row("row", clips, "abc")
    result, sums = fuse([row] * times, [1.0] * times, of)  # type: ignore[arg-type]
    assert ranks(sums).tolist() == ranks(row.predictions).tolist()
    assert result.score == row.result.score == score(sums)
    if of == "softmax":
        assert sums.softmax() == pytest.approx(row.predictions.softmax(), abs=1e-5)
    half, halves = fuse([row] * 2, (0.5, 0.5))
    assert halves.logits.tolist() == row.predictions.logits.tolist()
    assert half.score == row.result.score


def test_shares_too_small_for_a_number_keep_their_order() -> None:
    row = made_row("row", {"k": ("b", (0, -2000, -3000))}, "abc")
    _, sums = fuse([row, row], (1, 1), "softmax")
    assert ranks(sums).tolist() == [1]
    assert sums.logits[0].tolist() == pytest.approx([0, -2000, -3000])


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((1,), "1 weights for 2 rows"),
        ((1, -1), "not -1"),
        ((1, float("nan")), "not nan"),
        ((1, float("inf")), "not inf"),
        ((0, 0), "all weights are 0"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights: tuple[float, ...], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        fuse([one(), other()], weights)


def test_sums_beyond_all_numbers_are_refused() -> None:
    large = made_row("large", {"k": ("a", (3e38, 0))}, "ab")
    with pytest.raises(EvaluationError, match="not finite; give smaller"):
        fuse([large, large], (1, 1))


def test_rows_that_are_not_of_the_same_clips_and_classes_are_refused() -> None:
    with pytest.raises(EvaluationError, match="only c has 'x'"):
        fuse([one(), made_row("c", {"k0": ("run", (1, 0, 0))}, ("run", "walk", "x"))], (1, 1))
    with pytest.raises(EvaluationError, match="k0 is 'run' in one and 'walk' in d"):
        fuse([one(), made_row("d", {"k0": ("walk", (1, 0))}, AB)], (1, 1))
    with pytest.raises(EvaluationError, match="one has such as k0, e such as z"):
        fuse([one(), made_row("e", {"z": ("walk", (1, 0))}, AB)], (1, 1))
    third = made_row("f", {"k2": ("walk", (1, 0))}, AB)  # shares a clip with one alone
    with pytest.raises(EvaluationError, match="no clip was scored by all of part 1"):
        fuse([one(), other(), third], (1, 1, 1))


@pytest.mark.parametrize("name", [results.RESULT, results.PREDICTIONS])
def test_a_row_is_never_half_new(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends when one of the files is to get its name: the predictions do so first."""
    folder = tmp_path / "row"
    result, sums = fuse([one(), other()], (1, 1))
    result.write(folder, sums)
    replaced = Path.replace

    def replacing(path: Path, target: Path) -> Path:
        if target == folder / name:
            raise KeyboardInterrupt
        return replaced(path, target)

    result, sums = fuse([one(), other()], (1, 0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", replacing)
        result.write(folder, sums)
    with pytest.raises(KineticsError, match=r"has no result\.json; evaluate again"):
        read_row(folder)


def test_a_record_of_before_is_not_taken_for_one_of_new_predictions(tmp_path: Path) -> None:
    result, sums = fuse([one(), other()], (1, 0))
    result.write(tmp_path, sums)
    old, _ = fuse([one(), other()], (1, 1))
    changed = replace(old, score=replace(old.score, top1=0.25))
    with pytest.raises(EvaluationError, match=r"is not of the result\.json beside it"):
        changed.predictions(tmp_path)


def test_the_row_says_what_it_was_fused_from(tmp_path: Path) -> None:
    seen = Overlap(source="kinetics700/train", num_listed=9, num_videos=2, num_clips=2)
    marked = replace(one().result.data, num_overlap=2, overlaps=(seen,))
    parts = [
        Row(Path("one"), replace(one().result, data=marked), one().predictions),
        made_row("third", OTHER, AB, network=("c3d", "rgb"), protocol=PROTOCOLS["10x3"]),
        other(),
    ]
    result, sums = fuse(parts, (1, 0.5, 2))
    read = read_row(written_row(tmp_path / "fused", Row(Path(), result, sums)))
    assert read.result == replace(result, recipes=read.result.recipes)
    assert (read.result.arch, read.result.stream) == ("i3d", "joint")
    assert (read.result.network, read.result.protocol_name) == ("i3d + c3d", "whole + 10x3")
    assert read.result.fused is not None
    told = [(part.name, part.weight, part.result.arch) for part in read.result.fused.parts]
    assert told == [("one", 1, "i3d"), ("third", 0.5, "c3d"), ("other", 2, "i3d")]
    recipes = [part.result.training for part in read.result.fused.parts]
    assert recipes == [part.result.training for part in parts]
    assert read.result.cost.parameters == 300
    assert read.result.data.num_overlap == 1  # of the two at least: one clip was lost
    assert scope_notes(read.result) == [
        "part 1: 2 TRAINED ON",
        "part 1: 2 of videos in kinetics700/train",
    ]
    notes = compare(read, other()).notes
    assert any("part 1 of A was trained on 2 of the clips" in note for note in notes)
    with pytest.raises(EvaluationError, match=r"fused is a fused row; give its parts: one \(1\)"):
        fuse([read, one()], (1, 1))


def test_two_networks_of_rgb_are_a_row_of_rgb() -> None:
    result, _ = fuse([one(), made_row("c", OTHER, AB, network=("c3d", "rgb"))], (1, 1))
    assert (result.arch, result.stream) == ("i3d", "rgb")


def test_the_architecture_is_one_that_has_the_streams_of_the_sum(tmp_path: Path) -> None:
    rows = [made_row("c", OTHER, AB, network=("c3d", "rgb")), other()]
    result, sums = fuse(rows, (1, 1))
    assert (result.arch, result.stream, result.network) == ("i3d", "joint", "c3d + i3d")
    assert read_row(written_row(tmp_path / "row", Row(Path(), result, sums))).result.arch == "i3d"


def test_a_row_that_was_not_fused_is_written_as_before(tmp_path: Path) -> None:
    values = json.loads((written_row(tmp_path / "row", one()) / RESULT).read_text())
    assert "fused" not in values


def test_a_stored_part_is_no_fused_row(tmp_path: Path) -> None:
    folder = written_row(tmp_path / "row", Row(Path(), *fuse([one(), other()], (1, 1))))
    values = json.loads((folder / RESULT).read_text())
    part = values["fused"]["parts"][0]
    odd: list[dict[str, Any]] = [
        {"parts": []},
        {"of": "ranks"},
        {"parts": [{**part, "result": values}]},
        {"parts": [{**part, "weight": float("nan")}]},
    ]
    for broken in odd:
        (folder / RESULT).write_text(json.dumps({**values, "fused": {**values["fused"], **broken}}))
        with pytest.raises(EvaluationError, match="not a result of this version"):
            Result.read(folder)


def test_the_command_writes_a_row_that_report_and_compare_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kinetics_bench")
    folders = [written_row(tmp_path / name, row) for name, row in (("a", one()), ("b", other()))]
    words = [*map(str, folders), "--out", str(tmp_path / "fused")]
    assert cli.run(["fuse", *words, "--weights", "1,1.5", "--dump", "csv"]) == 0
    assert "2 / 5" in capsys.readouterr().out
    assert (tmp_path / "fused" / "predictions.csv").exists()
    row = find_row(tmp_path / "fused")
    assert row.predictions.logits.tolist() == [[2, 1.5], [1, 2]]
    write_report([tmp_path / "fused"], tmp_path / "page.html")
    assert cli.run(["compare", str(tmp_path / "fused"), str(folders[0])]) == 0
    assert "replaced" not in caplog.text
    assert cli.run(["fuse", *words, "--of", "softmax"]) == 0  # again, over its own
    assert f"replaced, it was logits of 1 x {folders[0]} + 1.5 x {folders[1]}" in caplog.text
    assert not (tmp_path / "fused" / "predictions.csv").exists()  # of the sums before


def test_the_command_does_not_write_over_a_run(tmp_path: Path) -> None:
    row = str(written_row(tmp_path / "run" / "rgb", one()))
    before = (tmp_path / "run" / "rgb" / RESULT).read_bytes()
    for out in (row, str(tmp_path / "run")):
        with pytest.raises(KineticsError, match="results of a run; choose another --out"):
            cli.run(["fuse", row, row, "--out", out])
    assert (tmp_path / "run" / "rgb" / RESULT).read_bytes() == before
    assert not (tmp_path / "run" / RESULT).exists()


def test_one_row_is_no_sum(tmp_path: Path) -> None:
    row = str(written_row(tmp_path / "row", one()))
    with pytest.raises(KineticsError, match=r"row alone is no sum; give two rows or more"):
        cli.run(["fuse", row, "--out", str(tmp_path / "fused")])
    assert not (tmp_path / "fused").exists()


def test_the_streams_of_a_run_are_added_as_they_are() -> None:
    parts = {"rgb": one().predictions, "flow": other().predictions}
    joint = add_predictions(parts)
    assert joint.logits.tolist() == [[2, 1], [1, 1.5]]
    assert joint.failed["k3"] == "rgb has no prediction of it"
